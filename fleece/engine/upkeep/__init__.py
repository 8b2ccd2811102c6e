"""A store kept in shape: merge, prune, import."""
