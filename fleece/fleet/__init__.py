"""Many guests, looked after by one file: read it, say what it means, do what is due."""
