"""Pages of deltas that were read, checked and decoded, kept for the next look.

The deltas of a chain share one: however long the chain is, its pages have a bounded place.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from fleece.cache import Cache
from fleece.delta.pages import IndexRows
from fleece.tree import Level

_FILE = 16 << 20
"""Bytes for one file: eight pages of the largest kind."""

_ALL = 96 << 20

PageCache: TypeAlias = Cache[Level | IndexRows]


def page_cache(files: int = 1) -> PageCache:
    """An empty one for some files that are read together."""
    return Cache(min(files * _FILE, _ALL), _bytes)


def _bytes(page: Level | IndexRows) -> int:
    if isinstance(page, np.ndarray):
        return page.nbytes
    return page.nodes.nbytes + page.children.nbytes
