"""Talking NBD through libnbd: connections, block status, and image files served by qemu-nbd."""
