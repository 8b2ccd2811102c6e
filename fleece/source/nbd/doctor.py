"""What servers say of their exports."""

from __future__ import annotations

from fleece.cancel import CancelToken
from fleece.disk.nbd import NbdDisk
from fleece.extents import Extents
from fleece.nbd.connection import BASE_ALLOCATION, DIRTY_BITMAP, Connection
from fleece.nbd.offered import offered_contexts
from fleece.source.nbd.held import HeldExports
from fleece.source.nbd.inventory import NbdInventory, ServedDisk
from fleece.source.report import Ability, ExaminedBitmap, ExaminedDisk, Report


def examine(inventory: NbdInventory, held: HeldExports, cancel: CancelToken) -> Report:
    """Look at all exports."""
    servers = [held.look(disk.place) for disk in inventory.disks]
    offered = [offered_contexts(disk.place.uri, cancel) for disk in inventory.disks]
    return Report(
        "NBD",
        servers[0].protocol,
        None,
        None,
        "served writable" if any(disk.writable for disk in inventory.disks) else "served read-only",
        None,
        _abilities(servers, offered),
        tuple(
            _examined(disk, contexts, cancel)
            for disk, contexts in zip(inventory.disks, offered, strict=True)
        ),
        tuple(
            f"disk {disk.name} can be written by clients: serve it read-only, so that it is of one "
            "moment"
            for disk in inventory.disks
            if disk.writable
        ),
    )


def _abilities(servers: list[Connection], offered: list[tuple[str, ...]]) -> tuple[Ability, ...]:
    """What all of them can do."""
    zeros = all(BASE_ALLOCATION in contexts for contexts in offered)
    bitmaps = all(any(map(_is_bitmap, contexts)) for contexts in offered)
    structured = all(server.structured for server in servers)
    return (
        Ability("structured_replies", "structured replies", structured),
        Ability("zeros", "tells zeros, so that they are not read (base:allocation)", zeros),
        Ability("bitmaps", "has a dirty bitmap, for --bitmap with --since", bitmaps),
    )


def _is_bitmap(context: str) -> bool:
    return context.startswith(DIRTY_BITMAP)


def _examined(disk: ServedDisk, contexts: tuple[str, ...], cancel: CancelToken) -> ExaminedDisk:
    export = NbdDisk(disk.place.uri, cancel=cancel)
    return ExaminedDisk(
        disk.name,
        disk.size,
        "raw",
        disk.place.uri,
        None,
        tuple(_bitmap(export, context) for context in filter(_is_bitmap, contexts)),
        {
            "uri": disk.place.uri,
            "read_only": not disk.writable,
            "contexts": ", ".join(contexts),
        },
    )


def _bitmap(export: NbdDisk, context: str) -> ExaminedBitmap:
    dirty = export.dirty_extents(context, Extents.whole(export.size)) or Extents.empty()
    return ExaminedBitmap(context.removeprefix(DIRTY_BITMAP), "served", None, dirty.total, {})
