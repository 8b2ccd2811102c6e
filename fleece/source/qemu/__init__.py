"""Points of a running QEMU or qemu-storage-daemon, set up over QMP."""
