"""How a command line wants its source to be opened."""

from __future__ import annotations

import re
from pathlib import Path

import fleece
from fleece.errors import UsageError


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


def bytes_of(option: str, text: str) -> int:
    """A number of bytes, with K, M, G or T for powers of 1024."""
    found = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", text)
    if found is None:
        raise UsageError(f"{option} takes a number of bytes, like 500M or 20G", where=text)
    return int(found[1]) << (10 * " KMGT".index(found[2] or " "))
