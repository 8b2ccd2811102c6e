"""Where deltas live: a folder, and the catalogue that is read out of the deltas' own headers."""
