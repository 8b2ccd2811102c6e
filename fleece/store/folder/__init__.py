"""Stores in a plain folder: `STORE/guest/point/disk.fleece`."""
