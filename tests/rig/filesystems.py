"""Disks with file systems on them, made by the file systems' own tools.

What needs a kernel's driver (XFS) is filled through a loop device, as root; NTFS through FUSE.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.rig.process import RigError, run_checked

SECTOR = 512
Fill = Callable[[Path], None]


def sample_tree(root: Path, seed: int = 1) -> None:
    """Files of all kinds and sizes in a folder that exists."""
    source = random.Random(seed)
    (root / "a/b/c").mkdir(parents=True)
    contents = {
        "empty": b"",
        "one": b"x",
        "small": b"hello" * 20,
        "middle": source.randbytes(5000),
        "large": source.randbytes(1_500_000),
        "a/b/c/deep": b"deep",
        "späce näme": b"1",
    }
    for name, data in contents.items():
        (root / name).write_bytes(data)
    with (root / "holes").open("wb") as file:
        file.seek(300_000)
        file.write(source.randbytes(70_000))
        file.truncate(1 << 20)
    (root / "many").mkdir()
    for number in range(300):
        (root / f"many/file-{number:04}").write_bytes(b"%d" % number)


def unix_things(root: Path) -> None:
    """What only file systems of Unix have: links, modes, a pipe, odd names."""
    (root / "short").symlink_to("one")
    (root / "long").symlink_to("/etc/" + "x" * 200)
    os.link(root / "middle", root / "hard")
    os.mkfifo(root / "pipe")
    (root / "one").chmod(0o4755)
    (root / "middle").chmod(0o600)
    (root / "new\nline").write_bytes(b"2")
    Path(os.fsdecode(os.fsencode(root) + b"/bad\xff")).write_bytes(b"3")
    os.utime(root / "one", ns=(10**18, 10**18 + 123_456_789))
    os.utime(root / "a", ns=(10**18, 10**18 - 5 * 10**9))


def blank(path: Path, size: int) -> Path:
    """A sparse file."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def ext(path: Path, size: int, tree: Path, version: int = 4, *options: str) -> Path:
    """An ext2, ext3 or ext4 that holds a copy of a folder."""
    blank(path, size)
    run_checked(f"mkfs.ext{version}", "-q", "-F", "-L", "label", *options, "-d", tree, path)
    return path


def debugfs(image: Path, *commands: str) -> None:
    """Change an ext4 behind its back."""
    for command in commands:
        run_checked("debugfs", "-w", "-R", command, image)


def xfs(path: Path, size: int, fill: Fill) -> Path:
    """An XFS, filled through its mount point."""
    blank(path, size)
    # --unsupported: smaller than anybody needs, but a test.
    run_checked("mkfs.xfs", "-q", "--unsupported", "-L", "label", path)
    with mounted(path) as folder:
        fill(folder)
    return path


def ntfs(path: Path, size: int, fill: Fill) -> Path:
    """An NTFS, filled through its mount point."""
    blank(path, size)
    run_checked("mkntfs", "-q", "-F", "-L", "label", path)
    with _mounted(path, "ntfs-3g", "-o", "compression,streams_interface=none") as folder:
        fill(folder)
    return path


@contextmanager
def ignoring_case(path: Path, size: int) -> Iterator[Path]:
    """The mount point of a new file system for which `name` and `NAME` are one."""
    blank(path, size)
    run_checked("mkntfs", "-q", "-F", path)
    with _mounted(path, "lowntfs-3g", "-o", "ignore_case") as folder:
        yield folder


def fat(path: Path, size: int, tree: Path) -> Path:
    """A FAT16 that holds a copy of a folder, by mtools."""
    blank(path, size)
    run_checked("mkfs.vfat", "-F", "16", "-n", "LABEL", path)
    run_checked("env", "LC_ALL=C.UTF-8", "mcopy", "-s", "-m", "-i", path, *tree.iterdir(), "::")
    return path


def mounted(image: Path, *options: str) -> AbstractContextManager[Path]:
    """The mount point of an image, by the kernel."""
    return _mounted(image, "mount", *(options or ("-o", "loop")))


