"""The grammar fills what the verbs read, and names what the library knows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import pytest

import fleece
from fleece.cli import words
from fleece.cli.grammar import parser
from fleece.engine.serve.boot import DISK_DEVICES

_KEY = {"key_file", "passphrase_file"}
_NOT_THE_VERBS = {"help", "version", "machine", "quiet", "verbose", "nice", "==SUPPRESS=="}
"""What `fleece.cli.main` takes for itself."""


def _verbs(made: argparse.ArgumentParser, outer: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Each verb's parser, with the names of what it and those around it take."""
    inner = [a for a in made._actions if isinstance(a, argparse._SubParsersAction)]
    names = outer | {a.dest for a in made._actions if a not in inner}
    for action in inner:
        for each in action.choices.values():
            yield from _verbs(each, names)
    if not inner:
        yield made.prog, (made, names)


_VERBS = dict(_verbs(parser(), frozenset()))


@pytest.mark.parametrize("name", _VERBS)
def test_a_verbs_words_are_what_its_grammar_takes(name: str) -> None:
    made, names = _VERBS[name]
    taken = names - _NOT_THE_VERBS - {"verb"}
    if taken >= _KEY:
        taken = (taken - _KEY) | {"secret"}
    assert set(made.get_default("words").__annotations__) == taken


def test_every_class_of_words_is_a_verbs() -> None:
    known = {made.get_default("words") for made, _ in _VERBS.values()}
    assert set(words.Words.__subclasses__()) == known


@pytest.mark.parametrize(
    ("verb", "option", "values"),
    [
        ("backup", "mode", fleece.ModeWish),
        ("backup", "transport", fleece.TransportWish),
        ("backup", "fleecing", fleece.Fleecing),
        ("audit", "fleecing", fleece.Fleecing),
        ("init", "hash_name", fleece.HashChoice),
        ("root", "hash_name", fleece.HashChoice),
        ("restore", "target_format", fleece.ImageFormat),
        ("boot-test", "bus", DISK_DEVICES),
    ],
)
def test_what_an_option_may_be_is_what_the_library_knows(
    verb: str, option: str, values: Any
) -> None:
    made, _ = _VERBS[f"fleece {verb}"]
    (action,) = [action for action in made._actions if action.dest == option]
    assert sorted(action.choices) == sorted(str(value) for value in values)
