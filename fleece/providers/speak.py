"""The protocol's side of a provider that is written in Python: docs/providers.rst."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import Any, Protocol

Said = dict[str, Any]
"""A request or an answer, or a part of one."""


class Refused(Exception):
    """What was asked for cannot be done; `what` is told to the user, and so is `hint`."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        self.what = what
        self.hint = hint
        super().__init__(what)


class Provider(Protocol):
    """What a provider does. Each may raise `Refused`, and then has changed nothing."""

    def hello(self) -> Said:
        """`name`, `version`, and what it can do."""

    def describe(self) -> Said:
        """`disks`, and `guest` if it is known."""

    def begin(self, request: Said) -> Said:
        """Take a point; gives `disks`."""

    def changes(self, disk: str, offset: int) -> Said:
        """What was written since the base, from there on: `extents` and `next`."""

    def check(self) -> None:
        """Refuse if the exports do not show the point any more."""

    def close(self) -> None:
        """End the exports; `commit` or `drop` comes later."""

    def commit(self) -> None:
        """End the point, and keep it as a base."""

    def drop(self) -> None:
        """End the point, if there is one, and keep nothing of it."""

    def forget(self, bases: list[Said]) -> None:
        """Let go of bases (`disk`, `token`). One that is not there is fine."""


def run(provider: Provider) -> None:
    """Answer what is asked on standard input until it ends; what is held then is dropped."""
    # A server that it has started must not outlive it, and the point must be ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ways: dict[str, Callable[[Said], Said | None]] = {
        "hello": lambda request: _hello(provider, request),
        "describe": lambda request: provider.describe(),
        "begin": provider.begin,
        "changes": lambda request: provider.changes(request["disk"], request["from"]),
        "check": lambda request: provider.check(),
        "close": lambda request: provider.close(),
        "commit": lambda request: provider.commit(),
        "drop": lambda request: provider.drop(),
        "forget": lambda request: provider.forget(request["bases"]),
    }
    try:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            answer = _answer(ways.get(request["do"]), request)
            sys.stdout.write(json.dumps({"id": request["id"], **answer}) + "\n")
            sys.stdout.flush()
    finally:
        provider.drop()


def _hello(provider: Provider, request: Said) -> Said:
    if 1 not in request["protocols"]:
        raise Refused("this provider speaks version 1 of the protocol alone")
    return {"protocol": 1, **provider.hello()}


def _answer(way: Callable[[Said], Said | None] | None, request: Said) -> Said:
    try:
        if way is None:
            raise Refused(f"this provider cannot {request['do']}")
        return way(request) or {}
    except Refused as error:
        hint = {} if error.hint is None else {"hint": error.hint}
        return {"error": {"what": error.what, **hint}}
