"""Make the golden files of format version 1. Run once; later versions must read what it made.

    python -m tests.golden.make FOLDER

The disk has 2 leaves and a tail of 512 bytes. `full.fleece` holds the first leaf as data, the
second as zeros and the tail as data; `child.fleece` zeroes the first leaf and writes the second.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

import zstandard

from fleece.delta.chain import Chain
from fleece.delta.header import Header, Mode, ParentRef, PointRef
from fleece.delta.reader import DeltaReader, leaf_hashes
from fleece.delta.writer import DeltaWriter
from fleece.tree import LEAF_SIZE, BlankDisk, NodeSource

SIZE = 2 * LEAF_SIZE + 512

PATTERN_A = b"The quick brown fox jumps over the lazy dog.\n"
PATTERN_B = b"Pack my box with five dozen liquor jugs.\n"


def text(pattern: bytes, length: int) -> bytes:
    """A pattern repeated to a length."""
    return (pattern * (length // len(pattern) + 1))[:length]


FULL_DISK = text(PATTERN_A, LEAF_SIZE) + bytes(LEAF_SIZE) + text(PATTERN_B, 512)
CHILD_DISK = bytes(LEAF_SIZE) + text(PATTERN_B, LEAF_SIZE) + FULL_DISK[2 * LEAF_SIZE :]


def _header(number: int, parent: ParentRef | None) -> Header:
    return Header(
        file_id=uuid.UUID(int=number),
        chain="c0ffee00",
        guest="golden",
        disk="vda",
        size=SIZE,
        point=PointRef(f"{number:010x}", number, "2026-11-23T00:00:00Z"),
        parent=parent,
        mode=Mode.FULL if parent is None else Mode.INCREMENTAL,
        disks=("vda",),
        level=1,
        granularity=None if parent is None else LEAF_SIZE,
        producer={"fleece": "0.1.0"},
    )


def _write(
    path: Path, head: Header, base: NodeSource, data: Mapping[int, bytes], zero: tuple[int, int]
) -> None:
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)
    with open(path, "wb") as file:
        writer = DeltaWriter(file, head, base)
        for offset, run in data.items():
            hashes = leaf_hashes(run, head.geometry)
            writer.data(offset, len(run), hashes, compressor.compress(run))
        writer.zero(*zero)
        writer.finish()


def main(folder: Path) -> None:
    """Write the golden files."""
    head = _header(1, None)
    full = folder / "full.fleece"
    tail = FULL_DISK[2 * LEAF_SIZE :]
    _write(
        full,
        head,
        BlankDisk(head.geometry),
        {0: FULL_DISK[:LEAF_SIZE], 2 * LEAF_SIZE: tail},
        (LEAF_SIZE, LEAF_SIZE),
    )
    with DeltaReader(full) as delta:
        parent = ParentRef(head.point.id, delta.footer.root.hex(), SIZE)
        _write(
            folder / "child.fleece",
            _header(2, parent),
            Chain([delta]),
            {LEAF_SIZE: CHILD_DISK[LEAF_SIZE : 2 * LEAF_SIZE]},
            (0, LEAF_SIZE),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
