"""Text for people, as it is shown on a terminal."""

from __future__ import annotations

import os
import re
import unicodedata

_MOMENT = re.compile(r"(?<![\w/.-])\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ(?![\w/.-])")


def shown(text: str) -> str:
    r"""A text for one line of a terminal or a log: what is not printable is escaped as `\x1b`.

    Names from a guest, a store or a source, and what these say, can hold what a terminal obeys or
    what makes a line look like another: control characters of either kind, line ends of any kind,
    overrides of the writing direction, characters without width, bytes that are no UTF-8. These
    are shown as their bytes. Other characters, of whatever script, stay. Shown twice is shown once.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def counted(count: int, noun: str) -> str:
    """A number of things: `1 point`, `2 points`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def human(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def span(seconds: float) -> str:
    """A length of time for people, in the largest unit that it has two of."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def cells(text: str) -> int:
    """How many columns of a terminal a text takes (Unicode Standard Annex 11).

    Args:
        text: without anything that a terminal obeys.
    """
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def local_time(moment: str) -> str:
    """A time for people: in their zone, which is named.

    Args:
        moment: RFC 3339, as it stands in headers and notes, in UTC if it says nothing else. What
            is no time stays as it is.
    """
    from datetime import UTC, datetime  # 1.5 ms, which 'fleece --help' need not wait for

    try:
        found = datetime.fromisoformat(moment)
        return f"{found.replace(tzinfo=found.tzinfo or UTC).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    except (ValueError, OverflowError, OSError):
        return moment


def is_plain() -> bool:
    """Whether the terminal says of itself that it can do no more than print lines."""
    return os.environ.get("TERM") in ("dumb", "unknown")


def local_times(text: str) -> str:
    """A text with its times, as RFC 3339 has them in UTC, for people; none within a path."""
    return _MOMENT.sub(lambda found: local_time(found[0]), text)


def _escaped(char: str) -> str:
    try:
        raw = os.fsencode(char)
    except UnicodeEncodeError:
        raw = char.encode(errors="surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)
