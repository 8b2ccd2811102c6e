"""What images are, and who uses them."""

from __future__ import annotations

from pathlib import Path

from fleece.cancel import CancelToken
from fleece.delta.identity import GuestIdentity
from fleece.source.image.inventory import ImageDisk, ImageInventory
from fleece.source.image.measure import told_bytes
from fleece.source.report import ExaminedBitmap, ExaminedDisk, Report
from fleece.source.segments import Bitmap
from fleece.temporary import temporary_folder


def examine(
    inventory: ImageInventory,
    guest: str,
    identity: GuestIdentity | None,
    version: str,
    cancel: CancelToken,
) -> Report:
    """Look at all images."""
    with temporary_folder() as folder:
        disks = tuple(_examined(disk, folder, cancel) for disk in inventory.disks)
    obstacles = [
        f"{disk.details['path']}: {disk.obstacle}" for disk in disks if disk.obstacle is not None
    ]
    return Report(
        "Images",
        version,
        guest,
        identity,
        "in use" if obstacles else "off",
        obstacles[0] if obstacles else None,
        (),
        disks,
    )


def _examined(disk: ImageDisk, folder: Path, cancel: CancelToken) -> ExaminedDisk:
    found = disk.writer()
    used = None if found is None else f"is in use ({found[1]})"
    keeps = disk.persistent_bitmaps and not disk.unwritable
    shown = disk.bitmaps if used is None else ()  # else its QEMU knows what they are
    return ExaminedDisk(
        disk.name,
        disk.size,
        disk.format,
        disk.path if keeps else f"{disk.path}, keeps no bitmaps: all is read each time",
        used,
        tuple(_bitmap(disk, bitmap, folder, cancel) for bitmap in shown),
        {"path": disk.path, "persistent_bitmaps": keeps},
    )


def _bitmap(disk: ImageDisk, bitmap: Bitmap, folder: Path, cancel: CancelToken) -> ExaminedBitmap:
    return ExaminedBitmap(
        bitmap.name,
        bitmap.state,
        bitmap.granularity,
        told_bytes(disk, bitmap, folder, cancel),
        {
            "recording": bitmap.recording,
            "persistent": True,
            "inconsistent": bitmap.inconsistent,
        },
    )
