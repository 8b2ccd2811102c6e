"""Open whatever a user calls an image: a raw or qcow2 file, a block device, or an NBD URI."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import stat
from collections.abc import Iterator

from fleece import events
from fleece.cancel import CancelToken
from fleece.disk.base import ReadableDisk, Writer
from fleece.disk.nbd import NbdDisk
from fleece.disk.raw import RawDisk
from fleece.disk.use import NO_IMAGE, writer_of
from fleece.errors import FleeceError, SourceError, UsageError
from fleece.nbd.server import served_image
from fleece.nbd.uri import is_uri
from fleece.programs import file_name, finished, program
from fleece.writeback import Writeback


class ImageFormat(enum.StrEnum):
    """The image formats that fleece writes; others are read through qemu-nbd."""

    RAW = "raw"
    QCOW2 = "qcow2"


@contextlib.contextmanager
def open_image(
    image: str,
    image_format: str | None = None,
    failure: type[FleeceError] = SourceError,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> Iterator[ReadableDisk]:
    """Open an image for reading.

    One that a program writes meanwhile may give what it held at no moment at all. QEMU lets nobody
    open a qcow2 image that it writes; of a raw one it says nothing, so it is asked for here.

    Args:
        image: a path or an NBD URI.
        image_format: as qemu-img names it; None: probe it. A guest can write any header into a
            raw disk, so name the format of a raw image that is not to be trusted.
        failure: the family of errors about this image.
        listener: hears `Warned` if a program is writing to it, at the begin or in the end.
        cancel: ends every wait for a server or a program, with `Interrupted`.

    Raises:
        UsageError: a format is named for an NBD export, whose bytes are the disk's.
    """
    if is_uri(image):
        if image_format not in (None, ImageFormat.RAW):
            raise UsageError(f"an NBD export is raw, and cannot be read as {image_format}")
        yield NbdDisk(image, failure, cancel=cancel)
        return
    found = image_format or probe_format(image, failure, cancel)
    if found == ImageFormat.RAW:
        with contextlib.closing(RawDisk(image, failure)) as raw:
            told = _warned_of_writer(image, listener)
            yield raw
            if not told:
                _warned_of_writer(image, listener)
    else:
        with served_image(image, found, writable=False, failure=failure, cancel=cancel) as uri:
            yield NbdDisk(uri, failure, cancel=cancel, name=image)


def _warned_of_writer(image: str, listener: events.Listener) -> bool:
    """Warn if a program has an image open to write to it; gives whether it has."""
    try:
        user = writer_of(image)
    except FileNotFoundError:  # it was read, and is gone
        return False
    except OSError as error:
        why = error.strerror
        listener(events.Warned(f"{image}: whether a program writes to it cannot be told ({why})"))
        return True
    if user is not None:
        listener(
            events.Warned(
                f"{image} is being written by a running program ({user}): "
                "what is read may be no single point in time"
            )
        )
    return user is not None


@contextlib.contextmanager
def open_for_writing(
    path: str,
    image_format: str,
    failure: type[FleeceError],
    cancel: CancelToken | None = None,
    *,
    name: str | None = None,
) -> Iterator[NbdDisk]:
    """Open an image file for writing, through a qemu-nbd of our own.

    Args:
        path: of the image.
        image_format: as qemu-img names it.
        failure: the family of errors about this image.
        cancel: ends every wait for qemu-nbd, with `Interrupted`.
        name: of the image in messages; None: its path.
    """
    opened = served_image(
        path, image_format, writable=True, failure=failure, cancel=cancel, name=name
    )
    with opened as uri:
        disk = _WrittenImage(uri, failure, path, name or path, cancel)
        try:
            yield disk
        finally:
            disk.close()


class _WrittenImage(NbdDisk):
    """An image file that qemu-nbd writes, and that is on its way to the disk meanwhile.

    Args:
        uri: of qemu-nbd's export.
        failure: the family of errors about this image.
        path: of the file.
        name: of the image in messages.
        cancel: ends every wait for qemu-nbd.
    """

    def __init__(
        self,
        uri: str,
        failure: type[FleeceError],
        path: str,
        name: str,
        cancel: CancelToken | None,
    ) -> None:
        super().__init__(uri, failure, cancel=cancel, name=name)
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise failure(os.strerror(error.errno or 0), where=name) from error
        self._writeback = Writeback(self._file)

    def close(self) -> None:
        """Close the file; connections are closed after each use."""
        os.close(self._file)

    @contextlib.contextmanager
    def writer(self) -> Iterator[Writer]:
        """A new connection."""
        with super().writer() as connection:
            yield _ImageWriter(connection, self)

    def wrote(self, count: int) -> None:
        """Count bytes that qemu-nbd has taken."""
        try:
            self._writeback.wrote(count)
        except OSError as error:
            raise self._failure(os.strerror(error.errno or 0), where=self.where) from error


class _ImageWriter:
    def __init__(self, connection: Writer, image: _WrittenImage) -> None:
        self._connection = connection
        self._image = image

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._connection.write(offset, data)
        self._image.wrote(len(data))

    def zero(self, offset: int, length: int) -> None:
        self._connection.zero(offset, length)


def probe_format(path: str, failure: type[FleeceError], cancel: CancelToken | None = None) -> str:
    """The format of an image file by its content, as qemu-img sees it; block devices are raw."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise failure(os.strerror(error.errno or 0), where=path) from error
    if stat.S_ISBLK(mode):
        return ImageFormat.RAW
    if not stat.S_ISREG(mode):
        raise failure(NO_IMAGE, where=path)
    return looks_like(path, failure, cancel)


def looks_like(path: str, failure: type[FleeceError], cancel: CancelToken | None = None) -> str:
    """The format that a file's or a device's content looks like, as qemu-img names it."""
    words = [program("qemu-img"), "info", "-U", "--output=json", "--", file_name(path)]
    done = finished(words, cancel or CancelToken())
    if done.code != 0:
        raise failure(f"is not an image: {done.said}", where=path)
    try:
        found = json.loads(done.out)["format"]
    except (ValueError, LookupError, TypeError, RecursionError):
        found = None
    if not isinstance(found, str):
        raise failure("qemu-img does not say which format this image has", where=path)
    return found
