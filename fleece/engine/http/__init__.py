"""Disks over HTTP, read-only, in the dialect of oVirt's imageio: for who knows a ticket."""
