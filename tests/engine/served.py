"""A source that is served by this process, as `fleece serve-source` serves it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import fleece
from fleece.source.far.messages import SILENCE
from fleece.source.far.server import serve


class Served:
    """A source of this host that is served, and what asks, line by line."""

    def __init__(
        self, pool: ThreadPoolExecutor, opened: Callable[[], fleece.Source], silence: float
    ) -> None:
        asked, self._to = os.pipe()
        of, told = os.pipe()
        self._of = os.fdopen(of)

        def served() -> None:
            try:
                serve(opened, asked, told, None, silence)
            finally:
                os.close(told)
                os.close(asked)

        self.end: Future[None] = pool.submit(served)

    def said(self, line: bytes) -> None:
        """Write a line to it."""
        os.write(self._to, line + b"\n")

    def ask(self, do: object, **more: object) -> Any:
        """What it answers."""
        self.said(json.dumps({"id": 1, "do": do, **more}).encode())
        return self.heard()

    def heard(self) -> Any:
        """Its next answer."""
        return json.loads(self._of.readline())

    def rest(self) -> str:
        """All that it says until it ends."""
        return self._of.read()

    def close(self) -> None:
        """End its input. Safe to repeat."""
        if self._to >= 0:
            os.close(self._to)
            self._to = -1


@contextmanager
def served(opened: Callable[[], fleece.Source], silence: float = SILENCE) -> Iterator[Served]:
    """Serve a source as long as the context lasts."""
    with ThreadPoolExecutor(1) as pool:
        made = Served(pool, opened, silence)
        try:
            yield made
        finally:
            made.close()
            made.rest()


def request(disk: str, chain: str = "c0ffee00") -> dict[str, Any]:
    """A first point of a disk, all of which is read."""
    wanted = [{"disk": disk, "since": None}]
    point = {"chain_id": chain, "sequence": 1, "point": "0123456789"}
    return {**point, "wanted": wanted, "rotate": True}
