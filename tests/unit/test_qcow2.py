"""A qcow2 image that is written by a map: judged by qemu-img, read back by its own tables."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleece.disk.image import open_image
from fleece.disk.qcow2 import CLUSTER, Backing, Layout, Qcow2Image
from fleece.engine.work.scan import disk_root
from fleece.errors import TargetError
from fleece.extents import Extents

_TIB = 1 << 40


def _qemu_img(*words: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def _image(path: Path, layout: Layout, backing: Backing | None = None) -> Iterator[Qcow2Image]:
    path.touch()
    with contextlib.closing(Qcow2Image(str(path), layout, TargetError, backing)) as image:
        yield image


def _write(image: Qcow2Image, raw: Path, data: Extents, step: int) -> None:
    """Write the parts of a raw file, in pieces and in no order."""
    content = raw.read_bytes()
    pieces = [(at, min(at + step, end)) for start, end in data for at in range(start, end, step)]
    random.Random(7).shuffle(pieces)
    with image.writer() as writer:
        for start, end in pieces:
            writer.write(start, content[start:end])
    image.flush()


def _raw(path: Path, size: int, data: Extents) -> Path:
    """A raw file with random bytes in some parts."""
    source = random.Random(size)
    with open(path, "wb") as file:
        file.truncate(size)
        for start, end in data:
            file.seek(start)
            file.write(source.randbytes(end - start))
    return path


def _judged(path: Path, raw: Path) -> None:
    checked = json.loads(_qemu_img("check", "-f", "qcow2", "--output=json", path))
    assert checked["check-errors"] == 0
    assert checked.get("leaks", 0) == 0
    _qemu_img("compare", "-f", "qcow2", "-F", "raw", path, raw)


_SECTORS = 40 * 128


@st.composite
def _maps(draw: st.DrawFn) -> tuple[int, Extents]:
    """The size of a disk, in bytes, and what of it is data."""
    size = draw(st.integers(1, _SECTORS)) * 512
    clusters = -(-size // CLUSTER)
    numbers = draw(st.sets(st.integers(0, clusters - 1)))
    ranges = ((n * CLUSTER, min((n + 1) * CLUSTER, size)) for n in numbers)
    return size, Extents.of(ranges)


@given(_maps(), st.sampled_from((512, 65536, 100 * 512, 1 << 20)))
@settings(deadline=None, max_examples=40)
def test_any_map_makes_an_image_that_qemu_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[int, Extents], step: int
) -> None:
    size, data = made
    folder = tmp_path_factory.mktemp("qcow2")
    raw = _raw(folder / "raw", size, data)
    path = folder / "image"
    with _image(path, Layout.of(size, data)) as image:
        _write(image, raw, data, step)
        with open_image(str(raw), "raw") as disk:
            assert disk_root(image) == disk_root(disk)
        assert image.zero_extents(Extents.whole(size)) == Extents.whole(size).subtract(data)
    _judged(path, raw)
    held = json.loads(_qemu_img("info", "--output=json", path))
    assert held["virtual-size"] == size
    assert path.stat().st_size == Layout.of(size, data).length


def test_what_an_independent_reader_finds_has_the_same_root(tmp_path: Path) -> None:
    data = Extents.of([(0, 3 * CLUSTER), (9 * CLUSTER, 20 * CLUSTER)])
    raw = _raw(tmp_path / "raw", 33 * CLUSTER + 512, data)
    with _image(tmp_path / "image", Layout.of(33 * CLUSTER + 512, data)) as image:
        _write(image, raw, data, CLUSTER)
        mine = disk_root(image)
    with open_image(str(tmp_path / "image"), "qcow2") as disk:
        assert disk_root(disk) == mine


def test_a_disk_of_many_tables_and_refcount_blocks(tmp_path: Path) -> None:
    """3 GiB of file, sparse: two refcount blocks; data near both ends and at table borders."""
    border = CLUSTER * 8192
    parts = [(0, CLUSTER), (border - CLUSTER, border + CLUSTER), (5 * border, 11 * border)]
    size = 15 * _TIB
    data = Extents.of([*parts, (size - CLUSTER, size)])
    raw = tmp_path / "raw"
    with open(raw, "wb") as file:
        file.truncate(size)
        for start, end in data:
            for at in (start, end - 4096):
                file.seek(at)
                file.write(os.urandom(4096))
    layout = Layout.of(size, data)
    assert layout.l1 - layout.refcount_blocks == 2
    with _image(tmp_path / "image", layout) as image, image.writer() as writer:
        with open(raw, "rb") as file:
            for start, end in data:
                for at in (start, end - 4096):
                    file.seek(at)
                    writer.write(at, file.read(4096))
        image.flush()
        assert image.zero_extents(Extents.whole(size)) == Extents.whole(size).subtract(data)
    _judged(tmp_path / "image", raw)
    assert (tmp_path / "image").stat().st_blocks * 512 < 8 << 20


def test_zeros_hide_what_the_backing_file_has(tmp_path: Path) -> None:
    size = 10 * CLUSTER + 1024
    base = _raw(tmp_path / "base", size, Extents.whole(size))
    _qemu_img("convert", "-f", "raw", "-O", "qcow2", base, tmp_path / "base.qcow2")
    data = Extents.of([(2 * CLUSTER, 4 * CLUSTER)])
    zeros = Extents.of([(5 * CLUSTER, 7 * CLUSTER), (10 * CLUSTER, size)])
    layout = Layout.of(size, data, zeros)
    with _image(tmp_path / "top", layout, Backing("base.qcow2", "qcow2")) as image:
        with image.writer() as writer:
            writer.write(2 * CLUSTER, b"x" * (2 * CLUSTER))
        image.flush()
    content = bytearray(base.read_bytes())
    content[2 * CLUSTER : 4 * CLUSTER] = b"x" * (2 * CLUSTER)
    for start, end in zeros:
        content[start:end] = bytes(end - start)
    (tmp_path / "raw").write_bytes(content)
    _judged(tmp_path / "top", tmp_path / "raw")
    assert json.loads(_qemu_img("info", "--output=json", tmp_path / "top"))["backing-filename"] == (
        "base.qcow2"
    )


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    layout = Layout.of(4 * CLUSTER, Extents.of([(CLUSTER, 2 * CLUSTER)]))
    with _image(tmp_path / "image", layout) as image:
        for offset in (0, 2 * CLUSTER, CLUSTER + 512):
            with pytest.raises(ValueError, match="no place"):
                image.write(offset, b"x" * CLUSTER)


def test_an_image_is_none_until_it_is_whole(tmp_path: Path) -> None:
    """Whoever is cut off before the end leaves nothing that reads as an image."""
    layout = Layout.of(4 * CLUSTER, Extents.whole(4 * CLUSTER))
    with _image(tmp_path / "image", layout) as image:
        image.write(0, b"x" * CLUSTER)
        assert (tmp_path / "image").read_bytes()[:4] == bytes(4)
