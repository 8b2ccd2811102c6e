"""The engine on real QEMU: what a user of `fleece` meets, and what must never happen to one."""
