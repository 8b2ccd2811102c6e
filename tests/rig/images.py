"""Making and comparing disk images. Sizes are in bytes, formats ``raw`` or ``qcow2``."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.rig.process import run, run_checked

MIB = 1 << 20
_CLUSTER = 65536


def make_disk(path: Path, size: int, fmt: str = "qcow2", fs: str | None = None) -> Path:
    """Make an empty disk, or one with an empty file system.

    Args:
        path: the image to make.
        size: the disk's size.
        fmt: the image's format.
        fs: ``ext4`` or None.

    Returns:
        `path`.

    Raises:
        RigError: a program failed.
        ValueError: another file system was asked for.
    """
    if fs is None:
        run_checked("qemu-img", "create", "-q", "-f", fmt, path, str(size))
        return path
    if fs != "ext4":
        raise ValueError(f"the rig makes no {fs}")
    raw = _raw_beside(path, fmt)
    with raw.open("wb") as file:
        file.truncate(size)
    # The block size that large disks have; for small ones mkfs would choose 1024.
    run_checked("mkfs.ext4", "-q", "-F", "-b", "4096", raw)
    return _from_raw(raw, path, fmt)


def random_image(
    path: Path, size: int, seed: int, *, fmt: str = "qcow2", fill: float = 0.5
) -> Path:
    """Make an image of random data, written zeros and holes; the same seed, the same data.

    Args:
        path: the image to make.
        size: the disk's size; need not be a multiple of anything but 512.
        seed: what the data depends on.
        fmt: the image's format.
        fill: the share of the 64 KiB clusters that hold data; of the rest, half are holes.

    Returns:
        `path`.
    """
    source = random.Random(seed)
    raw = _raw_beside(path, fmt)
    with raw.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, _CLUSTER):
            length = min(_CLUSTER, size - offset)
            draw = source.random()
            file.seek(offset)
            if draw < fill:
                file.write(source.randbytes(length))
            elif draw < (1 + fill) / 2:
                file.write(bytes(length))
    return _from_raw(raw, path, fmt)


def make_overlay(path: Path, backing: Path, backing_fmt: str) -> Path:
    """Make a qcow2 overlay, so that `backing` can be used and stays as it is; returns `path`."""
    words = ["-b", str(backing.resolve()), "-F", backing_fmt]
    run_checked("qemu-img", "create", "-q", "-f", "qcow2", *words, path)
    return path


def to_raw(image: Path, target: Path, fmt: str = "qcow2") -> Path:
    """Convert an image to a sparse raw file; returns `target`."""
    run_checked("qemu-img", "convert", "-f", fmt, "-O", "raw", image, target)
    return target


def compare(a: Path, b: Path, a_fmt: str | None = None, b_fmt: str | None = None) -> None:
    """Check that two disks have the same size and content, in whatever formats.

    Args:
        a: an image that no running QEMU writes to.
        b: the other.
        a_fmt: its format; probed if None.
        b_fmt: the other's.

    Raises:
        AssertionError: they differ; the message has what qemu-img said.
    """
    # By itself, qemu-img compare passes over a size that differs by zeros.
    sizes = virtual_size(a, a_fmt), virtual_size(b, b_fmt)
    assert sizes[0] == sizes[1], f"sizes differ: {a} {sizes[0]}, {b} {sizes[1]}"
    words = ["-f", a_fmt] if a_fmt else []
    words += ["-F", b_fmt] if b_fmt else []
    result = run("qemu-img", "compare", *words, a, b)
    assert result.returncode == 0, f"{a} and {b}: {result.stdout}{result.stderr}"


def virtual_size(image: Path, fmt: str | None = None) -> int:
    """The disk's size as a guest sees it."""
    words = ["-f", fmt] if fmt else []
    info = json.loads(run_checked("qemu-img", "info", "--output=json", *words, image))
    return int(info["virtual-size"])


def check(path: Path, fmt: str = "qcow2") -> None:
    """Check the metadata of an image.

    Raises:
        AssertionError: corruption or leaked clusters; the message has what qemu-img said.
    """
    result = run("qemu-img", "check", "-f", fmt, path)
    assert result.returncode == 0, f"{path}: {result.stdout}{result.stderr}"


def _raw_beside(path: Path, fmt: str) -> Path:
    return path if fmt == "raw" else path.with_name(path.name + ".raw")


def _from_raw(raw: Path, path: Path, fmt: str) -> Path:
    if raw != path:
        run_checked("qemu-img", "convert", "-f", "raw", "-O", fmt, raw, path)
        raw.unlink()
    return path
