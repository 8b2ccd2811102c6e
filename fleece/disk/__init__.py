"""A disk to read or write, whatever it is: a raw file, a block device, or an NBD export."""
