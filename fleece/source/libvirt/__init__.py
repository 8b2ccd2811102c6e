"""A guest of libvirt as a source of points, by libvirt's own API."""
