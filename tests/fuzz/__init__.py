"""A coverage-guided fuzz target for everything that reads a delta: `python -m tests.fuzz`."""
