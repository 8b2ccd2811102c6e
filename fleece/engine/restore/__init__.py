"""Disks out of a store: images, chains, streams, salvage."""
