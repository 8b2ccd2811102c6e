"""A point of images at rest, from its begin to the end of what only older points needed.

The new segment records before the images are held, and the older ones are read while they are: so
whatever is written in between is in the older ones as well, and a bitmap too many costs a few reads
and never a write. No older segment is ended before it is removed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fleece.attempts import Attempts
from fleece.cancel import CancelToken
from fleece.errors import FleeceError, Interrupted, PointError, SourceError
from fleece.extents import Extents
from fleece.source.base import Export, Machine
from fleece.source.image.hold import HeldImages, context_of, dirty_in
from fleece.source.image.inventory import ImageDisk
from fleece.source.image.tool import GRANULARITY, begin_bitmap, remove_bitmap
from fleece.source.image.workplace import workplace


@dataclass(frozen=True)
class PlannedImage:
    """A disk of a point.

    Attributes:
        disk: as the inventory shows it.
        begun: the bitmap that tells the next point what was written since this one; None: none is
            begun, or the image takes none.
        told: the bitmaps whose union is what changed on it; None: read it all.
        obsolete: of those that it has, and the new one, which go with a commit: gets the sequence
            of the oldest point that another backup may build on, None for this one.
    """

    disk: ImageDisk
    begun: str | None
    told: tuple[str, ...] | None
    obsolete: Callable[[int | None], Sequence[str]]


@dataclass(frozen=True)
class ImagePlan:
    """A point, before it is taken.

    Attributes:
        name: of its work folder.
        holder: whose that is.
        scratch: the folder that it is made in.
        disks: all of them.
        adopted: an interrupted run took the point, and its bitmaps are there.
        tell: tells the machine that the disks are of; None: nobody knows it.
    """

    name: str
    holder: str
    scratch: Path
    disks: tuple[PlannedImage, ...]
    adopted: bool = False
    tell: Callable[[], Machine] | None = None


class ImagePoint:
    """A living point. `living_point` makes it."""

    push = None
    granularity = GRANULARITY
    frozen = False
    stuck = None
    reclaims = False
    scarce = False

    def __init__(self, plan: ImagePlan, held: HeldImages, cancel: CancelToken) -> None:
        self.exports: tuple[Export, ...] = ()
        self._disks = plan.disks
        self._held = held
        self._cancel = cancel
        self._keep = plan.adopted
        self._tell = plan.tell
        self._begun: list[PlannedImage] = []

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of how the point was taken."""
        unnoted = [
            f"disk {planned.disk.name}: this user may not write to {planned.disk.path}, so that no "
            "bitmap in it tells the next backup what changed"
            for planned in self._disks
            if planned.disk.unwritable
        ]
        return (*unnoted, *self._held.warnings)

    def start(self) -> None:
        """Begin the new bitmaps, then hold and serve the images: all are of the last one's moment.

        Raises:
            PointError: a bitmap that tells what changed is gone.
            SourceError: an image is in use, or cannot be served.
        """
        for planned in self._disks:
            if planned.begun is not None:
                self._begun.append(planned)
                begin_bitmap(planned.disk, planned.begun, self._cancel)
            self._cancel.check()
        self.exports = tuple(self._serve(planned, ()) for planned in self._disks)

    def resume(self) -> None:
        """Hold and serve the images again, if nobody has written to them since they were.

        Raises:
            PointError: somebody has, or that cannot be told.
            SourceError: an image is in use, or cannot be served.
        """
        exports = []
        for planned in self._disks:
            if planned.begun is None:
                raise PointError(
                    f"whether disk {planned.disk.name} is what it was is not known: no bitmap "
                    "tells what was written",
                    where=planned.disk.path,
                )
            exports.append(self._serve(planned, (planned.begun,)))
            if len(dirty_in(exports[-1].uri, (planned.begun,), self._cancel)):
                raise PointError(
                    f"disk {planned.disk.name} was written to since", where=planned.disk.path
                )
        self._begun = [*self._disks]
        self._keep = False
        self.exports = tuple(exports)

    def _serve(self, planned: PlannedImage, more: tuple[str, ...]) -> Export:
        told = planned.told or ()
        uri = self._held.serve(planned.disk, tuple(dict.fromkeys((*told, *more))))
        contexts = [context_of(name) for name in told]
        return Export(
            disk=planned.disk.name,
            uri=uri,
            size=planned.disk.size,
            dirty_context=contexts[0] if contexts else None,
            granularity=GRANULARITY if contexts else None,
            also_dirty=tuple(contexts[1:]),
        )

    def check(self) -> None:
        """Raise `PointError` if an image is not held any more, or was written to all the same."""
        self._held.check()

    def watch(self) -> None:
        """Raise `PointError` if an image is not served any more."""
        self._held.look()

    def reclaim(self, disk: str, ranges: Extents) -> None:
        """Nothing is copied for a point."""

    def machine(self) -> Machine:
        """The machine, if anybody knows it."""
        return Machine(()) if self._tell is None else self._tell()

    def close(self) -> None:
        """Let go of the images. The new bitmaps stay: the next point needs them."""
        self._held.close()

    def committed(self, oldest: int | None = None) -> tuple[str, ...]:
        """Remove the bitmaps that only older points needed.

        Args:
            oldest: sequence of the oldest point that another backup may build on; None: this one.

        Returns:
            Why some could not be removed now, a line each; the next committed point removes them.
        """
        self.close()
        self._keep = True
        return tuple(itertools.chain(*(self._forget(each, oldest) for each in self._disks)))

    def _forget(self, planned: PlannedImage, oldest: int | None) -> list[str]:
        kept = []
        for name in planned.obsolete(oldest) if planned in self._begun else ():
            try:
                remove_bitmap(planned.disk, name, self._cancel)
            except SourceError as error:
                kept.append(f"disk {planned.disk.name} keeps an old bitmap: {error}")
        return kept

    def abandon(self) -> None:
        """Remove the new bitmaps of a point that was not committed: nothing builds on them.

        Raises:
            SourceError: one is left, which does no harm; all were tried.
        """
        if self._keep:
            return
        tried = Attempts()
        for planned in self._begun:
            if planned.begun is not None:
                with tried.step():
                    remove_bitmap(planned.disk, planned.begun, self._cancel)
        tried.settle(SourceError)


@contextmanager
def living_point(plan: ImagePlan, cancel: CancelToken) -> Iterator[ImagePoint]:
    """Take a point, or resume one; it is taken down whatever happens.

    Raises:
        PointError: it cannot be resumed: it is left as it is.
        SourceError: an image is in use, or cannot be served.
    """
    with workplace(plan.scratch, plan.name, plan.holder) as folder:
        held = HeldImages(folder, cancel)
        point = ImagePoint(plan, held, cancel)
        try:
            if plan.adopted:
                point.resume()
            else:
                point.start()
            yield point
        except BaseException as error:
            # The first error is the one to tell. A bitmap that stays harms nothing.
            with suppress(FleeceError, OSError):
                point.close()
            with suppress(FleeceError, OSError):
                point.abandon()
            if isinstance(error, Interrupted):
                raise Interrupted(f"{error.what}; the point was taken down again") from error
            if cancel.cancelled and isinstance(error, SourceError | PointError):
                # The signal went to the servers as well, as a terminal and systemd send it.
                raise Interrupted("interrupted; the point was taken down again") from error
            raise
        point.close()
        point.abandon()
