"""How a command line wants its source to be opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fleece
from fleece.amounts import bytes_of


def source_options(
    scratch: str | None,
    connect: str | None = None,
    scratch_limit: str | None = None,
    fleecing: str = fleece.Fleecing.CLASSIC,
) -> fleece.SourceOptions:
    """How a command line wants its source to be opened."""
    limit = None if scratch_limit is None else bytes_of("--scratch-limit", scratch_limit)
    folder = None if scratch is None else Path(scratch)
    return fleece.SourceOptions(folder, limit, fleece.Fleecing(fleecing), connect=connect)


def split_disks(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """What `--disk` says: the names of the disks to choose, and the places of those with a URI.

    If all are told with their place, all disks are chosen.
    """
    pairs = [text.partition("=") for text in words]
    placed = ["://" in place for _, _, place in pairs]
    places = tuple((pair[0], pair[2]) for pair, one in zip(pairs, placed, strict=True) if one)
    if all(placed):
        return (), places
    found = zip(words, pairs, placed, strict=True)
    return tuple(pair[0] if one else text for text, pair, one in found), places
