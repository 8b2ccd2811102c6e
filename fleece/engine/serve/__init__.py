"""Points shown to others: NBD exports, and a machine that boots from one."""
