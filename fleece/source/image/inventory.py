"""What images there are: their sizes, formats, backing files and bitmaps, as qemu-img tells."""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fleece.cancel import CancelToken
from fleece.disk.image import ImageFormat, looks_like
from fleece.disk.use import NO_IMAGE, User, writer_of
from fleece.errors import SourceError
from fleece.programs import file_name, finished, program
from fleece.source.choice import named
from fleece.source.qemu.answers import Answer
from fleece.source.segments import Bitmap, segments_of

_LARGEST_DISK = 1 << 60
_LONGEST_CHAIN = 1000


@dataclass(frozen=True)
class Image:
    """An image, and the disk that it is.

    Attributes:
        name: the disk's.
        path: of a file or a block device.
        format: None: what the file's name says (`.qcow2`), else raw, unless it looks otherwise.
    """

    name: str
    path: str
    format: ImageFormat | None = None


@dataclass(frozen=True)
class ImageDisk:
    """A disk in an image.

    Attributes:
        name, path: as they were given.
        format: of the image.
        size: in bytes.
        persistent_bitmaps: a bitmap can be stored in it: it is qcow2 of version 3.
        unwritable: but this user may not write to it.
        bitmaps: that are stored in it.
        files: the image, what holds its data if that is another file, and the files of its
            backing chain that are on this host.
    """

    name: str
    path: str
    format: ImageFormat
    size: int
    persistent_bitmaps: bool
    unwritable: bool
    bitmaps: tuple[Bitmap, ...]
    files: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """No: its guest can write it when it is on."""
        return False

    def segments(self, chain_id: str) -> dict[int, Bitmap]:
        """The chain's segments in it, by sequence."""
        return segments_of(self.bitmaps, chain_id)

    def lost(self, bitmaps: Sequence[str], cancel: CancelToken) -> list[str]:
        """Those of some bitmaps that its image does not have now, or only spoiled.

        Raises:
            SourceError: the image cannot be opened.
        """
        now = _look(Image(self.name, self.path, self.format), cancel).bitmaps
        usable = {bitmap.name for bitmap in now if not bitmap.inconsistent}
        return [name for name in bitmaps if name not in usable]

    def writer(self) -> tuple[str, User] | None:
        """Who has one of its files open to write to it, and which; None: nobody.

        Raises:
            SourceError: it cannot be opened.
        """
        for path in self.files:
            try:
                user = writer_of(path)
            except OSError as error:
                raise SourceError(
                    f"whether it is in use cannot be told ({error.strerror})", where=path
                ) from error
            if user is not None:
                return path, user
        return None


@dataclass(frozen=True)
class ImageInventory:
    """The disks, in the order in which their images were given."""

    disks: tuple[ImageDisk, ...]

    def choose(self, names: tuple[str, ...]) -> tuple[ImageDisk, ...]:
        """The disks of these names, or all.

        Raises:
            UsageError: a name is given twice.
            PointError: there is no such disk.
        """
        return tuple(named(self.disks, names)) or self.disks


def take_inventory(images: Sequence[Image], cancel: CancelToken) -> ImageInventory:
    """Look at all images, also at one that is being written.

    Raises:
        SourceError: one is not there, or not what it is said to be.
        Interrupted: `cancel` was called.
    """
    found = tuple(_look(image, cancel) for image in images)
    for one, other in itertools.combinations(found, 2):
        if _same(one.path, other.path):
            raise SourceError(f"is disk {one.name} and disk {other.name}", where=other.path)
    return ImageInventory(found)


def _same(path: str, other: str) -> bool:
    try:
        one, two = os.stat(path), os.stat(other)
    except OSError:  # gone since it was looked at: whoever opens it tells
        return False
    return os.path.samestat(one, two) or (
        stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(two.st_mode) and one.st_rdev == two.st_rdev
    )


