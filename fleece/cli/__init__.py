"""The command line: parses and prints, decides nothing. It uses the public API alone."""
