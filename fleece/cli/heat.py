"""A picture of a disk as text for a terminal, and as SVG: shade is how full, colour is how new."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import fleece
from fleece.errors import TargetError
from fleece.terminal import counted, human, is_plain, local_time, shown
from fleece.there import is_file

CELLS = 1024
"""That a picture has at most."""

_COLUMNS = 64
_OFFSET = 12
"""Cells of a terminal that a row's offset takes."""
_SHADES = "·░▒▓█"
_LEGEND = 20
_NEW, _OLD = (214, 40, 40), (60, 100, 200)
_CELL = 12
_LINE = 18
_MARGIN = 90
"""Left of the cells of an SVG: their rows' offsets."""


@dataclass(frozen=True)
class Frame:
    """The room for a picture in lines of text.

    Attributes:
        columns: cells in a row.
        rows: of cells, at most.
        legend: points that are named, at most.
        width: of a line; None: no matter.
    """

    columns: int = _COLUMNS
    rows: int = CELLS // _COLUMNS
    legend: int = _LEGEND
    width: int | None = None

    @property
    def cells(self) -> int:
        """That the picture may have."""
        return self.columns * self.rows

    @staticmethod
    def of(size: os.terminal_size | None) -> Frame:
        """What a terminal has room for, with a title, a prompt below and no scrolling.

        Args:
            size: of it; None, or of nothing: there is none.
        """
        if size is None or not (size.columns and size.lines):
            return Frame()
        columns = 8
        while 2 * columns <= min(size.columns - _OFFSET, 2 * _COLUMNS):
            columns *= 2
        rows = max(2, min(CELLS // columns, size.lines - 7))
        # Beside rows and legend: title, scale, how many points more, the prompt.
        return Frame(columns, rows, max(1, min(_LEGEND, size.lines - rows - 4)), size.columns)


def lines(picture: fleece.Picture, frame: Frame) -> Iterator[str]:
    """The picture, and which points its data is from."""
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ and not is_plain()
    cells = len(picture.data)
    for first in range(0, cells, frame.columns):
        row = range(first, min(first + frame.columns, cells))
        offset = human(first * picture.cell)
        yield f"{offset:>11} " + "".join(_cell(picture, number, colours) for number in row)
    scale = f"{_SHADES[0]} zero, {_SHADES[1]} to {_SHADES[-1]} data"
    yield f"a cell is {human(picture.cell)}: {scale}"[: frame.width]
    visible = _visible(picture)
    for owner in visible[: frame.legend]:
        mark = _painted("█ ", _colour(owner, len(picture.points))) if colours else ""
        room = None if frame.width is None else frame.width - (2 if mark else 0)
        yield mark + shown(_described(picture, owner))[:room]
    if (more := len(visible) - frame.legend) > 0:
        yield f"and {counted(more, 'more point')}; --json lists all"[: frame.width]


def _visible(picture: fleece.Picture) -> list[int]:
    """The points, by number, that anything of the disk is from."""
    share = (picture.data_bytes + picture.zeros).tolist()
    return [owner for owner, count in enumerate(share) if count]


def _described(picture: fleece.Picture, owner: int) -> str:
    point = picture.points[owner]
    data, zeros = int(picture.data_bytes[owner]), int(picture.zeros[owner])
    return f"{point.id}  {local_time(point.time)}  {human(data):>10} data  {human(zeros):>10} zero"


def _shade(filled: float) -> int:
    """0 for no data at all, then 1 to 4 by quarters."""
    return 0 if filled == 0 else min(4, 1 + int(filled * 4))


def _cell(picture: fleece.Picture, number: int, colours: bool) -> str:
    shade = _shade(picture.filled(number))
    if shade == 0 or not colours:
        return _SHADES[shade]
    return _painted(_SHADES[shade], _colour(picture.owner(number), len(picture.points)))


def _painted(text: str, colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return f"\x1b[38;2;{red};{green};{blue}m{text}\x1b[0m"


def _colour(owner: int, count: int) -> tuple[int, int, int]:
    """From red for the newest point to blue for the oldest."""
    age = owner / max(1, count - 1)
    red, green, blue = (round(n + (o - n) * age) for n, o in zip(_NEW, _OLD, strict=True))
    return red, green, blue


def write_svg(path: str, picture: fleece.Picture, title: str) -> None:
    """Write the picture into a file, which appears whole or not at all.

    Raises:
        TargetError: it cannot be written.
    """
    final = Path(path)
    if not final.name:
        raise TargetError("is not a file's name", where=repr(path), hint="--svg FILE makes FILE")
    try:
        if os.path.lexists(final) and not is_file(final):
            raise TargetError("is not a regular file", where=path, hint="--svg FILE makes FILE")
        _write_whole(final, "\n".join([*_svg(picture, title), ""]))
    except OSError as error:
        raise TargetError(error.strerror or str(error), where=path) from error


def _write_whole(final: Path, text: str) -> None:
    # A name that nobody can foresee, and a file that was not there: no link is written through.
    partial = final.with_name(f".{final.name[:50]}.{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "x", encoding="utf-8") as file:
            file.write(text)
        partial.replace(final)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _svg(picture: fleece.Picture, title: str) -> Iterator[str]:
    cells, visible = len(picture.data), _visible(picture)
    more = len(visible) - _LEGEND
    top = 2 * _LINE
    rows = -(-cells // _COLUMNS)
    legend = top + rows * _CELL + _LINE
    width = _MARGIN + _COLUMNS * _CELL + _CELL
    height = legend + (min(len(visible), _LEGEND) + 2) * _LINE
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
    yield "<style>text { font: 12px monospace }</style>"
    yield f'<rect width="{width}" height="{height}" fill="#fff"/>'
    yield _text(_LINE, f"{title}, {human(picture.size)}; a cell is {human(picture.cell)}")
    for row in range(rows):
        offset = human(row * _COLUMNS * picture.cell)
        yield _text(top + row * _CELL + _CELL - 2, f"{offset:>10}")
    for number in range(cells):
        yield _rectangle(picture, number, top)
    for place, owner in enumerate(visible[:_LEGEND]):
        at = legend + place * _LINE
        fill = _hex(_colour(owner, len(picture.points)))
        yield f'<rect x="{_CELL}" y="{at}" width="{_CELL}" height="{_CELL}" fill="{fill}"/>'
        yield _text(at + _CELL - 2, "   " + _described(picture, owner))
    if more > 0:
        yield _text(legend + _LEGEND * _LINE + _CELL - 2, f"and {counted(more, 'more point')}")
    yield "</svg>"


def _rectangle(picture: fleece.Picture, number: int, top: int) -> str:
    """A cell: its colour is how new, its opacity how full; its tooltip says both."""
    x, y = _MARGIN + number % _COLUMNS * _CELL, top + number // _COLUMNS * _CELL
    filled = picture.filled(number)
    place = f'x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}"'
    what = f"{human(number * picture.cell)}: {filled:.0%} data"
    if filled == 0:
        return f'<rect {place} fill="#eee"><title>{what}</title></rect>'
    owner = picture.owner(number)
    fill = _hex(_colour(owner, len(picture.points)))
    what += f", most of it from {picture.points[owner].id}"
    opacity = f"{0.25 + 0.75 * filled:.2f}"
    return f'<rect {place} fill="{fill}" opacity="{opacity}"><title>{what}</title></rect>'


def _text(y: int, text: str) -> str:
    return f'<text x="{_CELL}" y="{y}" xml:space="preserve">{escape(shown(text))}</text>'


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)