def _look(image: Image, cancel: CancelToken) -> ImageDisk:
    image_format = _format_of(image, cancel)
    info = _info(image.path, image_format, cancel)
    encrypted = info.maybe("encrypted")
    if encrypted is not None and encrypted.flag():
        raise SourceError(
            "is encrypted, and only a running guest's QEMU has the key",
            where=image.path,
            hint="back the guest up while it is on",
        )
    qcow2 = _qcow2(info) if image_format is ImageFormat.QCOW2 else None
    version_3 = qcow2 is not None and qcow2.text("compat") == "1.1"
    listed = None if qcow2 is None else qcow2.maybe("bitmaps")
    return ImageDisk(
        image.name,
        image.path,
        image_format,
        info.number("virtual-size", _LARGEST_DISK),
        version_3,
        version_3 and not os.access(image.path, os.W_OK),
        tuple(_bitmap(raw) for raw in ([] if listed is None else listed.list())),
        (image.path, *_data_file(image.path, qcow2), *_backing_files(image.path, info, cancel)),
    )


def _format_of(image: Image, cancel: CancelToken) -> ImageFormat:
    """The format that was named, or that can be told without believing what a guest wrote.

    A guest can write any header into its raw disk, also one that names another file of the host as
    the place of its data. What is read then would be that file.

    Raises:
        SourceError: only the user can know.
    """
    try:
        mode = os.stat(image.path).st_mode
    except OSError as error:
        raise SourceError(error.strerror or str(error), where=image.path) from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise SourceError(NO_IMAGE, where=image.path)
    if image.format is not None:
        return image.format
    if stat.S_ISREG(mode) and image.path.endswith(".qcow2"):
        return ImageFormat.QCOW2
    found = looks_like(image.path, SourceError, cancel)
    if found != ImageFormat.RAW:
        raise SourceError(
            f"looks like {found}, but a guest can write that into a raw disk, too",
            where=image.path,
            hint=f"say what it is: image:raw:{image.path} or image:qcow2:{image.path}",
        )
    return ImageFormat.RAW


def _info(path: str, image_format: str, cancel: CancelToken) -> Answer:
    """What qemu-img says of an image, whoever writes to it meanwhile."""
    words = [program("qemu-img"), "info", "-U", "-f", image_format, "--output=json", "--"]
    done = finished([*words, file_name(path)], cancel)
    if done.code != 0:
        raise SourceError(f"cannot be opened as {image_format}: {done.said}", where=path)
    try:
        found = json.loads(done.out)
    except (ValueError, RecursionError):
        found = None
    return Answer(found, "qemu-img info", path)


def _qcow2(info: Answer) -> Answer:
    return info.part("format-specific").part("data")


def _data_file(path: str, qcow2: Answer | None) -> Iterator[str]:
    """The file that holds the data of a qcow2 image (qcow2.txt, external data file)."""
    name = None if qcow2 is None else qcow2.maybe("data-file")
    if name is not None:
        found = os.path.join(os.path.dirname(path), name.text())
        if os.path.exists(found):  # else qemu-nbd says why not
            yield found


def _bitmap(raw: Answer) -> Bitmap:
    flags = [flag.text() for flag in raw.list("flags")]
    return Bitmap(
        name=raw.text("name"),
        granularity=raw.number("granularity"),
        count=0,
        recording="auto" in flags and "in-use" not in flags,
        busy=False,
        persistent=True,
        inconsistent="in-use" in flags,
    )


def _backing_files(path: str, info: Answer, cancel: CancelToken) -> Iterator[str]:
    """The local files of a backing chain, from the one below the image down.

    Raises:
        SourceError: an image does not say of which format its backing file is: QEMU would find out
            by what a guest may have written into that.
    """
    for _ in range(_LONGEST_CHAIN):
        below, form = info.maybe("full-backing-filename"), info.maybe("backing-filename-format")
        if below is None:
            return
        if form is None:
            raise SourceError(
                "does not say of which format its backing file is",
                where=path,
                hint=f"'qemu-img rebase -u -b {below.text()} -F FORMAT {path}' does",
            )
        path = below.text()
        if not os.path.exists(path):  # on another host, or qemu-nbd says why not
            return
        yield path
        info = _info(path, form.text(), cancel)
    raise SourceError("has too many backing files", where=path)
