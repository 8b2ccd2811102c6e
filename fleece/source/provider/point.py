"""A point that a provider has begun, from its checks to its commit or its end without one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fleece.cancel import CancelToken
from fleece.errors import FleeceError, Interrupted, PointError, SourceError
from fleece.extents import Extents
from fleece.nbd.connection import DIRTY_BITMAP
from fleece.source.base import Export
from fleece.source.nbd.held import HeldExports
from fleece.source.options import FreezeWish
from fleece.source.point_name import PointName
from fleece.source.provider.answers import Begun, BegunDisk, ProviderDisk, begun, changes
from fleece.source.provider.program import Program, Refused
from fleece.source.provider.words import MOST_CHANGES, Word


@dataclass(frozen=True)
class ProviderPlan:
    """A point, before it is begun.

    Attributes:
        token: by which the provider keeps it as a base; None: it must not.
        disks: of it, and the base of each; None: all of it is read.
        freeze: whether the guest is to be frozen.
    """

    token: PointName | None
    disks: Sequence[tuple[ProviderDisk, PointName | None]]
    freeze: FreezeWish


class ProviderPoint:
    """A living point. `living_point` makes it."""

    push = None
    granularity = 64 * 1024
    stuck = None
    reclaims = False
    scarce = False

    def __init__(self, plan: ProviderPlan, program: Program, cancel: CancelToken) -> None:
        self.exports: tuple[Export, ...] = ()
        self.frozen = False
        self.warnings: tuple[str, ...] = ()
        self._plan = plan
        self._program = program
        self._cancel = cancel
        self._begun = False
        self._ended = False
        self._exports = HeldExports({}, cancel)

    def start(self) -> None:
        """Have it begun, and see that the exports are what the provider says.

        Raises:
            PointError: the provider cannot begin it, or a disk was resized.
            SourceError: the provider ended, hangs, or says what is not so.
        """
        plan = self._plan
        disks = [
            {"name": disk.name, "base": None if base is None else str(base)}
            for disk, base in plan.disks
        ]
        token = None if plan.token is None else str(plan.token)
        try:
            said = self._program.ask(Word.BEGIN, token=token, disks=disks, freeze=plan.freeze)
        except Refused as error:
            self._ended = True
            raise PointError(error.what, where=error.where, hint=error.hint) from error
        self._begun = True
        try:
            made = begun(said, plan.disks)
            self._look(made)
        except SourceError as error:
            raise self._program.lied(error) from error
        if plan.freeze is FreezeWish.MUST and not made.frozen:
            raise PointError("the guest was not frozen", where=self._program.name)
        self.frozen = made.frozen
        heard = [f"{self._program.name}: {line}" for line in self._program.said()]
        self.warnings = (*made.warnings, *heard)
        self.exports = tuple(self._export(each) for each in made.disks)

    def _look(self, made: Begun) -> None:
        contexts = {each.place: _contexts(each) for each in made.disks}
        self._exports = HeldExports(contexts, self._cancel)
        for (disk, _), each in zip(self._plan.disks, made.disks, strict=True):
            held = self._exports.look(each.place)
            if each.size != held.size:
                raise SourceError(
                    f"the provider says that disk {disk.name} has {each.size} bytes, and its "
                    f"export has {held.size}",
                    where=each.place.uri,
                )
            if each.size != disk.size:
                raise PointError(
                    f"disk {disk.name} was resized from {disk.size} to {each.size} bytes",
                    where=self._program.name,
                    hint="run the backup again",
                )
            for context in contexts[each.place]:
                if context not in held.contexts:
                    raise SourceError(
                        f"the provider names a bitmap of disk {disk.name} that its export lacks: "
                        f"{context.removeprefix(DIRTY_BITMAP)}",
                        where=each.place.uri,
                    )
        self._held = self._exports.of(contexts)

    def _export(self, disk: BegunDisk) -> Export:
        contexts = _contexts(disk)
        return Export(
            disk=disk.place.name,
            uri=disk.place.uri,
            size=disk.size,
            dirty_context=contexts[0] if contexts else None,
            granularity=None,
            also_dirty=contexts[1:],
            changed=listed(self._program, disk) if disk.listed else None,
        )

    def check(self) -> None:
        """Raise `PointError` if the exports or the provider do not hold the point any more."""
        self._held.check()
        try:
            self._program.ask(Word.CHECK)
        except SourceError as error:
            raise PointError(error.what, where=error.where, hint=error.hint) from error

    def watch(self) -> None:
        """Raise `PointError` if the provider has ended, or an export is gone."""
        if not self._program.lives:
            raise PointError(
                "the provider has ended, and its point with it",
                where=self._program.name,
                hint="run the backup again",
            )
        self._held.watch()

    def reclaim(self, disk: str, ranges: Extents) -> None:
        """What is copied for the point is the provider's."""

    def close(self) -> None:
        """Have the exports ended. Whether the point is kept as a base is decided later.

        Raises:
            SourceError: the provider does not.
        """
        self._exports.close()
        if self.held:
            self._begun = False
            self._program.ask(Word.CLOSE)

    @property
    def held(self) -> bool:
        """It has exports."""
        return self._begun and not self._ended

    def committed(self, oldest: int | None = None) -> tuple[str, ...]:
        """Have the point kept as a base, and older ones of its chain forgotten.

        Args:
            oldest: sequence of the oldest point that another backup may build on; None: this one.

        Returns:
            What the provider did not do, a line each: it costs a longer backup and no data.
        """
        token = self._plan.token
        if token is None:
            return ()
        if self._ended:
            return ("a later point was begun before this one was kept: the next backup reads more",)
        below = token.sequence if oldest is None else oldest
        old = [
            {"disk": disk.name, "token": str(base)}
            for disk, _ in self._plan.disks
            for number, base in sorted(disk.of(token.chain_id).items())
            if number < below
        ]
        try:
            self.close()
            self._ended = True
            self._program.ask(Word.COMMIT)
            if old:
                self._program.ask(Word.FORGET, bases=old)
        except SourceError as error:
            return (f"what the next backup builds on may not be kept: {error}",)
        return tuple(f"{self._program.name}: {line}" for line in self._program.said())

    def abandon(self) -> None:
        """End a point that was not committed, or the provider itself if it does not do that.

        Raises:
            SourceError: it does not.
        """
        if self._ended:
            return
        self._ended = True
        try:
            self._program.ask(Word.DROP)
        except SourceError:
            self._program.close()
            raise


