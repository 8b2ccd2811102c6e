"""Command lines that leave their STORE out, because `$FLEECE_STORE` names it.

A command line that is whole without it is taken as it stands: the variable changes the meaning of
none. Only one that has too few words gets a STORE, at its place.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Mapping, Sequence

from fleece.cli.grammar import MissingWords, parser
from fleece.errors import UsageError

VARIABLE = "FLEECE_STORE"

_LAST = ("backup", "audit")
"""Verbs whose STORE comes last; of the others it comes first."""

_WITHOUT = (
    "bitmap",
    "clean",
    "config",
    "doctor",
    "drill",
    "export",
    "info",
    "report",
    "root",
    "run",
    "salvage",
    "serve-source",
    "serve-store",
)
"""Verbs that need none, and those that others call: they serve nobody something else."""

_POINT = re.compile("latest|[0-9a-f]{4,40}")


def parsed(argv: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """What a command line says.

    Args:
        argv: its words.
        environment: the variables.

    Raises:
        UsageError: it is wrong, or words are missing with `$FLEECE_STORE`, too.
    """
    store = environment.get(VARIABLE, "")
    words = list(argv)
    if not store or not words or words[0] in _WITHOUT:
        return parser().parse_args(words)
    if words[0] == "verify" and _names_a_point(words):
        return parser().parse_args(["verify", store, *words[1:]])
    whole = [*words, store] if words[0] in _LAST else [words[0], store, *words[1:]]
    try:
        return parser().parse_args(words)
    except MissingWords:
        return parser().parse_args(whole)
    except UsageError:
        # Where a word is missing, the inner verb of `files` is looked for in the next one.
        with contextlib.suppress(UsageError):
            if words[0] == "files":
                return parser().parse_args(whole)
        raise


def _names_a_point(words: Sequence[str]) -> bool:
    """Whether a `verify`, whose POINT may be missing, has one word, and that is a point's name."""
    try:
        said = parser().parse_args(words)
    except MissingWords:
        return False
    return said.point is None and _POINT.fullmatch(said.store) is not None
