"""The grammar builds what a verb takes: one object, whose fields are what the parser reads."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from fleece.cli.grammar import parser

_OF_ALL = {"help", "machine", "quiet", "verbose", "nice"}
"""What `fleece.cli.main` takes itself."""
_SECRET = {"key_file", "passphrase_file"}
"""What it makes the field `secret` of."""
_VERB = {"verb"}
"""What an option sets that is a verb of its own."""


def _verbs(made: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, set[str]]]:
    """The parser of each verb, also of those below one, and what is read for it."""
    inner = [action for action in made._actions if isinstance(action, argparse._SubParsersAction)]
    own = {action.dest for action in made._actions if action not in inner}
    if not inner:
        yield made, own
    for action in inner:
        for below in action.choices.values():
            for verb, read in _verbs(below):
                yield verb, own | read


_VERBS = [pytest.param(verb, read, id=verb.prog) for verb, read in _verbs(parser())]


@pytest.mark.parametrize(("verb", "read"), _VERBS)
def test_a_verb_takes_what_the_grammar_builds(
    verb: argparse.ArgumentParser, read: set[str]
) -> None:
    """One object, and beside it where it prints and what ends it. Its fields are what is read.

    So no verb takes options as parameters, and no option is read and dropped.
    """
    kind: Any = verb.get_default("words")
    module, _, name = verb.get_default("verb").partition(":")
    function = getattr(importlib.import_module(f"fleece.cli.{module}"), name)
    taken = inspect.signature(function).parameters
    assert [*taken] == ["output", "cancel", "words"]
    assert taken["words"].annotation == kind.__name__
    fields = read - _OF_ALL - _SECRET - _VERB - {"version"}
    assert {*kind.__annotations__} == fields | ({"secret"} if read & _SECRET else set())


def test_all_verbs_are_held_to_it() -> None:
    assert {"fleece backup", "fleece restore", "fleece run"} <= {each.id for each in _VERBS}
