"""Tables for people, no wider than their terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fleece.terminal import cells, shown

_GAP = "  "
_LEAST = 5
"""Cells that a column keeps, however narrow the terminal is."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: in the first line.
        right: whether its cells end at its right edge, as numbers do.
        gives_way: whether it becomes narrower when the terminal is too narrow for all.
    """

    title: str
    right: bool = False
    gives_way: bool = False


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None
) -> Iterator[str]:
    """The lines of a table, the titles first; a column that is empty in all rows is left out.

    Args:
        columns: from left to right.
        rows: a text for each column; what a terminal would obey is escaped.
        width: of the terminal, in cells; None: the table is as wide as it likes.
    """
    used = [n for n in range(len(columns)) if any(row[n] for row in rows)]
    titles = [columns[n].title for n in used]
    texts = [titles, *([shown(row[n]) for n in used] for row in rows)]
    widths = [max(map(cells, column)) for column in zip(*texts, strict=True)]
    if width is not None:
        givers = [place for place, n in enumerate(used) if columns[n].gives_way]
        _narrow(widths, givers, width - len(_GAP) * (len(widths) - 1))
    for line in texts:
        padded = (
            _padded(text, room, right=columns[n].right)
            for text, room, n in zip(line, widths, used, strict=True)
        )
        yield _GAP.join(padded).rstrip()


def _narrow(widths: list[int], givers: list[int], room: int) -> None:
    """Take cells from the columns that give way, the widest first, until there is room."""
    while sum(widths) > room:
        widest = max(givers, key=lambda place: widths[place], default=None)
        if widest is None or widths[widest] <= _LEAST:
            return
        widths[widest] -= 1


def _padded(text: str, room: int, *, right: bool) -> str:
    if (taken := cells(text)) > room:
        while cells(text) >= room:
            text = text[:-1]
        text += "…"
        taken = cells(text)
    space = " " * (room - taken)
    return space + text if right else text + space
