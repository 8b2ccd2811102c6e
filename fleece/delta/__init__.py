"""The delta file: bytes in, bytes out (docs/internals/format.rst). Knows no NBD, QEMU or store."""
