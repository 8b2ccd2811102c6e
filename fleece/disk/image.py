"""Open whatever a user calls an image: a raw or qcow2 file, a block device, or an NBD URI."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import stat
import subprocess
from collections.abc import Iterator

from fleece.disk.base import ReadableDisk
from fleece.disk.nbd import NbdDisk
from fleece.disk.raw import RawDisk
from fleece.errors import FleeceError, SourceError
from fleece.nbd.server import served_image
from fleece.nbd.uri import is_uri
from fleece.programs import child_environment, program


class ImageFormat(enum.StrEnum):
    """The image formats that fleece writes; others are read through qemu-nbd."""

    RAW = "raw"
    QCOW2 = "qcow2"


@contextlib.contextmanager
def open_image(
    image: str, image_format: str | None = None, failure: type[FleeceError] = SourceError
) -> Iterator[ReadableDisk]:
    """Open an image for reading.

    Args:
        image: a path or an NBD URI.
        image_format: as qemu-img names it; None: probe it. A guest can write any header into a
            raw disk, so name the format of a raw image that is not to be trusted.
        failure: the family of errors about this image.
    """
    if is_uri(image):
        yield NbdDisk(image, failure)
        return
    found = image_format or probe_format(image, failure)
    if found == ImageFormat.RAW:
        with contextlib.closing(RawDisk(image, failure)) as raw:
            yield raw
    else:
        with served_image(image, found, writable=False, failure=failure) as uri:
            yield NbdDisk(uri, failure)


def probe_format(path: str, failure: type[FleeceError]) -> str:
    """The format of an image file by its content, as qemu-img sees it; block devices are raw."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise failure(os.strerror(error.errno or 0), where=path) from error
    if stat.S_ISBLK(mode):
        return ImageFormat.RAW
    if not stat.S_ISREG(mode):
        raise failure("is neither a file nor a block device", where=path)
    done = subprocess.run(
        [program("qemu-img"), "info", "-U", "--output=json", "--", path],
        capture_output=True,
        check=False,
        env=child_environment(),
    )
    if done.returncode != 0:
        raise failure(f"is no image: {done.stderr.decode(errors='replace').strip()}", where=path)
    return str(json.loads(done.stdout)["format"])
