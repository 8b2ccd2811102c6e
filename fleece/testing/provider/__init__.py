"""The tests that every provider of points must pass: `python -m fleece.testing.provider ./mine`."""
