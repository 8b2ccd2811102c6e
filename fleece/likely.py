"""What somebody may have meant who wrote a word that is not there."""

from __future__ import annotations

from collections.abc import Iterable


def meant(word: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The most similar of some words, else one that it begins; None: there is none.

    Args:
        word: the wrong one.
        known: the others.
        likeness: that is enough, from 0 to 1.
    """
    from difflib import get_close_matches  # which only a wrong word waits for

    words = list(known)
    begun = [one for one in words if word and one.startswith(word)]
    return next(iter(get_close_matches(word, words, 1, likeness) or begun), None)


def advice(word: str, known: Iterable[str]) -> str | None:
    """The same as a hint."""
    found = meant(word, known)
    return None if found is None else f"did you mean {found}?"
