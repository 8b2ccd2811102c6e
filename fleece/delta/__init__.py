"""The delta file: bytes in, bytes out. Knows no NBD, no QEMU and no store (docs/format.rst)."""
