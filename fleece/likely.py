"""What somebody may have meant who wrote a word that is not there."""

from __future__ import annotations

from collections.abc import Iterable


def meant(word: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The most similar of some words; None: none is similar enough, from 0 to 1."""
    from difflib import get_close_matches  # which only a wrong word waits for

    return next(iter(get_close_matches(word, list(known), 1, likeness)), None)


def advice(word: str, known: Iterable[str]) -> str | None:
    """The same as a hint."""
    found = meant(word, known)
    return None if found is None else f"did you mean {found}?"
