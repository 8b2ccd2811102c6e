"""One backup: decide, take the point, copy, commit."""
