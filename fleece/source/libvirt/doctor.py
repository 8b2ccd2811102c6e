"""Examine a guest of libvirt's: what libvirt can do, and what the guest has."""

from __future__ import annotations

from pathlib import Path

from fleece.source.libvirt.confinement import confinement
from fleece.source.libvirt.domain import Domain, version_text
from fleece.source.libvirt.identity import identity_of
from fleece.source.libvirt.inventory import (
    LibvirtDisk,
    LibvirtInventory,
    lost_client_kills,
    passed_through,
    take_inventory,
)
from fleece.source.libvirt.point import GRANULARITY
from fleece.source.libvirt.xml import Checkpoint
from fleece.source.report import Ability, ExaminedBitmap, ExaminedDisk, Report

_BACKUPS_SINCE = 7_006_000
"""From this libvirt on a guest's bitmaps are on without being asked for."""


def examine(domain: Domain, refusal: str | None, scratch: Path) -> Report:
    """Ask libvirt for all that matters to a backup.

    Args:
        domain: the guest.
        refusal: why no point can be taken now.
        scratch: the folder for scratch files.
    """
    libvirt, qemu = domain.versions()
    active, definition = domain.is_active(), domain.definition()
    inventory = take_inventory(domain) if active else LibvirtInventory(())
    found = [told for name in domain.checkpoints() if (told := domain.checkpoint(name)) is not None]
    return Report(
        "libvirt",
        f"{version_text(libvirt)} (QEMU {version_text(qemu)})",
        domain.name,
        identity_of(domain),
        domain.state().value if active else None,
        refusal,
        (Ability("backup-begin", "incremental backups", libvirt >= _BACKUPS_SINCE),),
        tuple(_examined(disk, found, qemu) for disk in inventory.disks),
        (*confinement(domain.capabilities(), definition, scratch), *passed_through(definition)),
    )


def _examined(disk: LibvirtDisk, found: list[Checkpoint], qemu: int) -> ExaminedDisk:
    obstacle = disk.unfit
    if disk.read_only:
        obstacle = "it is read-only"
    elif lost_client_kills(disk, qemu):
        obstacle = (
            f"an iothread serves it, and QEMU {version_text(qemu)} ends when a client is lost; "
            "libvirt writes it into files first"
        )
    return ExaminedDisk(
        disk.name,
        disk.size,
        disk.format,
        disk.place,
        obstacle,
        tuple(_bitmap(told, disk.name) for told in found if disk.name in told.images),
        {"persistent_bitmaps": disk.keeps_bitmaps},
    )


def _bitmap(told: Checkpoint, disk: str) -> ExaminedBitmap:
    whole = disk in told.sizes
    return ExaminedBitmap(
        told.name,
        "recording" if whole else "inconsistent",
        GRANULARITY,
        told.sizes.get(disk, 0),
        {"recording": whole, "busy": False, "persistent": True, "inconsistent": not whole},
    )
