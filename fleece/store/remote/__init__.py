"""Stores that a fleece elsewhere serves over standard streams: `ssh://HOST/PATH`."""
