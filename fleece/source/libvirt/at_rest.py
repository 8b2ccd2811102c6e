"""A guest of libvirt's that is off, as a source of points: its images, in the same chain.

The bitmap that begins with a point has the name of a checkpoint, in every image that takes one, and
libvirt is told of the checkpoint. So a point of the running guest can build on it, and the other
way round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from fleece.attempts import Attempts
from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.delta.identity import GuestIdentity
from fleece.errors import FleeceError, PointError, SourceError, UsageError
from fleece.source.base import (
    Chosen,
    Disk,
    KeptBitmap,
    Removed,
    Request,
    Since,
    Transport,
    TransportWish,
    Unknown,
    Wanted,
)
from fleece.source.choice import of_kind
from fleece.source.image.inventory import ImageDisk, ImageInventory, take_inventory
from fleece.source.image.measure import dirty_bytes, told_bytes
from fleece.source.image.point import ImagePlan, ImagePoint, PlannedImage, living_point
from fleece.source.image.source import ImageSource
from fleece.source.image.workplace import workplace
from fleece.source.libvirt import checkpoints
from fleece.source.libvirt.domain import Domain, State, version_text
from fleece.source.libvirt.identity import holder_of, identity_of
from fleece.source.libvirt.inventory import image_of, resting_drives
from fleece.source.libvirt.machine import machine_of
from fleece.source.libvirt.names import FolderName
from fleece.source.libvirt.takedown import remove_folder
from fleece.source.libvirt.xml import checkpoint_xml
from fleece.source.place import check_path, default_scratch
from fleece.source.point_name import PointName
from fleece.source.report import Report
from fleece.source.segments import Bitmap
from fleece.source.workfolder import PREFIX, Strangers, work_folders
from fleece.temporary import temporary_folder


@dataclasses.dataclass(frozen=True)
class RestingInventory:
    """The disks of a guest that is off.

    Attributes:
        images: what can be read.
        unfit: the other writable disks, and why they cannot.
    """

    images: ImageInventory
    unfit: Mapping[str, str]

    @property
    def disks(self) -> tuple[ImageDisk, ...]:
        """Those that can be read."""
        return self.images.disks

    def choose(self, names: tuple[str, ...]) -> tuple[ImageDisk, ...]:
        """The disks of these names, or all.

        Raises:
            UsageError: a name is given twice.
            PointError: there is no such disk, or it cannot be read while the guest is off.
        """
        for name in names or self.unfit:
            if name in self.unfit:
                raise PointError(
                    f"disk {name} cannot be backed up while the guest is off: {self.unfit[name]}",
                    hint="start the guest, or name the other disks with --disk",
                )
        if not self.images.disks:
            raise PointError("the guest has no writable disk")
        return self.images.choose(names)


class RestingSource(Closing):
    """A guest of libvirt's, which is off.

    Args:
        domain: the guest; it is closed with the source.
        scratch: folder for the sockets of the servers that the images are read by; None: the
            default.
        cancel: of the run that uses it.
    """

    def __init__(
        self, domain: Domain, scratch: Path | None = None, cancel: CancelToken | None = None
    ) -> None:
        self.domain = domain
        self.where = domain.where
        self.scratch = scratch or default_scratch()
        check_path(self.scratch)
        self._cancel = cancel or CancelToken()
        self._strangers = Strangers()
        self._shared: frozenset[str] = frozenset()  # files that several disks are on

    def close(self) -> None:
        """Let go of libvirt."""
        self.domain.close()

    # ---- the guest -----------------------------------------------------------------------------

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the user should know of the scratch folder, since `recover` looked."""
        warning = self._strangers.warning
        return () if warning is None else (warning,)

    def guest(self) -> str:
        """libvirt's name of the guest."""
        return self.domain.name

    def identity(self) -> GuestIdentity | None:
        """Its UUID, and its name."""
        return identity_of(self.domain)

    def producer(self) -> Mapping[str, str]:
        """The version of QEMU's tools."""
        return self._images().producer()

    def inventory(self) -> RestingInventory:
        """Its disks, as libvirt has them defined.

        Raises:
            SourceError: they are on another host.
        """
        self.domain.check_here()
        images, unfit = resting_drives(self.domain.definition())
        found = take_inventory(images, self._cancel)
        users = Counter(path for disk in found.disks for path in set(disk.files))
        self._shared = frozenset(path for path, count in users.items() if count > 1)
        return RestingInventory(found, unfit)

    def _images(self) -> ImageSource:
        self.domain.check_here()  # else a path would name a file of this host
        images, _ = resting_drives(self.domain.definition())
        if not images:
            raise PointError("the guest has no disk that can be read while it is off")
        return ImageSource(
            images, self.domain.name, self.identity(), self.scratch, cancel=self._cancel
        )

    def examine(self) -> Report:
        """What its images are, and who uses them."""
        if (far := self.domain.far()) is not None:
            return self._unseen(far)
        found, state = self._images().examine(), self.domain.state()
        refusal = f"the guest is {state.value}" if state is State.AWAY else found.refusal
        return dataclasses.replace(found, kind="libvirt", state=state.value, refusal=refusal)

    def _unseen(self, refusal: str) -> Report:
        """Of a guest whose images this host does not see."""
        version = version_text(self.domain.versions()[0])
        who = self.domain.name, self.identity()
        return Report("libvirt", version, *who, self.domain.state().value, refusal, (), ())

    def check_needs(self) -> None:
        """See that QEMU's tools are there.

        Raises:
            UsageError: they are not.
        """
        self._images().check_needs()

    def check_present(self) -> None:
        """As `check_ready`."""
        self.check_ready()

    def check_ready(self) -> None:
        """Check that the guest is still off, and nobody writes to its images.

        The locks by which that is seen reach no other host if the storage does not pass them on, so
        a guest that has migrated is not read here.

        Raises:
            SourceError: it is not, or somebody does, or it was migrated.
        """
        if self.domain.is_active():
            raise SourceError(
                "the guest was off, and has been started", where=self.where, hint="try again"
            )
        if (state := self.domain.state()) is State.AWAY:
            raise SourceError(
                f"the guest is {state.value}",
                where=self.where,
                hint="back it up there; once it has been started here again, it is backed up here",
            )
        self._images().check_ready()

    def transport(self, wish: TransportWish, disks: Sequence[Disk]) -> Chosen:
        """Always pulled.

        Raises:
            UsageError: it is to be pushed.
        """
        if wish is TransportWish.PUSH:
            raise UsageError("libvirt pushes to no NBD server", where=self.where)
        return Chosen(Transport.PULL)

    # ---- what was written ----------------------------------------------------------------------

    def highest_sequence(self, chain_id: str, disks: Sequence[Disk]) -> int:
        """The highest sequence of the chain's checkpoints, in libvirt or in an image; 0: none."""
        inside = (
            name for disk in disks for name in _of_chain(of_kind(disk, ImageDisk).bitmaps, chain_id)
        )
        known = checkpoints.of_chain(self.domain, chain_id)
        return max((0, *(name.sequence for name in (*inside, *known))))

    def known_since(
        self, disk: Disk, chain_id: str, sequence: int, point: str, others: Collection[str] = ()
    ) -> Since | Unknown:
        """Whether the point's bitmap, in the image, tells what was written on a disk since."""
        image, name = of_kind(disk, ImageDisk), PointName(chain_id, sequence, point)
        if not image.persistent_bitmaps:
            return Unknown(f"its image is {image.format}, which keeps no bitmaps")
        found = next((each for each in image.bitmaps if each.name == str(name)), None)
        if found is None:
            return Unknown(f"its image has no bitmap since point {name.point}")
        if found.inconsistent or not found.recording:
            return Unknown(f"its bitmap {name} is {found.state}: QEMU did not end cleanly")
        told = self.domain.checkpoint(str(name))
        noted = () if told is None else told.images.get(image.name, ())
        if not noted and set(others) - {image.name}:
            return Unknown(f"nothing tells which image bitmap {name} was made for")
        if noted and not set(noted) & set(self._images_of(image)):
            return Unknown("its image is not the one that it had then")
        # If this run is killed the next one finds what is left, by the chain's name.
        place = str(FolderName(chain_id, secrets.token_hex(5)))
        with workplace(self.scratch, place, holder_of(self.domain)) as folder:
            changed = dirty_bytes(image, (str(name),), folder, self._cancel)
        return Since((str(name),), changed)

    def bitmaps(self) -> list[KeptBitmap]:
        """The bitmaps of our checkpoints, by disk, chain and age."""
        self.check_ready()
        with temporary_folder() as folder:
            found = [
                KeptBitmap(
                    disk.name,
                    name.chain_id,
                    name.sequence,
                    name.point,
                    bitmap.name,
                    bitmap.state,
                    told_bytes(disk, bitmap, folder, self._cancel),
                    bitmap.granularity,
                    True,
                )
                for disk in self.inventory().disks
                for bitmap in disk.bitmaps
                if (name := PointName.parse(bitmap.name)) is not None
            ]
        return sorted(found, key=lambda one: (one.disk, one.chain_id, one.sequence))

    def _images_of(self, disk: ImageDisk) -> list[str]:
        """What tells a disk's image, and those behind it that no other disk is on, from others."""
        return [image_of(path) for path in disk.files if path not in self._shared]

    def has_point(self, chain_id: str) -> bool:
        """Whether a run holds the images for a point of this chain, or an interrupted one did."""
        start = f"{PREFIX}{chain_id}-"
        return any(True for _ in work_folders(self.scratch, start, Strangers()))

    def drop_bitmap(self, disk: str, name: str) -> None:
        """Remove a bitmap of a disk; one that is gone already is fine.

        Raises:
            SourceError: somebody has the image open.
        """
        self._images().drop_bitmap(disk, name)
        self._forget_gone()

    def _forget_gone(self) -> None:
        """Have libvirt forget our checkpoints of which no image has a bitmap."""
        kept = {bitmap.name for disk in self.inventory().disks for bitmap in disk.bitmaps}
        for name in self.domain.checkpoints():
            if PointName.parse(name) is not None and name not in kept:
                self.domain.delete(name, metadata_only=True)

    # ---- points --------------------------------------------------------------------------------

    def release(self) -> Iterator[Removed]:
        """Nobody is stopped or frozen."""
        yield from ()

    def recover(self, chain_id: str | None = None) -> Iterator[Removed]:
        """Remove the work folders of interrupted runs. Bitmaps stay: the next point needs them.

        Raises:
            SourceError: the guest is on another host; or, at the end, one cannot be removed.
        """
        self.domain.check_here()
        tried = Attempts()
        self._strangers = Strangers()
        own = PREFIX if chain_id is None else f"{PREFIX}{chain_id}-"
        with tried.step():
            for work in work_folders(self.scratch, own, self._strangers):
                if work.holder() == holder_of(self.domain) and not work.is_held():
                    yield from remove_folder(work, thawed=True)
        tried.settle(SourceError)

    def take(self, request: Request) -> AbstractContextManager[ImagePoint]:
        """Hold the images still; the context's end lets go of them.

        Raises:
            PointError: it is impossible.
            SourceError: somebody writes to an image.
        """
        self.check_ready()
        name = PointName(request.chain_id, request.sequence, request.point)
        begun = str(name) if request.rotate else None
        planned = tuple(_planned(want, request.chain_id, begun) for want in request.wanted)
        return self._point(request, planned, begun)

    def unresumable(self) -> str | None:
        """None: the bitmaps are in the images."""
        return None

    def adopt(self, request: Request) -> AbstractContextManager[ImagePoint]:
        """Resume a point that an interrupted run took, if nobody wrote to the images since.

        Raises:
            PointError: somebody did, or it is not known; nothing was changed.
            SourceError: somebody writes to an image.
        """
        self.check_ready()
        name = PointName(request.chain_id, request.sequence, request.point)
        for want in request.wanted:
            if not any(
                each.name == str(name) and each.recording
                for each in of_kind(want.disk, ImageDisk).bitmaps
            ):
                raise PointError(f"disk {want.disk.name} has no bitmap of it")
        list(self.recover(request.chain_id))  # the work folder of the same name
        planned = tuple(_planned(want, request.chain_id, str(name)) for want in request.wanted)
        return self._point(request, planned, str(name), adopted=True)

    @contextmanager
    def _point(
        self,
        request: Request,
        planned: tuple[PlannedImage, ...],
        begun: str | None,
        *,
        adopted: bool = False,
    ) -> Iterator[ImagePoint]:
        folder = str(FolderName(request.chain_id, request.point))
        tell = functools.partial(machine_of, self.domain)
        plan = ImagePlan(folder, holder_of(self.domain), self.scratch, planned, adopted, tell)
        try:
            with living_point(plan, self._cancel) as point:
                images = {
                    each.disk.name: self._images_of(each.disk)
                    for each in planned
                    if each.begun is not None
                }
                if begun is not None and images:
                    self.domain.remember(checkpoint_xml(begun, images, int(time.time())))
                yield point
        finally:
            # What stays is deleted with the next point: the bitmaps decide, not libvirt's record.
            with contextlib.suppress(FleeceError):
                self._forget_gone()


def _of_chain(bitmaps: Sequence[Bitmap], chain_id: str) -> list[PointName]:
    found = (PointName.parse(bitmap.name) for bitmap in bitmaps)
    return [name for name in found if name is not None and name.chain_id == chain_id]


def _planned(want: Wanted, chain_id: str, begun: str | None) -> PlannedImage:
    disk = of_kind(want.disk, ImageDisk)
    keeps = disk.persistent_bitmaps and not disk.unwritable
    mine = begun if keeps else None
    names = {*_of_chain(disk.bitmaps, chain_id)}
    last = None if begun is None else PointName.parse(begun)

    def obsolete(oldest: int | None) -> list[str]:
        below = oldest if oldest is not None or last is None else last.sequence
        known = {*names, *([last] if last is not None and mine is not None else [])}
        older = [name for name in known if below is not None and name.sequence < below]
        return [str(name) for name in sorted(older, key=lambda name: name.sequence)]

    return PlannedImage(disk, mine, None if want.since is None else want.since.parts, obsolete)
