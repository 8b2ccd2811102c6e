"""Amounts, as users write them."""

from __future__ import annotations

import re

from fleece.errors import UsageError


def bytes_of(option: str, text: str) -> int:
    """A number of bytes, with K, M, G or T for powers of 1024.

    Args:
        option: what is given, for messages.
        text: as it was written.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", text)
    if found is None:
        raise UsageError(f"{option} takes a number of bytes, like 500M or 20G", where=text)
    return int(found[1]) << (10 * " KMGT".index(found[2] or " "))


def fraction_of(option: str, text: str) -> float:
    """A part of a whole: `10%` or `0.1`.

    Args:
        option: what is given, for messages.
        text: as it was written.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)(%?)", text)
    if found is None:
        raise UsageError(f"{option} takes a part like 10% or 0.1", where=text)
    return float(found[1]) / (100 if found[2] else 1)
