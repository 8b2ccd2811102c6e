"""Whoever writes to a file ends, whatever the file takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fleece.disk.raw import RawDisk
from fleece.errors import TargetError
from fleece.files.target import NewFile, UnfitError
from fleece.folder import Folder


def _raw(place: Path) -> None:
    place.touch()
    os.truncate(place, 4096)
    with contextlib.closing(RawDisk(str(place), TargetError, writable=True)) as disk:
        disk.write(0, b"x" * 512)


def _copied(place: Path) -> None:
    file = NewFile(os.open(place, os.O_CREAT | os.O_WRONLY), str(place))
    with contextlib.closing(file):
        file.write(0, b"x" * 512)


def _small(place: Path) -> None:
    with Folder.open(place.parent) as folder:
        folder.put_new(place.name, b"x")


@pytest.mark.parametrize("write", [_raw, _copied, _small])
def test_a_file_that_takes_nothing_is_an_error(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on FUSE can; no file system here does it by itself."""
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises((TargetError, UnfitError, OSError), match="takes no bytes"):
        write(tmp_path / "x")
