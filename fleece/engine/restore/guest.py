"""Put a whole guest back: its disks, what belongs to its machine, and its definition.

All that can be known is checked before the first byte is written. Each disk is proven by its root
before the machine is defined, so a guest that is there is one whose disks are right.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleece import events
from fleece.cancel import CancelToken
from fleece.disk.image import ImageFormat
from fleece.engine.restore.existing_target import format_by_name, is_block_device
from fleece.engine.restore.image import RestoreResult, restore
from fleece.engine.restore.options import RestoreOptions
from fleece.engine.work.new_file import Manner, is_there, new_file, qemu_img, target_errors
from fleece.engine.work.part import parts_of
from fleece.errors import FleeceError, TargetError, UsageError
from fleece.machine.base import Landed, Landing, MachineWish, PlacedDisk, SavedMachine
from fleece.machine.open import open_landing
from fleece.nbd.uri import is_uri
from fleece.store.catalogue import Catalogue, StoredPoint
from fleece.store.names import safe_name
from fleece.store.store import Store

_GRANULARITY = 65536
_PASSABLE = 0o711
"""Of a new folder: QEMU's user must pass it, and needs to see nothing in it."""
_PRIVATE = 0o700


@dataclass(frozen=True)
class GuestOptions:
    """How a guest is put back. What has no effect is refused.

    Attributes:
        guest: which guest, if the point could be of several.
        name: that it gets; None: its own.
        keep_identity: it keeps its UUID and the addresses of its network cards.
        connect: the libvirt that gets it; None: libvirt's default.
        script: a script that starts QEMU is made, whatever the guest was.
        trusted: what in its definition reaches into the host is kept.
        places: of disks that are to be elsewhere, by disk: files or block devices.
        image_format: of all images; None: as the definition says, else qcow2.
        start: the guest is started at the end.
        force: files, devices, and a guest of the same name that is off, are replaced.
    """

    guest: str | None = None
    name: str | None = None
    keep_identity: bool = False
    connect: str | None = None
    script: bool = False
    trusted: bool = False
    places: Mapping[str, str] = field(default_factory=dict)
    image_format: ImageFormat | None = None
    start: bool = False
    force: bool = False


@dataclass(frozen=True)
class GuestResult:
    """A guest that is back.

    Attributes:
        guest, point: what was restored.
        kind: libvirt, or script.
        name, uuid: its own now.
        disks: each proven.
        files: of the machine, besides.
        incremental: the next backup reads only what is written from now on.
        started: it runs.
        told: where it is, in words.
    """

    guest: str
    point: str
    kind: str
    name: str
    uuid: str
    disks: tuple[RestoreResult, ...]
    files: tuple[str, ...]
    incremental: bool
    started: bool
    told: str


