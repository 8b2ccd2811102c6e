"""Serve a source of this host to a fleece on another one, over two pipes.

All that must be done on the guest's own host is done here, by the same code that backs it up from
here: this process holds the locks, watches the scratch, and ends the point when the other side ends
or falls silent. So a line that is cut leaves no guest stopped and nothing held.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from fleece.attempts import Attempts
from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.errors import FleeceError, PointError, SourceError, UsageError, bug
from fleece.jsontext import loads
from fleece.source.base import (
    Disk,
    Inventory,
    KeepsBitmaps,
    Point,
    Removed,
    Request,
    Source,
    TransportWish,
    Unknown,
    Wanted,
)
from fleece.source.far.held import HeldPoint
from fleece.source.far.messages import (
    LONGEST,
    PROTOCOL,
    SILENCE,
    Failure,
    FarDisk,
    FarRequest,
    Greeting,
    Heard,
    Known,
    Taken,
    plain,
)
from fleece.source.provider.pipes import Closed, Lines, Overdue, TooLong
from fleece.source.report import Examinable
from fleece.temporary import temporary_folder


def serve(
    opened: Callable[[], Source],
    source: int,
    sink: int,
    cancel: CancelToken | None = None,
    silence: float = SILENCE,
) -> None:
    """Answer until the other side ends.

    Args:
        opened: opens what is served.
        source, sink: descriptors to read requests from and to write answers to.
        cancel: ends it.
        silence: seconds without a word, and without a byte read, until a living point is ended.

    Raises:
        SourceError: the other side does not speak the protocol, or fell silent.
    """
    cancel = cancel or CancelToken()
    lines = Lines(sink, source, LONGEST)
    with temporary_folder() as folder, contextlib.closing(_Served(opened, folder)) as served:

        def patience(begun: float) -> bool:
            cancel.check()
            return served.silent_for(begun) < silence

        try:
            while True:
                lines.write(served.answer(lines.read(patience)), lambda _: True)
        except Closed:
            return
        except Overdue:
            raise SourceError("the other host is silent: its point was ended") from None
        except TooLong:
            raise SourceError("what comes is no request of fleece's") from None


class _Served(Closing):
    """A source, its points, and what is asked of them."""

    def __init__(self, opened: Callable[[], Source], folder: Path) -> None:
        self._opened = opened
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._source: Source | None = None
        self._inventory: Inventory | None = None
        self._points: dict[int, HeldPoint] = {}
        self._numbers = itertools.count(1)
        self._words: dict[str, Callable[[Heard], object]] = {
            "hello": self._hello,
            "inventory": lambda said: self._look(),
            "choose": self._choose,
            "sequence": self._sequence,
            "since": self._since,
            "transport": self._transport,
            "needs": lambda said: self.source.check_needs(),
            "ready": lambda said: self.source.check_ready(),
            "present": lambda said: self._keeper.check_present(),
            "release": lambda said: self._taken(self.source.release),
            "recover": self._recover,
            "take": self._take,
            "piece": lambda said: self._point(said).piece(
                said.part("part").number(), said.part("offset").number()
            ),
            "watch": lambda said: self._point(said).watch(),
            "check": lambda said: self._point(said).check(),
            "close": lambda said: self._point(said).end_exports(),
            "commit": lambda said: self._point(said).committed(_maybe(said, "oldest")),
            "end": self._end,
            "bitmaps": lambda said: self._keeper.bitmaps(),
            "has-point": lambda said: self._keeper.has_point(said.text("chain")),
            "drop": lambda said: self._keeper.drop_bitmap(said.text("disk"), said.text("name")),
            "examine": lambda said: self._examined(),
        }

    def close(self) -> None:
        """End all points, because the other side is gone; then let go of the source.

        Raises:
            SourceError: something is left; all was tried.
        """
        tried = Attempts()
        for point in self._points.values():
            with tried.step():
                point.abandon()
        self._points.clear()
        with tried.step():
            self._stack.close()
        tried.settle(SourceError)

    @property
    def source(self) -> Source:
        """What is served."""
        if self._source is None:
            raise SourceError("the other side did not say hello")
        return self._source

    @property
    def _keeper(self) -> KeepsBitmaps:
        assert isinstance(self.source, KeepsBitmaps)
        return self.source

    def silent_for(self, begun: float) -> float:
        """Watch all points; gives the seconds for which nothing was heard, while one lives.

        Args:
            begun: when the next request was waited for.
        """
        silent = 0.0
        for point in self._points.values():
            point.look()
            silent = max(silent, point.silent_for())
        return min(silent, time.monotonic() - begun)

    def answer(self, line: bytes) -> bytes:
        """Do what a request says."""
        number = 0
        try:
            said = Heard(loads(line), "a request", "the other side")
            number = said.number("id")
            word = self._words.get(said.text("do"))
            if word is None:
                raise said.bad("asks for what is not known")
            told: dict[str, object] = {"result": plain(word(said))}
        except FleeceError as error:
            told = {"failed": plain(Failure.of(error))}
        except ValueError as error:
            told = {"failed": plain(Failure.of(SourceError(f"a request is no JSON ({error})")))}
        except Exception as error:
            told = {"failed": plain(Failure.of(bug(error)))}
        return json.dumps({"id": number, **told}).encode()

    def _hello(self, said: Heard) -> Greeting:
        if said.number("protocol") != PROTOCOL:
            raise UsageError(f"the fleece there speaks version {PROTOCOL} of the source protocol")
        found = self._stack.enter_context(self._opened())
        if not (isinstance(found, KeepsBitmaps) and isinstance(found, Examinable)):
            raise UsageError("this kind of source is not served", where=found.where)
        self._source = found
        return Greeting(PROTOCOL, found.guest(), found.identity(), found.producer())

    def _look(self) -> tuple[FarDisk, ...]:
        self._inventory = self.source.inventory()
        return tuple(map(_disk, self._inventory.disks))

    def _shown(self) -> Inventory:
        if self._inventory is None:
            self._inventory = self.source.inventory()
        return self._inventory

    def _choose(self, said: Heard) -> tuple[FarDisk, ...]:
        names = tuple(each.text() for each in said.list("names"))
        return tuple(map(_disk, self._shown().choose(names)))

    def _disk(self, name: str) -> Disk:
        for disk in self._shown().disks:
            if disk.name == name:
                return disk
        raise PointError(f"there is no disk {name} any more")

    def _disks(self, said: Heard) -> list[Disk]:
        return [self._disk(each.text()) for each in said.list("disks")]

    def _sequence(self, said: Heard) -> int:
        return self.source.highest_sequence(said.text("chain"), self._disks(said))

    def _since(self, said: Heard) -> Known:
        found = self.source.known_since(
            self._disk(said.text("disk")),
            said.text("chain"),
            said.number("sequence"),
            said.text("point"),
            [each.text() for each in said.list("others")],
        )
        return Known(None, found.reason) if isinstance(found, Unknown) else Known(found, "")

    def _transport(self, said: Heard) -> object:
        wish = said.part("wish").as_a(TransportWish)
        return self.source.transport(wish, self._disks(said))

    def _recover(self, said: Heard) -> Taken:
        chain = said.maybe("chain")
        return self._taken(lambda: self.source.recover(None if chain is None else chain.text()))

    def _taken(self, work: Callable[[], Iterator[Removed]]) -> Taken:
        """What is taken down, though not all could be."""
        removed: list[Removed] = []
        failure = None
        try:
            removed.extend(work())
        except FleeceError as error:
            failure = Failure.of(error)
        return Taken(tuple(removed), tuple(self.source.doubts), failure)

    def _take(self, said: Heard) -> object:
        asked = said.part("request").as_a(FarRequest)
        wanted = [Wanted(self._disk(each.disk), each.since) for each in asked.wanted]
        request = Request(asked.chain_id, asked.sequence, asked.point, wanted, asked.rotate)
        number = next(self._numbers)
        folder = self._folder / str(number)
        folder.mkdir()
        taking: AbstractContextManager[Point] = self.source.take(request)
        self._points[number] = held = HeldPoint(taking, folder)
        return {"number": number, "point": plain(held.told())}

    def _point(self, said: Heard) -> HeldPoint:
        found = self._points.get(said.number("point"))
        if found is None:
            raise PointError("the point has ended")
        return found

    def _end(self, said: Heard) -> None:
        point = self._point(said)
        del self._points[said.number("point")]
        point.close()

    def _examined(self) -> object:
        assert isinstance(self.source, Examinable)
        return self.source.examine()


def _disk(disk: Disk) -> FarDisk:
    return FarDisk(disk.name, disk.size, disk.read_only)


def _maybe(said: Heard, name: str) -> int | None:
    found = said.maybe(name)
    return None if found is None else found.number()
