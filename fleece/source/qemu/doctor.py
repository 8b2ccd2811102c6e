"""Examine a QEMU: what it can do, by its own schema, and what it has."""

from __future__ import annotations

from fleece.source.qemu.inventory import GuestDisk, pull_obstacle, take_inventory
from fleece.source.qemu.monitor import Monitor
from fleece.source.qemu.presence import absence, guest_identity, leaving, without_disks
from fleece.source.qemu.schema import Schema
from fleece.source.qemu.teardown import run_state
from fleece.source.report import Ability, ExaminedBitmap, ExaminedDisk, Report
from fleece.source.segments import Bitmap

_COMMANDS = {
    "transaction": "several disks at one point in time",
    "blockdev-backup": "fleecing by a backup job",
    "block-export-add": "exports with dirty bitmaps",
    "block-dirty-bitmap-merge": "dirty bitmaps that can be merged",
    "qom-set": "a filter put in below a running device",
}
_DRIVERS = {
    "copy-before-write": "the copy-before-write filter",
    "snapshot-access": "exports of a filter's snapshot",
}


def examine(monitor: Monitor, guest: str) -> Report:
    """Ask a QEMU for all that matters to a backup (`query-qmp-schema`, never the version alone)."""
    schema = Schema(monitor)
    inventory = take_inventory(monitor)
    abilities = [Ability(name, what, name in schema.commands) for name, what in _COMMANDS.items()]
    abilities += [Ability(name, what, name in schema.drivers) for name, what in _DRIVERS.items()]
    devices = any(disk.device is not None for disk in inventory.disks)
    able = devices and schema.filter_lack() is None
    abilities.append(Ability("fleecing-filter", "backup --fleecing filter", able))
    return Report(
        "QEMU",
        ".".join(map(str, inventory.version)),
        guest,
        guest_identity(monitor),
        run_state(monitor),
        absence(monitor) or without_disks(monitor) or leaving(monitor),
        tuple(abilities),
        tuple(_examined(disk, inventory.version) for disk in inventory.disks),
    )


def _examined(disk: GuestDisk, version: tuple[int, int, int]) -> ExaminedDisk:
    return ExaminedDisk(
        disk.name,
        disk.size,
        disk.format,
        f"node {disk.node}",
        "it is read-only" if disk.read_only else pull_obstacle(disk, version),
        tuple(_examined_bitmap(bitmap) for bitmap in disk.bitmaps),
        {"node": disk.node, "persistent_bitmaps": disk.persistent_bitmaps},
    )


def _examined_bitmap(bitmap: Bitmap) -> ExaminedBitmap:
    details = {
        "recording": bitmap.recording,
        "busy": bitmap.busy,
        "persistent": bitmap.persistent,
        "inconsistent": bitmap.inconsistent,
    }
    return ExaminedBitmap(bitmap.name, bitmap.state, bitmap.granularity, bitmap.count, details)
