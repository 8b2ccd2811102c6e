"""Where points in time come from."""
