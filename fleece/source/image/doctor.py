"""What images are, and who uses them."""

from __future__ import annotations

from fleece.cancel import CancelToken
from fleece.delta.identity import GuestIdentity
from fleece.source.image.inventory import ImageDisk, ImageInventory
from fleece.source.image.measure import dirty_bytes
from fleece.source.report import ExaminedBitmap, ExaminedDisk, Report
from fleece.source.segments import Bitmap


def examine(
    inventory: ImageInventory,
    guest: str,
    identity: GuestIdentity | None,
    version: str,
    cancel: CancelToken,
) -> Report:
    """Look at all images."""
    disks = tuple(_examined(disk, cancel) for disk in inventory.disks)
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


def _examined(disk: ImageDisk, cancel: CancelToken) -> ExaminedDisk:
    found = disk.writer()
    used = None if found is None else f"is in use ({found[1]})"
    keeps = disk.persistent_bitmaps and not disk.unwritable
    return ExaminedDisk(
        disk.name,
        disk.size,
        disk.format,
        disk.path if keeps else f"{disk.path}, keeps no bitmaps: all is read each time",
        used,
        tuple(_bitmap(disk, bitmap, used is None, cancel) for bitmap in disk.bitmaps),
        {"path": disk.path, "persistent_bitmaps": keeps},
    )


def _bitmap(disk: ImageDisk, bitmap: Bitmap, still: bool, cancel: CancelToken) -> ExaminedBitmap:
    readable = still and not bitmap.inconsistent
    return ExaminedBitmap(
        bitmap.name,
        bitmap.state if still else "in use",
        bitmap.granularity,
        dirty_bytes(disk, (bitmap.name,), cancel) if readable else 0,
        {
            "recording": bitmap.recording,
            "persistent": True,
            "inconsistent": still and bitmap.inconsistent,
        },
    )
