"""Whoever must know is told: of failures, of what is well again, of what is too old or damaged."""
