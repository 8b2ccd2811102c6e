"""Examine a QEMU: what it can do, by its own schema, and what it has."""

from __future__ import annotations

from dataclasses import dataclass

from fleece.delta.identity import GuestIdentity
from fleece.source.qemu.inventory import GuestDisk, pull_obstacle, take_inventory
from fleece.source.qemu.monitor import Monitor
from fleece.source.qemu.presence import absence, guest_identity, leaving, without_disks
from fleece.source.qemu.schema import Schema
from fleece.source.qemu.teardown import run_state


@dataclass(frozen=True)
class Ability:
    """Something that a QEMU can do or not."""

    name: str
    what: str
    present: bool


@dataclass(frozen=True)
class ExaminedDisk:
    """A disk, and why it cannot be pulled (None: it can)."""

    disk: GuestDisk
    obstacle: str | None


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        version: QEMU's.
        guest: its name.
        identity: what tells it from others of its name; None: nothing does.
        state: QEMU's run state; None: it runs no guest (qemu-storage-daemon).
        refusal: why no point can be taken now; None: one can.
        abilities: what it can do.
        disks: those that it has.
    """

    version: str
    guest: str
    identity: GuestIdentity | None
    state: str | None
    refusal: str | None
    abilities: tuple[Ability, ...]
    disks: tuple[ExaminedDisk, ...]


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
    disks = tuple(
        ExaminedDisk(
            disk, "it is read-only" if disk.read_only else pull_obstacle(disk, inventory.version)
        )
        for disk in inventory.disks
    )
    return Report(
        ".".join(map(str, inventory.version)),
        guest,
        guest_identity(monitor),
        run_state(monitor),
        absence(monitor) or without_disks(monitor) or leaving(monitor),
        tuple(abilities),
        disks,
    )
