"""What a disk tells of its ranges, as the dialect has it: JSON, made while it is sent.

Only a window of the disk is asked about at a time, so a client that takes nothing costs no memory.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from fleece.disk.base import ReadableDisk
from fleece.engine.work.reads import WINDOW
from fleece.extents import Extents, joined

_MANY = 4096
"""Rows that are sent at once."""


@dataclass(frozen=True)
class HttpDisk:
    """A disk that is shown over HTTP.

    Attributes:
        name: of the disk.
        disk: read by any number of clients at once.
        changed: which parts of a range were written since the base; None: not known.
    """

    name: str
    disk: ReadableDisk
    changed: Callable[[Extents], Extents] | None = None


class Context(enum.StrEnum):
    """What can be asked of ranges."""

    ZERO = "zero"
    DIRTY = "dirty"


@dataclass(frozen=True)
class _Row:
    """A range of which the same is told."""

    start: int
    end: int
    zero: bool
    dirty: bool

    def text(self, context: Context) -> str:
        """As JSON. A disk hides whatever is below it, so it has no holes."""
        told = f'{{"start": {self.start}, "length": {self.end - self.start}, '
        zero = f'"zero": {str(self.zero).lower()}'
        if context is Context.ZERO:
            return f'{told}{zero}, "hole": false}}'
        return f'{told}"dirty": {str(self.dirty).lower()}, {zero}}}'


def extents_json(shown: HttpDisk, context: Context) -> Iterator[bytes]:
    """All ranges of a disk in order, each as long as it can be.

    Raises:
        FleeceError: the disk does not tell.
    """
    lead, texts = "[", list[str]()
    for row in _merged(shown, context):
        texts.append(row.text(context))
        if len(texts) == _MANY:
            yield f"{lead}{', '.join(texts)}".encode()
            lead, texts = ", ", []
    # What was yielded at last may have been all there is.
    tail = f"{lead}{', '.join(texts)}" if texts else "" if lead == ", " else lead
    yield f"{tail}]\n".encode()


def _merged(shown: HttpDisk, context: Context) -> Iterator[_Row]:
    return joined(
        _rows(shown, context),
        lambda row: (row.zero, row.dirty),
        lambda first, last: replace(first, end=last.end),
    )


def _rows(shown: HttpDisk, context: Context) -> Iterator[_Row]:
    for window in Extents.whole(shown.disk.size).windows(WINDOW):
        ((low, high),) = window
        dirty, asked = Extents.empty(), window
        if context is Context.DIRTY and shown.changed is not None:
            dirty = asked = shown.changed(window)  # nobody reads the rest, zeros or not
        zero = shown.disk.zero_extents(asked)
        edges = [np.array([low, high]), zero.start, zero.end, dirty.start, dirty.end]
        places = np.unique(np.concatenate(edges))
        places = places[(places >= low) & (places <= high)]
        starts, ends = places[:-1], places[1:]
        flags = zero.contains(starts, ends).tolist(), dirty.contains(starts, ends).tolist()
        for row in zip(starts.tolist(), ends.tolist(), *flags, strict=True):
            yield _Row(*row)
