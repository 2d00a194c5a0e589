"""Types, errors and helpers that every other folder uses."""
