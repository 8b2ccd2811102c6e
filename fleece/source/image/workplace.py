"""The work folder of a point of images: for sockets, and by its lock for who asks whether it lives.

It is made in the scratch folder as those of other sources are (`fleece.source.workfolder`). They
leave it alone; the next run on images removes it if its own run is dead.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fleece.attempts import Attempts
from fleece.errors import SourceError
from fleece.source.base import Removed
from fleece.source.emptying import remove_work_folder
from fleece.source.workfolder import (
    PREFIX,
    QEMU_FOLDER,
    Owner,
    Strangers,
    WorkFolder,
    held_folder,
    work_folders,
)

_HOLDER = re.compile(r"images [0-9a-f]{32}")


def holder_of(paths: Sequence[str]) -> str:
    """How a work folder notes the images that it is for."""
    real = "\0".join(sorted(os.path.realpath(path) for path in paths))
    return f"images {hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}"


@contextmanager
def workplace(scratch: Path, name: str, holder: str) -> Iterator[Path]:
    """Make a point's work folder, and remove it; gives the folder for its sockets.

    What an interrupted run made for the same point is removed first.

    Raises:
        PointError: there is no room for it.
        SourceError: it cannot be made or removed.
    """
    for left in work_folders(scratch, name, Strangers()):
        if _is_of_images(left) and not left.is_held():
            remove(left)
    with held_folder(scratch, name, Owner(os.geteuid(), os.getegid()), holder) as work:
        try:
            yield work.path / QEMU_FOLDER
        finally:
            remove(work)


def left_behind(
    scratch: Path, chain_id: str | None, holder: str, strangers: Strangers
) -> Iterator[Removed]:
    """Remove the work folders of interrupted runs.

    Args:
        scratch: where they are.
        chain_id: of this chain; None: of any, but of these images alone.
        holder: of the images.
        strangers: is told of what is none of ours.

    Raises:
        SourceError: at the end: one cannot be removed.
    """
    tried = Attempts()
    for work in _of_images(scratch, chain_id, strangers):
        if (chain_id is not None or work.holder() == holder) and not work.is_held():
            with tried.step():
                remove(work)
                yield Removed("work folder", str(work.path))
    tried.settle(SourceError)


def has_any(scratch: Path, chain_id: str) -> bool:
    """Whether there is a work folder of a point of this chain, of a living run or not."""
    return any(True for _ in _of_images(scratch, chain_id, Strangers()))


def _of_images(scratch: Path, chain_id: str | None, strangers: Strangers) -> Iterator[WorkFolder]:
    start = PREFIX if chain_id is None else f"{PREFIX}{chain_id}-"
    for work in work_folders(scratch, start, strangers):
        if _is_of_images(work):
            yield work


def _is_of_images(work: WorkFolder) -> bool:
    return _HOLDER.fullmatch(work.holder() or "") is not None


def remove(work: WorkFolder) -> None:
    """Remove a work folder of images, and what is in it.

    Raises:
        SourceError: something of it is left.
    """
    tried = Attempts()
    for _ in remove_work_folder(work, tried):
        pass
    tried.settle(SourceError)
