"""A guest of another host: a fleece there is asked over ssh, and holds its points."""
