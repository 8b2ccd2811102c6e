"""Points that somebody else holds, and serves by NBD."""
