"""Which volumes a disk has: partitions and logical volumes, by dissect.volume."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from dissect.util.stream import RangeStream
from dissect.volume.disk import Disk
from dissect.volume.disk.schemes import MBR
from dissect.volume.lvm import LVM2
from dissect.volume.lvm.physical import LVM2Device, parse_metadata

from fleece.files.reader.tree import DamagedError, Tree, UnsupportedError

_SECTOR = 512
_SECTORS = (512, 4096)
_MOST_VOLUMES = 1024
_MOST_METADATA = 16 << 20
_HEAD = 8 * 1024
"""Bytes at the start of a volume that tell what is in it."""

_BTRFS = 0x10040

LVM = "lvm2"


@dataclass(frozen=True)
class Part:
    """A volume, before anybody has looked into it.

    Attributes:
        number, name, start, size: as of `fleece.files.model.Volume`.
        stream: to read it; None if that is impossible.
        type: what is known already, without looking; "" is nothing.
        obstacle: why there is no stream.
    """

    number: int
    name: str
    start: int | None
    size: int
    stream: BinaryIO | None
    type: str = ""
    obstacle: str | None = None


def parts_of(disk: BinaryIO, size: int) -> Iterator[Part]:
    """All partitions and logical volumes of a disk; of one without a table, the disk itself."""
    found = [*_partitions(disk, size)] or [Part(1, "", 0, size, disk)]
    yield from found
    number = max(part.number for part in found)
    groups = [part for part in found if part.stream and type_of(part.stream) == LVM]
    yield from _logical(groups, number + 1)


def _partitions(disk: BinaryIO, size: int) -> Iterator[Part]:
    for sector in _SECTORS:
        disk.seek(0)
        try:
            table = Disk(disk, sector_size=sector)
        except OSError:
            raise
        except Exception:  # the library's word for "no table" is an error of any kind
            continue
        numbers = _numbers(table)
        for number, partition in zip(numbers, table.partitions[:_MOST_VOLUMES], strict=False):
            last = getattr(partition.raw, "last_lba", None)
            # The library leaves out the last sector of a partition in a GPT.
            length = partition.size + (0 if last is None else sector)
            start, length = partition.offset, min(length, size - partition.offset)
            if start > 0 and length > 0:
                stream = RangeStream(disk, start, length)
                yield Part(number, partition.name or "", start, length, stream)
        return


def _numbers(table: Any) -> list[int]:
    """The partitions' numbers as Linux counts them: those in an extended partition from 5 on."""
    if not isinstance(table.scheme, MBR):
        return [partition.number for partition in table.partitions]
    primary = [id(entry) for entry in table.scheme.mbr.part]
    after = itertools.count(len(primary) + 1)
    return [
        primary.index(id(partition.raw)) + 1 if id(partition.raw) in primary else next(after)
        for partition in table.partitions
    ]


def _logical(groups: list[Part], number: int) -> Iterator[Part]:
    """The logical volumes of all groups that have a physical volume here."""
    devices: dict[str, list[Any]] = {}
    for part in groups:
        device = LVM2Device(part.stream)
        _read_metadata(device)
        if device.metadata:
            names = [key for key, value in device.metadata.items() if isinstance(value, dict)]
            devices.setdefault(names[0] if names else "", []).append(device)
    for held in devices.values():
        group = LVM2(held).volume_group
        for volume in [*group.logical_volumes.values()][:_MOST_VOLUMES]:
            if volume.is_visible:
                yield _logical_part(group, volume, number)
                number += 1


def _read_metadata(device: Any) -> None:
    """Read a group's description; the library does not know that it may wrap around."""
    if not device._metadata_areas:
        return
    header, places = device._metadata_areas[0]
    place = places[0]
    if place.size > _MOST_METADATA:
        raise DamagedError(f"LVM metadata of {place.size} bytes")
    room = max(0, header.size - place.offset)
    device.fh.seek(header.start + place.offset)
    text = device.fh.read(min(place.size, room))
    if place.size > room:
        device.fh.seek(header.start + _SECTOR)
        text += device.fh.read(place.size - room)
    vars(device)["metadata"] = parse_metadata(text.rstrip(b"\0").decode())


def _logical_part(group: Any, volume: Any, number: int) -> Part:
    name = f"{group.name}/{volume.name}"
    size = sum(segment.extent_count for segment in volume.segments) * group.extent_size * _SECTOR
    kinds = {segment.type for segment in volume.segments}
    stripes = {getattr(segment, "stripe_count", None) for segment in volume.segments}
    if kinds != {"striped"} or stripes != {1}:
        kind = "striped" if kinds == {"striped"} else "+".join(sorted(kinds))
        what = f"a logical volume that is {kind} cannot be read, only a linear one"
        return Part(number, name, None, size, None, f"lvm2 {kind}", what)
    try:
        return Part(number, name, None, size, volume.open())
    except OSError:
        raise
    except Exception:  # LVM2Error: a physical volume of the group is not here
        what = f"a part of the group {group.name} is on another disk"
        return Part(number, name, None, size, None, "unknown", what)


_TREES = {
    "ext": ("fleece.files.reader.ext", "ExtTree"),
    "xfs": ("fleece.files.reader.xfs", "XfsTree"),
    "ntfs": ("fleece.files.reader.ntfs", "NtfsTree"),
    "fat": ("fleece.files.reader.fat", "FatTree"),
}
"""Where each kind of file system is read; loaded when one is there."""

_OBSTACLES = {
    "luks": "is encrypted (LUKS)",
    "bitlocker": "is encrypted (BitLocker)",
    LVM: "is a physical volume; its logical volumes are listed by themselves",
    "swap": "is swap space",
    "raid": "is a part of a software RAID, which cannot be read",
    "unknown": "has no file system that is known here",
}


def type_of(volume: BinaryIO) -> str:
    """What is in a volume, by the magic words of its first bytes."""
    volume.seek(0)
    head = volume.read(_HEAD)
    marks = (
        ("luks", 0, b"LUKS\xba\xbe"),
        ("bitlocker", 3, b"-FVE-FS-"),
        ("xfs", 0, b"XFSB"),
        ("ntfs", 3, b"NTFS    "),
        ("exfat", 3, b"EXFAT   "),
        ("ext", 0x438, b"\x53\xef"),
        ("swap", 4086, b"SWAPSPACE2"),
        ("raid", 4096, b"\xfc\x4e\x2b\xa9"),
        ("fat", 54, b"FAT"),
        ("fat", 82, b"FAT32"),
    )
    for name, place, mark in marks:
        if head[place : place + len(mark)] == mark:
            return name
    if any(head[at : at + 8] == b"LABELONE" for at in range(0, 4 * _SECTOR, _SECTOR)):
        return LVM
    volume.seek(_BTRFS)
    return "btrfs" if volume.read(8) == b"_BHRfS_M" else "unknown"


def open_tree(part: Part) -> tuple[str, Tree]:
    """The file system of a volume, and its type.

    Raises:
        UnsupportedError: it has none that can be read.
    """
    if part.stream is None:
        raise UnsupportedError(part.obstacle)
    kind = type_of(part.stream)
    if kind not in _TREES:
        raise UnsupportedError(_OBSTACLES.get(kind, f"is {kind}, which cannot be read here"))
    module, name = _TREES[kind]
    make: Callable[[BinaryIO, int], Tree] = getattr(importlib.import_module(module), name)
    tree = make(part.stream, part.size)
    return tree.type, tree
