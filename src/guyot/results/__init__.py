"""What comes out of a run: saved, rebuilt, exported and written networks."""
