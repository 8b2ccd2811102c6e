"""The inputs that the corpus began with: small deltas of every shape, whole and salvaged.

python -m tests.fuzz.seeds FOLDER
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import fleece
from fleece.delta.part import PartKind
from fleece.delta.writer import DeltaWriter
from fleece.extents import Extents
from fleece.tree import BlankDisk
from tests.unit.kit import LEAF, Change, History, header, store_history, write_delta

_HISTORIES = {
    "none": History(0, 2, ((),)),
    "leaf": History(5, 16, ((Change(0, 5, 1),),)),
    "small": History(
        3 * LEAF + 5,
        2,
        (
            (Change(0, 9, 1), Change(2 * LEAF, 3 * LEAF + 5, 2)),
            (Change(0, LEAF, 3), Change(2 * LEAF, 3 * LEAF, 0)),
        ),
    ),
}


def main(folder: Path) -> None:
    """Write the seeds into a folder."""
    head = header(1 << 40, fan_out=16)
    with (folder / "blank").open("wb") as file:
        writer = DeltaWriter(file, head, BlankDisk(head.geometry))
        writer.zero(0, head.size)
        writer.finish()
    head = dataclasses.replace(
        header(4, disk=PartKind.NVRAM.own_name, disks=("vda",)),
        part=PartKind.NVRAM,
        parts=(PartKind.NVRAM.own_name,),
    )
    with (folder / "part").open("wb") as file:
        write_delta(file, head, BlankDisk(head.geometry), b"uefi", Extents.whole(4))
    with tempfile.TemporaryDirectory() as name:
        for what, history in _HISTORIES.items():
            place = Path(name, what)
            place.mkdir()
            for number, item in enumerate(store_history(place, history, longest=1), 1):
                seed = folder / f"{what}-{number}"
                seed.write_bytes(item.path.read_bytes())
                raw = bytearray(item.path.read_bytes())
                raw[len(raw) // 2] ^= 1
                item.path.write_bytes(raw)
                saved = folder / f"{what}-{number}-salvaged"
                try:
                    fleece.salvage(str(item.path), str(saved))
                except fleece.DeltaError:
                    continue


if __name__ == "__main__":
    main(Path(sys.argv[1]))