def listed(program: Program, disk: BegunDisk) -> Extents:
    """What a provider says was written on a disk of its point since the base.

    Raises:
        PointError: it cannot say.
        SourceError: it ended, hangs, or says what cannot be.
    """
    found: list[tuple[int, int]] = []
    offset: int | None = 0
    while offset is not None:
        try:
            said = program.ask(Word.CHANGES, **{"disk": disk.place.name, "from": offset})
            more, offset = changes(said, offset, disk.size)
            found += more
            if len(found) > MOST_CHANGES:
                raise said.bad(f"is one of more than {MOST_CHANGES} ranges")
        except Refused as error:
            raise PointError(error.what, where=error.where, hint=error.hint) from error
        except SourceError as error:
            raise program.lied(error) from error
    return Extents.of(found)


def _contexts(disk: BegunDisk) -> tuple[str, ...]:
    return tuple(f"{DIRTY_BITMAP}{name}" for name in disk.bitmaps or ())


@contextlib.contextmanager
def living_point(
    plan: ProviderPlan, program: Program, cancel: CancelToken
) -> Iterator[ProviderPoint]:
    """Have a point begun; it is ended whatever happens.

    Raises:
        PointError: it cannot be begun.
        SourceError: the provider ended, hangs, or says what is not so.
    """
    point = ProviderPoint(plan, program, cancel)
    try:
        point.start()
        yield point
    except BaseException as error:
        # The first error is the one to tell.
        with contextlib.suppress(FleeceError, OSError):
            point.close()
        with contextlib.suppress(FleeceError, OSError):
            point.abandon()
        if isinstance(error, Interrupted):
            raise Interrupted(f"{error.what}; the point was ended") from error
        if cancel.cancelled and isinstance(error, SourceError | PointError):
            # The signal went to the provider as well, as systemd sends it.
            raise Interrupted("interrupted; the point was ended") from error
        raise
    point.close()
    point.abandon()