def restore_guest(
    store: Store,
    point: str,
    folder: str,
    options: GuestOptions | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> GuestResult:
    """Put a guest back: disks, firmware's variables, TPM, definition.

    Args:
        store: to read.
        point: an id, a prefix of one, or `latest`.
        folder: of the disks; it is made if it is not there.
        options: how.
        listener: hears `Progress`, and `Warned` of each thing that is not carried.
        cancel: stops it; what this run made is removed.

    Raises:
        UsageError: an option has no effect, or the point has no such disk.
        StoreError: the point is not there, a chain is damaged, or a part is not what it says.
        VerifyError: a disk has not the point's root.
        TargetError: something is there already, or the machine cannot be put here. If the disks
            are whole by then, they stay, and the error says so.
    """
    options, cancel = options or GuestOptions(), cancel or CancelToken()
    catalogue = store.catalogue()
    found = catalogue.find(point, options.guest)
    wish = _wish(Path(os.path.abspath(folder)), options)
    with open_landing(_saved(catalogue, found), wish, cancel) as landing:
        placed = _placed(found, wish.folder, options, landing.formats())
        for notice in landing.prepare(placed):
            listener(events.Warned(notice))
        restoring = _Restoring(store, found, options, listener, cancel)
        restoring.check_free(placed, landing)
        goes_on = options.keep_identity and catalogue.of_guest(found.guest)[-1].id == found.id
        with restoring.removed_if_it_fails(wish.folder):
            disks = tuple(restoring.disk(disk) for disk in placed)
            files = tuple(restoring.files(landing))
            bitmaps = restoring.bitmaps(placed, landing) if goes_on else {}
        landed = _land(landing, bitmaps, wish.folder, listener)
        if options.start:
            landing.start()
    incremental = len(bitmaps) == len(placed)
    if options.keep_identity and not incremental:
        listener(events.Warned("the next backup reads all of it, and stores only what differs"))
    return GuestResult(
        found.guest,
        found.id,
        landing.kind,
        landed.name,
        landed.uuid,
        disks,
        files,
        incremental,
        options.start,
        landed.told,
    )


def _land(
    landing: Landing, bitmaps: Mapping[str, str], folder: Path, listener: events.Listener
) -> Landed:
    """Define the machine.

    Raises:
        TargetError: it is refused; the disks stay, and the error says so.
    """
    try:
        landed = landing.land(bitmaps)
    except FleeceError as error:
        told = f"the disks are whole, proven, and stay in {folder}"
        error.hint = told if error.hint is None else f"{error.hint}; {told}"
        raise
    for notice in landed.notices:
        listener(events.Warned(notice))
    return landed


def _wish(folder: Path, options: GuestOptions) -> MachineWish:
    return MachineWish(
        folder,
        options.name,
        options.keep_identity,
        options.connect,
        options.script,
        options.trusted,
        options.force,
        options.start,
    )


def _saved(catalogue: Catalogue, point: StoredPoint) -> SavedMachine:
    told = {part.kind: part.data for part in parts_of(catalogue, point)}
    identities = [entry.header.identity for entry in point.disks.values()]
    uuid = next((each.uuid for each in identities if each is not None), None)
    return SavedMachine(point.guest, point.id, told, tuple(sorted(point.disks)), uuid)


def _placed(
    point: StoredPoint, folder: Path, options: GuestOptions, formats: Mapping[str, ImageFormat]
) -> list[PlacedDisk]:
    """Where each disk goes.

    Raises:
        UsageError: a place is of no disk, or of two.
    """
    for name in options.places:
        point.disk(name)
    placed = [
        _elsewhere(name, options.places[name], options.image_format)
        if name in options.places
        else _inside(name, folder, options.image_format or formats.get(name, ImageFormat.QCOW2))
        for name in sorted(point.disks)
    ]
    paths = [disk.path for disk in placed]
    for disk in placed:
        if paths.count(disk.path) > 1:
            raise UsageError("two disks would have this place", where=disk.path)
    return placed


def _inside(name: str, folder: Path, image_format: ImageFormat) -> PlacedDisk:
    return PlacedDisk(name, folder / f"{safe_name(name)}.{image_format}", image_format)


def _elsewhere(name: str, place: str, wished: ImageFormat | None) -> PlacedDisk:
    if is_uri(place):
        raise UsageError("a guest's disk is a file or a block device", where=place)
    found = wished or format_by_name(place) or ImageFormat.RAW
    return PlacedDisk(name, Path(os.path.abspath(place)), found, is_block_device(place))


@dataclass
class _Restoring:
    """Makes the files of a guest, and removes what it made if that fails."""

    store: Store
    point: StoredPoint
    options: GuestOptions
    listener: events.Listener
    cancel: CancelToken
    made: list[Path] = field(default_factory=list)
    replaced: list[Path] = field(default_factory=list)

    def check_free(self, disks: Sequence[PlacedDisk], landing: Landing) -> None:
        """See that nothing is where something shall be made.

        Raises:
            TargetError: something is, and it is not to be replaced.
        """
        for path in (*(disk.path for disk in disks), *(file.path for file in landing.files())):
            if not self.options.force and os.path.lexists(path):
                raise TargetError("exists already", where=path, hint="--force replaces it")

    @contextlib.contextmanager
    def removed_if_it_fails(self, folder: Path) -> Iterator[None]:
        """Make the folder; if the context fails, remove all that was made."""
        new = not is_there(folder)
        try:
            if new:
                self._make_folder(folder, _PASSABLE)
            yield
        except BaseException as error:
            for path in reversed(self.made):
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
            if isinstance(error, FleeceError) and self.replaced:
                told = f"already replaced: {', '.join(map(str, self.replaced))}"
                error.hint = told if error.hint is None else f"{error.hint}; {told}"
            raise

    def _make_folder(self, folder: Path, mode: int) -> None:
        with target_errors(folder):
            folder.mkdir()
            self.made.append(folder)
            folder.chmod(mode)

    @contextlib.contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        """Note what is made under a name, or replaced."""
        there = os.path.lexists(path)
        yield
        (self.replaced if there else self.made).append(path)

    def disk(self, disk: PlacedDisk) -> RestoreResult:
        """Restore a disk, and prove it."""
        how = RestoreOptions(self.point.guest, disk.format, self.options.force)
        with self._noting(disk.path):
            return restore(
                self.store,
                self.point.id,
                disk.name,
                str(disk.path),
                how,
                self.listener,
                self.cancel,
            )

    def files(self, landing: Landing) -> Iterator[str]:
        """Make the machine's own files."""
        for file in landing.files():
            if not os.path.lexists(file.path.parent):
                self._make_folder(file.path.parent, _PRIVATE)
            manner = Manner(self.options.force, file.mode, self.listener, self.cancel)
            with self._noting(file.path), new_file(str(file.path), manner) as made:
                made.write(file.data)
            yield str(file.path)

    def bitmaps(self, disks: Sequence[PlacedDisk], landing: Landing) -> dict[str, str]:
        """Have each qcow2 image note from now on what is written; gives the bitmaps, by disk.

        What is there is the newest point of its chain, to the last byte: so what is written since
        that point is what is written from now on.
        """
        begun: dict[str, str] = {}
        for disk in disks:
            if disk.format is not ImageFormat.QCOW2:
                continue
            at = self.point
            name = landing.bitmap(disk.name, at.chain, at.sequence, at.id)
            words = ["--add", "-g", str(_GRANULARITY), "-f", "qcow2", str(disk.path), name]
            try:
                qemu_img("bitmap", *words, where=str(disk.path), cancel=self.cancel)
            except TargetError as error:
                self.listener(events.Warned(str(error)))
            else:
                begun[disk.name] = name
        return begun