@contextmanager
def _mounted(image: Path, program: str, *options: str) -> Iterator[Path]:
    folder = image.with_name(f"{image.name}.mnt")
    folder.mkdir()
    try:
        run_checked(program, *options, image, folder)
        try:
            yield folder
        finally:
            run_checked("umount", folder)
    finally:
        folder.rmdir()


@dataclass(frozen=True)
class Slot:
    """A partition to make.

    Attributes:
        size: in bytes.
        name: in a GPT.
        words: more of sfdisk's words, such as `type=lvm`.
        image: what goes into it.
    """

    size: int
    name: str = ""
    words: str = ""
    image: Path | None = None


def partitioned(path: Path, table: str, slots: Sequence[Slot]) -> list[tuple[int, int]]:
    """A disk with a partition table, `gpt` or `dos`; gives (start, size) of each, in bytes."""
    blank(path, sum(slot.size for slot in slots) + (4 + len(slots)) * (1 << 20))
    lines = [f"label: {table}"]
    for slot in slots:
        name = f', name="{slot.name}"' if slot.name else ""
        words = f", {slot.words}" if slot.words else ""
        lines.append(f"size={slot.size // SECTOR}{name}{words}")
    script = path.with_name(f"{path.name}.sfdisk")
    script.write_text("\n".join([*lines, ""]))
    run_checked("sh", "-c", f"sfdisk -q --no-reread '{path}' < '{script}'")
    found = json.loads(run_checked("sfdisk", "-J", path))["partitiontable"]["partitions"]
    places = [(part["start"] * SECTOR, part["size"] * SECTOR) for part in found]
    for slot, (start, _) in zip(slots, places, strict=True):
        if slot.image is not None:
            write_at(path, start, slot.image.read_bytes())
    return places


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Overwrite a part of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


_LVM = (
    'devices { scan=["/dev"] } backup { backup=0 archive=0 } '
    "activation { monitoring=0 udev_sync=0 udev_rules=0 }"
)


class Lvm:
    """A volume group on a part of a file, made without the kernel's device-mapper.

    Args:
        device: a loop device over the part.
    """

    EXTENT = 1 << 20

    def __init__(self, device: str) -> None:
        self._device = device

    def __call__(self, verb: str, *words: str) -> str:
        """Run one of LVM's commands."""
        common = ("--config", _LVM, "--devices", self._device, "--driverloaded", "n")
        return run_checked(verb, *common, *words)

    def extents(self, volume: str) -> list[int]:
        """The physical extents of a logical volume, in order."""
        told = self("lvs", "--noheadings", "-o", "seg_pe_ranges", volume)
        found: list[int] = []
        for word in told.split():
            first, _, last = word.rpartition(":")[2].partition("-")
            found += range(int(first), int(last) + 1)
        return found

    def start(self) -> int:
        """Where the first extent is, from the start of the part."""
        told = self("pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start")
        return int(told.split()[0])


@contextmanager
def loop_device(path: Path, offset: int, size: int) -> Iterator[str]:
    """A loop device over a part of a file."""
    words = ("--offset", str(offset), "--sizelimit", str(size))
    device = run_checked("losetup", "--find", "--show", *words, path).strip()
    try:
        yield device
    finally:
        run_checked("losetup", "--detach", device)


def loop_devices_work(folder: Path) -> bool:
    """Whether file systems can be mounted here: root, and loop devices."""
    try:
        (folder / "nothing").mkdir()
        ext(folder / "probe", 1 << 20, folder / "nothing")
        with mounted(folder / "probe"):
            return True
    except RigError:
        return False


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by sha256sum."""
    found = {}
    command = "find . -type f -print0 | xargs -0 sha256sum -z"
    told = subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=True).stdout
    for line in filter(None, told.split(b"\0")):
        found[os.fsdecode(line[66:])] = line[:64].decode()
    return found
