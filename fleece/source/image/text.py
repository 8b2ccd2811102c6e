"""Images as a command line names them: `[NAME=][FORMAT:]PATH[,...]`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from fleece.delta.header import is_name
from fleece.delta.part import is_part
from fleece.disk.image import ImageFormat
from fleece.errors import UsageError
from fleece.source.image.inventory import Image

_SHOWN = "image:[NAME=][raw:|qcow2:]PATH[,...]"


def parse(text: str) -> tuple[Image, ...]:
    """The images that a text names.

    A comma in a path is written twice. What is before an equals sign is a disk's name if no slash
    is in it. Without one a disk is called as its file, without the ending.

    Raises:
        UsageError: it names none, or two disks are called alike.
    """
    found = tuple(_image(part) for part in _parts(text))
    names = [image.name for image in found]
    for image in found:
        if names.count(image.name) > 1:
            raise UsageError(
                f"two disks are called {image.name}",
                where=f"image:{text}",
                hint=f"give each a name of its own: {_SHOWN}",
            )
    return found


def _parts(text: str) -> Iterator[str]:
    """The parts between commas; two commas stand for one that is part of a path."""
    for part in text.replace(",,", "\0").split(","):
        yield part.replace("\0", ",")


def _image(part: str) -> Image:
    before, equals, after = part.partition("=")
    name, rest = (before, after) if equals and "/" not in before else (None, part)
    form, colon, path = rest.partition(":")
    if not colon or form not in tuple(ImageFormat):
        form, path = "", rest
    if not path:
        raise UsageError("an image has no path", where=part, hint=f"write {_SHOWN}")
    if name is None:
        name = PurePath(path).stem
    if not is_name(name):
        raise UsageError(
            "a disk's name must be printable, of 1 to 1024 characters",
            where=part,
            hint=f"write {_SHOWN}",
        )
    if is_part(name):
        raise UsageError(
            "names that begin with @ are those of a machine's parts, and no disk's",
            where=part,
            hint=f"give the disk another: {_SHOWN}",
        )
    return Image(name, path, ImageFormat(form) if form else None)
