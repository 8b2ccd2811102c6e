"""Images that no QEMU has open, as a source of points: a guest that is off."""

from __future__ import annotations

import dataclasses
import functools
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.delta.identity import GuestIdentity
from fleece.errors import PointError, SourceError, UsageError
from fleece.programs import finished, program
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
from fleece.source.image.doctor import examine
from fleece.source.image.inventory import Image, ImageDisk, ImageInventory, take_inventory
from fleece.source.image.measure import dirty_bytes, told_bytes
from fleece.source.image.point import ImagePlan, ImagePoint, PlannedImage, living_point
from fleece.source.image.tool import remove_bitmap, settled_writer
from fleece.source.image.workplace import has_any, holder_of, left_behind, workplace
from fleece.source.place import check_path, default_scratch
from fleece.source.report import Report
from fleece.source.segments import Segment, next_segment, written_since
from fleece.source.workfolder import Strangers, folder_name
from fleece.temporary import temporary_folder


class ImageSource(Closing):
    """The images of a guest's disks, while the guest is off.

    Args:
        images: all of them, each of another name.
        guest: its name; None: that of the first image's file, without the ending.
        identity: of the guest; None: nobody tells it.
        scratch: folder for the sockets of the servers that images are read by; None: the default.
        cancel: of the run that uses it.

    Raises:
        UsageError: there is no image.
    """

    def __init__(
        self,
        images: Sequence[Image],
        guest: str | None = None,
        identity: GuestIdentity | None = None,
        scratch: Path | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        if not images:
            raise UsageError("there is no image to read")
        self.where = ", ".join(image.path for image in images)
        self.scratch = scratch or default_scratch()
        check_path(self.scratch)
        self._images = tuple(images)
        self._guest = guest or PurePath(images[0].path).stem
        self._identity = identity
        self._cancel = cancel or CancelToken()
        self._holder = holder_of([image.path for image in images])
        self._strangers = Strangers()

    def close(self) -> None:
        """Nothing is held but by a point."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the user should know of the scratch folder, since `recover` looked."""
        warning = self._strangers.warning
        return () if warning is None else (warning,)

    @property
    def lacks_guest(self) -> bool:
        """Nobody told the guest's identity."""
        return self._identity is None

    def producer(self) -> Mapping[str, str]:
        """The version of QEMU's tools."""
        return {"qemu-img": _version()}

    def guest(self) -> str:
        """As it was given, or as the first image's file is called."""
        return self._guest

    def identity(self) -> GuestIdentity | None:
        """As it was given: no image tells."""
        return self._identity

    def inventory(self) -> ImageInventory:
        """The images as they are now, whoever uses them."""
        return take_inventory(self._images, self._cancel)

    def highest_sequence(self, chain_id: str, disks: Sequence[Disk]) -> int:
        """The highest sequence of the chain's segments in some images; 0: there is none."""
        return max(
            [
                0,
                *(
                    number
                    for disk in disks
                    for number in of_kind(disk, ImageDisk).segments(chain_id)
                ),
            ]
        )

    def known_since(
        self, disk: Disk, chain_id: str, sequence: int, point: str, others: Collection[str] = ()
    ) -> Since | Unknown:
        """Whether an unbroken line of segments tells what was written since a point."""
        image = of_kind(disk, ImageDisk)
        found = written_since(image, chain_id, sequence, point, others)
        if isinstance(found, Unknown):
            return found
        parts = _until_one_records(image, found.parts)
        # If this run is killed the next one finds what is left, by the chain's name.
        name = folder_name(chain_id, secrets.token_hex(5))
        with workplace(self.scratch, name, self._holder) as folder:
            try:
                changed = dirty_bytes(image, parts, folder, self._cancel)
            except PointError as error:
                return Unknown(error.what)
        return Since(parts, changed)

    def transport(self, wish: TransportWish, disks: Sequence[Disk]) -> Chosen:
        """Always pulled.

        Raises:
            UsageError: it is to be pushed.
        """
        return only_pulled(wish, "no QEMU has these images open that could push them", self.where)

    def check_needs(self) -> None:
        """See that QEMU's tools are there.

        Raises:
            UsageError: they are not.
        """
        program("qemu-img")
        program("qemu-nbd")

    def check_ready(self) -> None:
        """Check that nobody writes to the images.

        Raises:
            SourceError: somebody does: the guest is on.
        """
        for disk in self.inventory().disks:
            found = settled_writer(disk, self._cancel)
            if found is not None:
                path, user = found
                raise SourceError(
                    f"is in use ({user})",
                    where=path,
                    hint="a guest that is on is backed up through its QEMU",
                )

    def check_present(self) -> None:
        """As `check_ready`."""
        self.check_ready()

    def release(self) -> Iterator[Removed]:
        """Nobody was stopped."""
        yield from ()

    def recover(self, chain_id: str | None = None) -> Iterator[Removed]:
        """Remove the work folders of interrupted runs. Bitmaps stay: the next point needs them.

        Raises:
            SourceError: at the end: one cannot be removed.
        """
        self._strangers = Strangers()
        return left_behind(self.scratch, chain_id, self._holder, self._strangers)

    def take(self, request: Request) -> AbstractContextManager[ImagePoint]:
        """Hold some images still; the context's end lets go of them.

        With `rotate` a new segment begins in each that takes one.

        Raises:
            PointError: it is impossible.
            SourceError: somebody writes to an image.
        """
        planned = tuple(_planned(want, request) for want in request.wanted)
        return living_point(self._plan(request, planned), self._cancel)

    def unresumable(self) -> str | None:
        """None: the bitmaps are in the images."""
        return None

    def adopt(self, request: Request) -> AbstractContextManager[ImagePoint]:
        """Resume a point that an interrupted run took, if nobody wrote to the images since.

        Raises:
            PointError: somebody did, or it is not known; nothing was changed.
            SourceError: somebody writes to an image.
        """
        planned = tuple(_adopted(want, request) for want in request.wanted)
        return living_point(
            dataclasses.replace(self._plan(request, planned), adopted=True), self._cancel
        )

    def _plan(self, request: Request, planned: tuple[PlannedImage, ...]) -> ImagePlan:
        name = folder_name(request.chain_id, request.point)
        return ImagePlan(name, self._holder, self.scratch, planned)

    def bitmaps(self) -> list[KeptBitmap]:
        """The segments of all disks, by disk, chain and age.

        Raises:
            SourceError: somebody writes to an image, and so nobody else can tell.
        """
        self.check_ready()
        with temporary_folder() as folder:
            found = [
                KeptBitmap(
                    disk.name,
                    segment.chain_id,
                    segment.sequence,
                    segment.point,
                    bitmap.name,
                    bitmap.state,
                    told_bytes(disk, bitmap, folder, self._cancel),
                    bitmap.granularity,
                    segment.is_of(disk.name),
                )
                for disk in self.inventory().disks
                for bitmap in disk.bitmaps
                if (segment := bitmap.segment) is not None
            ]
        return sorted(found, key=lambda one: (one.disk, one.chain_id, one.sequence))

    def has_point(self, chain_id: str) -> bool:
        """Whether a run holds images for a point of this chain, or an interrupted one did."""
        return has_any(self.scratch, chain_id)

    def drop_bitmap(self, disk: str, name: str) -> None:
        """Remove a bitmap of a disk; one that is gone already is fine.

        Raises:
            SourceError: somebody has the image open.
        """
        for found in self.inventory().disks:
            if found.name == disk and any(bitmap.name == name for bitmap in found.bitmaps):
                remove_bitmap(found, name, self._cancel)

    def examine(self) -> Report:
        """What the images are, and who uses them."""
        return examine(self.inventory(), self._guest, self._identity, _version(), self._cancel)


def _until_one_records(disk: ImageDisk, line: Sequence[str]) -> tuple[str, ...]:
    """The bitmaps of a line up to the first that still records: it has what the later ones have."""
    recording = {bitmap.name for bitmap in disk.bitmaps if bitmap.recording}
    end = next(number for number, name in enumerate(line, 1) if name in recording)
    return tuple(line[:end])


def _planned(want: Wanted, request: Request) -> PlannedImage:
    disk = of_kind(want.disk, ImageDisk)
    chain_id, sequence = request.chain_id, request.sequence
    begins = request.rotate and disk.persistent_bitmaps and not disk.unwritable
    new = next_segment(disk, chain_id, sequence, request.point) if begins else None
    return _with_names(want, disk, chain_id, new)


def _adopted(want: Wanted, request: Request) -> PlannedImage:
    """A disk of a point that was taken before.

    Raises:
        PointError: the image does not have its segment, as it must be.
    """
    disk = of_kind(want.disk, ImageDisk)
    held = disk.segments(request.chain_id)
    found = held.get(request.sequence)
    segment = None if found is None else found.segment
    if found is None or segment is None or segment.point != request.point:
        raise PointError(f"disk {disk.name} has no bitmap of it")
    if not segment.is_of(disk.name) or request.sequence != max(held) or not found.recording:
        raise PointError(f"disk {disk.name}: bitmap {found.name} is not as it was begun")
    return _with_names(want, disk, request.chain_id, segment)


def _with_names(want: Wanted, disk: ImageDisk, chain_id: str, new: Segment | None) -> PlannedImage:
    told = None if want.since is None else want.since.parts
    for name in told or ():
        segment = Segment.parse(name)
        if segment is not None and not segment.is_of(disk.name):
            raise PointError(
                f"bitmap {name} was not begun for disk {disk.name}", hint="read all of it"
            )
    names = {number: bitmap.name for number, bitmap in disk.segments(chain_id).items()}
    if new is not None:
        names[new.sequence] = new.bitmap
    last = None if new is None else new.sequence

    def obsolete(oldest: int | None) -> list[str]:
        below = last if oldest is None else oldest
        return [name for number, name in sorted(names.items()) if below and number < below]

    return PlannedImage(disk, None if new is None else new.bitmap, told, obsolete)


@functools.cache
def _version() -> str:
    """Of QEMU's tools, as qemu-img tells it."""
    done = finished([program("qemu-img"), "--version"], CancelToken())
    found = re.match(rb"qemu-img version (\S+)", done.out)
    return "unknown" if found is None else found[1].decode(errors="replace")
