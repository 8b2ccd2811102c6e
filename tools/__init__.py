"""Programs for those who work on fleece; no part of the package."""
