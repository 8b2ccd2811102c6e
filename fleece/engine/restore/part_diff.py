"""What differs between the machines of two points."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterator
from dataclasses import dataclass

from fleece.delta.part import PartKind
from fleece.engine.work.part import read_part
from fleece.store.catalogue import Catalogue, Entry, StoredPoint

_TEXTS = (PartKind.LIBVIRT_XML, PartKind.QEMU)
_MOST_LINES = 20_000
"""Of a definition; of a longer one it is only told that it changed."""


class Change(enum.StrEnum):
    """What became of a part."""

    NEW = "new"
    GONE = "gone"
    CHANGED = "changed"


@dataclass(frozen=True)
class PartDifference:
    """A part of the machine that is not the same at two points.

    Attributes:
        name, kind: of the part.
        change: what became of it.
        lines: of a definition that changed, as a unified diff; else none.
    """

    name: str
    kind: PartKind
    change: Change
    lines: tuple[str, ...] = ()


def compare_parts(
    catalogue: Catalogue, old: StoredPoint, new: StoredPoint
) -> Iterator[PartDifference]:
    """The parts that differ. Only definitions that changed are read.

    Args:
        catalogue: of the store.
        old, new: two of its points.

    Raises:
        StoreError: a definition is damaged.
    """
    for name in sorted({*old.parts, *new.parts}):
        before, after = old.parts.get(name), new.parts.get(name)
        if before is None or after is None:
            (there,) = [entry for entry in (before, after) if entry is not None]
            change = Change.NEW if before is None else Change.GONE
            yield PartDifference(name, _kind(there), change)
        elif before.root != after.root:
            lines = _lines(catalogue, before, after) if _kind(after) in _TEXTS else ()
            yield PartDifference(name, _kind(after), Change.CHANGED, tuple(lines))


def _kind(entry: Entry) -> PartKind:
    assert entry.header.part is not None
    return entry.header.part


def _lines(catalogue: Catalogue, before: Entry, after: Entry) -> Iterator[str]:
    old, new = _text(catalogue, before), _text(catalogue, after)
    if max(len(old), len(new)) <= _MOST_LINES:
        first, second = before.header.point.id, after.header.point.id
        yield from difflib.unified_diff(old, new, first, second, lineterm="")


def _text(catalogue: Catalogue, entry: Entry) -> list[str]:
    with catalogue.chain(entry) as chain:
        return read_part(chain).data.decode(errors="replace").splitlines()
