"""Text for people, as it is shown on a terminal."""

from __future__ import annotations

import os
import unicodedata


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


def _escaped(char: str) -> str:
    try:
        raw = os.fsencode(char)
    except UnicodeEncodeError:
        raw = char.encode(errors="surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)
