"""Points of disk images that no QEMU has open: of a guest that is off."""
