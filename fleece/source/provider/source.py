"""Points that a program begins and ends, as a source: `provider:PROGRAM [ARGS]`."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.delta.identity import GuestIdentity
from fleece.errors import PointError, SourceError, UsageError
from fleece.source.base import (
    Chosen,
    Disk,
    KeptBitmap,
    Removed,
    Request,
    Since,
    TransportWish,
    Unknown,
    Wanted,
)
from fleece.source.choice import of_kind, only_pulled
from fleece.source.options import FreezeWish
from fleece.source.point_name import PointName
from fleece.source.provider.answers import Described, Hello, ProviderDisk, described, hello
from fleece.source.provider.inventory import ProviderInventory
from fleece.source.provider.point import ProviderPlan, ProviderPoint, living_point
from fleece.source.provider.program import Program
from fleece.source.provider.text import Command
from fleece.source.provider.words import PROTOCOL, Word
from fleece.source.report import Ability, ExaminedDisk, Report
from fleece.terminal import counted


class ProviderSource(Closing):
    """A guest whose points a program begins and ends.

    Args:
        command: how it is started.
        freeze: whether the guest is to be frozen.
        cancel: of the run that uses it.

    Raises:
        UsageError: it cannot be run, or cannot freeze a guest.
        SourceError: it is no provider.
    """

    doubts: tuple[str, ...] = ()

    def __init__(
        self,
        command: Command,
        freeze: FreezeWish = FreezeWish.NO,
        cancel: CancelToken | None = None,
    ) -> None:
        self.where = command.name
        self._cancel = cancel or CancelToken()
        self._freeze = freeze
        self._point: ProviderPoint | None = None
        self._chain_id: str | None = None
        self._program = Program(command, self._cancel)
        try:
            self._hello = self._asked_hello()
            self._guest = self._described()
        except BaseException:
            self._program.close()
            raise

    def _asked_hello(self) -> Hello:
        said = self._program.ask(Word.HELLO, protocols=[PROTOCOL])
        try:
            found = hello(said)
        except SourceError as error:
            raise self._program.lied(error) from error
        if self._freeze is not FreezeWish.NO and not found.freezes:
            raise UsageError(
                "this provider freezes no guest", where=self.where, hint="leave --freeze out"
            )
        self._program.limits = found.limits
        return found

    def _described(self) -> Described:
        said = self._program.ask(Word.DESCRIBE)
        try:
            return described(said, self._hello.bases)
        except SourceError as error:
            raise self._program.lied(error) from error

    @property
    def lacks_guest(self) -> bool:
        """The provider does not tell whose the disks are."""
        return self._guest.identity is None

    def close(self) -> None:
        """End the provider. Safe to repeat."""
        self._program.close()

    def producer(self) -> Mapping[str, str]:
        """The provider, as it calls itself."""
        return {"provider": f"{self._hello.name} {self._hello.version}"}

    def guest(self) -> str:
        """As the provider calls it.

        Raises:
            UsageError: it does not.
        """
        if self._guest.guest is None:
            raise UsageError(
                "this provider does not tell whose disks it has",
                where=self.where,
                hint="name the guest with --guest",
            )
        return self._guest.guest

    def identity(self) -> GuestIdentity | None:
        """As the provider tells it."""
        return self._guest.identity

    def inventory(self) -> ProviderInventory:
        """The disks as they are now.

        Raises:
            SourceError: the provider does not say, or they are another guest's by now.
        """
        found = self._described()
        if found.identity != self._guest.identity:
            raise SourceError(
                "the provider has another guest now", where=self.where, hint="run it again"
            )
        return ProviderInventory(found.disks)

    def highest_sequence(self, chain_id: str, disks: Sequence[Disk]) -> int:
        """The highest sequence among the chain's bases; 0: there is none."""
        known = [of_kind(disk, ProviderDisk).of(chain_id) for disk in disks]
        return max([0, *(number for each in known for number in each)])

    def known_since(
        self, disk: Disk, chain_id: str, sequence: int, point: str, others: Collection[str] = ()
    ) -> Since | Unknown:
        """Whether the provider has the point as a base of this disk."""
        token = PointName(chain_id, sequence, point)
        if not self._hello.bases:
            return Unknown("this provider does not tell what was written since a point")
        if token not in of_kind(disk, ProviderDisk).bases:
            return Unknown(f"the provider does not know what was written since point {point}")
        return Since((str(token),))

    def transport(self, wish: TransportWish, disks: Sequence[Disk]) -> Chosen:
        """Always pulled.

        Raises:
            UsageError: it is to be pushed.
        """
        return only_pulled(wish, "a provider's exports are read, and it cannot push", self.where)

    def check_needs(self) -> None:
        """What the provider needs it says itself."""

    def check_ready(self) -> None:
        """Check that the provider shows its disks.

        Raises:
            SourceError: it does not.
        """
        self.inventory()

    def release(self) -> Iterator[Removed]:
        """A provider lets its guest go on itself."""
        yield from ()

    def recover(self, chain_id: str | None = None) -> Iterator[Removed]:
        """Have the provider take down what its own earlier runs left; it does not say what.

        Raises:
            SourceError: it cannot.
        """
        self._program.ask(Word.DROP)
        yield from ()

    def take(self, request: Request) -> AbstractContextManager[ProviderPoint]:
        """Have the provider begin a point; the context's end has it ended.

        Raises:
            PointError: the provider cannot begin it.
            SourceError: the provider ended, hangs, or says what is not so.
        """
        token = PointName(request.chain_id, request.sequence, request.point)
        keeps = request.rotate and self._hello.bases
        disks = [_wanted(want) for want in request.wanted]
        plan = ProviderPlan(token if keeps else None, disks, self._freeze)
        return self._living(plan, request.chain_id)

    @contextlib.contextmanager
    def _living(self, plan: ProviderPlan, chain_id: str) -> Iterator[ProviderPoint]:
        if self._point is not None and not self._point.held:
            self._point.abandon()  # a provider has one point at a time
        with living_point(plan, self._program, self._cancel) as point:
            before = self._point, self._chain_id
            self._point, self._chain_id = point, chain_id
            try:
                yield point
            finally:
                self._point, self._chain_id = before

    def bitmaps(self) -> list[KeptBitmap]:
        """The bases of all disks, by disk, chain and age."""
        found = [
            KeptBitmap(
                disk.name,
                base.chain_id,
                base.sequence,
                base.point,
                str(base),
                "kept",
                changed=None,
                granularity=None,
                own=True,
            )
            for disk in self.inventory().disks
            for base in disk.bases
        ]
        return sorted(found, key=lambda one: (one.disk, one.chain_id, one.sequence))

    def has_point(self, chain_id: str) -> bool:
        """Whether this run holds a point of this chain: of others the provider does not tell."""
        return self._chain_id == chain_id

    def drop_bitmap(self, disk: str, name: str) -> None:
        """Have a base forgotten; one that is gone already is fine.

        Raises:
            SourceError: the provider does not.
        """
        self._program.ask(Word.FORGET, bases=[{"disk": disk, "token": name}])

    def check_present(self) -> None:
        """As `check_ready`."""
        self.check_ready()

    def examine(self) -> Report:
        """What the provider says of itself and of the disks."""
        told = self._hello
        found = self.inventory()
        return Report(
            "Provider",
            f"{told.name} {told.version}",
            self._guest.guest,
            self._guest.identity,
            None,
            None,
            (
                Ability("bases", "tells what was written since a point", told.bases),
                Ability("freezes", "freezes the guest (--freeze)", told.freezes),
            ),
            tuple(_examined(disk, self.where) for disk in found.disks),
            tuple(f"{self.where}: {line}" for line in self._program.said()),
        )


def _wanted(want: Wanted) -> tuple[ProviderDisk, PointName | None]:
    """A disk, and its base.

    Raises:
        PointError: that is no base of the provider's.
    """
    disk = of_kind(want.disk, ProviderDisk)
    if want.since is None:
        return disk, None
    token = PointName.parse(want.since.parts[0])
    if token is None:
        raise PointError(f"disk {disk.name} has no base {want.since.parts[0]}")
    return disk, token


def _examined(disk: ProviderDisk, where: str) -> ExaminedDisk:
    place = f"{where}, {counted(len(disk.bases), 'base')}"
    bases = {"bases": ", ".join(map(str, disk.bases))}
    return ExaminedDisk(disk.name, disk.size, "raw", place, None, (), bases)
