"""The command line: configuration, data, models, training runs, sweeps."""
