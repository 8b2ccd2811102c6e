"""Files out of a point: its volumes, their file systems, and copies of what is in them.

What a guest has written is parsed by a library in a process of its own (`fleece.files.reader`),
which has no store, no key, and no way to write. This side gives it the disk's bytes, each checked
by hash, and makes the copies. docs/internals/architecture.rst, "Files out of a point", says why.
"""
