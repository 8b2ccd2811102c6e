"""What runs inside nbdkit: the disks of a point as exports. Knows the store, not nbdkit.

`nbdkit_plugin.py` is the thin script between nbdkit and this module; `serve.py` starts it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from fleece.delta.chain import Chain
from fleece.disk.chain import ChainDisk
from fleece.errors import FleeceError, UsageError, bug
from fleece.keys import PipedSecret, Secret
from fleece.store.open import open_store

MOST_EXTENTS = 16384
"""Extents in one answer to a block status request; a client asks again for the rest."""

_MOST_TOLD = 1000


@dataclass(frozen=True)
class Wish:
    """What to serve, as the parent process writes it into the plugin's standard input.

    Attributes:
        store: what `open_store` opens the store by.
        lines: of each disk, by its name, the keys of the deltas that lead to the point, newest
            first: so that only the parent process reads the whole store.
        secret: of the store, as `Secret.to_pipe` gives it; None: it has none.
    """

    store: str
    lines: dict[str, list[str]]
    secret: PipedSecret | None


@dataclass(frozen=True)
class Report:
    """What the plugin tells its parent: one JSON line on its standard error.

    Attributes:
        fleece: marks the line as ours: `failed` (it cannot serve) or `problem` (a read failed).
        where, what, hint: of the error.
        code: its family's exit code.
    """

    fleece: str
    where: str | None
    what: str
    hint: str | None
    code: int

    def send(self) -> None:
        """Write the line, whole, past whatever else is printed."""
        os.write(2, (json.dumps(asdict(self)) + "\n").encode())

    @staticmethod
    def of(kind: str, error: Exception) -> Report:
        """A report about an error."""
        if not isinstance(error, FleeceError):
            error = bug(error)
        return Report(kind, error.where, error.what, error.hint, int(error.code))

    @staticmethod
    def parse(line: str) -> Report | None:
        """The report in a line, or None if it is somebody else's."""
        with contextlib.suppress(ValueError, TypeError):
            raw = json.loads(line)
            if isinstance(raw, dict) and "fleece" in raw:
                return Report(**raw)
        return None


class Exports:
    """The disks of one point, open.

    Args:
        wish: what to serve.

    Raises:
        StoreError: a chain is not whole.
    """

    def __init__(self, wish: Wish) -> None:
        secret = None if wish.secret is None else Secret.of_pipe(*wish.secret)
        access = open_store(wish.store, secret).access
        self._lock = threading.Lock()
        self._told: set[str] = set()
        with contextlib.ExitStack() as stack:
            self._disks = {
                name: ChainDisk(Chain([stack.enter_context(access.open(key)) for key in line]))
                for name, line in wish.lines.items()
            }
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the chains."""
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """The exports' names: those of the disks."""
        return [*self._disks]

    def disk(self, name: str) -> ChainDisk:
        """The disk of an export; of the empty name, if there is but one.

        Raises:
            UsageError: there is none.
        """
        if name == "" and len(self._disks) == 1:
            return next(iter(self._disks.values()))
        if name not in self._disks:
            raise UsageError(f"no export {name!r}", hint=f"there are: {', '.join(self._disks)}")
        return self._disks[name]

    def read(self, disk: ChainDisk, buffer: memoryview, offset: int) -> None:
        """Fill the buffer; an error is told to the parent too, each text once."""
        with self._telling():
            disk.read_into(buffer, offset)

    def extents(self, disk: ChainDisk, offset: int, count: int) -> list[tuple[int, int, bool]]:
        """The first extents of a range: (offset, length, reads as zeros)."""
        with self._telling():
            found = itertools.islice(disk.allocation(offset, offset + count), MOST_EXTENTS)
            return [(start, end - start, zero) for start, end, zero in found]

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            with self._lock:
                new = str(error) not in self._told and len(self._told) < _MOST_TOLD
                self._told.add(str(error))
            if new:
                Report.of("problem", error).send()
            raise
