"""What is in a QEMU: its disks as a backup sees them, their bitmaps, its leftovers of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleece.errors import PointError, SourceError, UsageError
from fleece.source.qemu.monitor import CommandError, Monitor
from fleece.source.qemu.names import PREFIX, Segment

_FILTERS = ("copy-before-write", "throttle", "copy-on-read", "preallocate", "compress")
_QDEV = re.compile(r"/machine/peripheral/([^/]+)(?:/.*)?")
_STILL_TRIES = 20
"""Another backup may begin or end between two of the questions that make an inventory."""

_IOTHREAD_FIXED = (8, 2, 3)


@dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap as QEMU reports it (QAPI `BlockDirtyInfo`).

    Attributes:
        granularity: bytes of disk per bit.
        count: dirty bytes.
        recording: it records new writes.
        busy: some operation holds it.
        persistent: it is stored in the image when QEMU ends.
        inconsistent: it was not stored properly; it can only be removed.
    """

    name: str
    granularity: int
    count: int
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool

    @property
    def state(self) -> str:
        """One word for people."""
        if self.inconsistent:
            return "inconsistent"
        if self.busy:
            return "busy"
        return "recording" if self.recording else "disabled"

    @property
    def segment(self) -> Segment | None:
        """The segment that it is, if it is one of ours."""
        return Segment.parse(self.name)


@dataclass(frozen=True)
class GuestDisk:
    """A disk of the guest.

    Attributes:
        name: stable over restarts: the device's id, else the node's name, else the drive's.
        node: the node that holds the disk's format; bitmaps and the job go there.
        size: in bytes.
        format: the node's driver.
        read_only: the guest cannot write it.
        persistent_bitmaps: the format stores bitmaps (qcow2 version 3).
        iothread: the path of the iothread that serves it, if one does.
        bitmaps: on the node.
        device: the path or id of the device that it is plugged into, as `qom-set` takes it; None:
            it has none (qemu-storage-daemon).
    """

    name: str
    node: str
    size: int
    format: str
    read_only: bool
    persistent_bitmaps: bool
    iothread: str | None
    bitmaps: tuple[Bitmap, ...]
    device: str | None = None

    def segments(self, chain: str) -> dict[int, Bitmap]:
        """The chain's segments on this disk, by sequence."""
        found = ((bitmap.segment, bitmap) for bitmap in self.bitmaps)
        return {seg.sequence: bitmap for seg, bitmap in found if seg and seg.chain == chain}


@dataclass(frozen=True)
class Inventory:
    """What was found.

    Attributes:
        guest: QEMU's name, if it has one.
        version: QEMU's version.
        disks: all disks with a medium, in QEMU's order.
    """

    guest: str | None
    version: tuple[int, int, int]
    disks: tuple[GuestDisk, ...]

    def choose(self, names: tuple[str, ...]) -> tuple[GuestDisk, ...]:
        """The disks of these names, or all that are writable.

        Raises:
            UsageError: a name is given twice.
            PointError: there is no such disk, or it is read-only, or there is none at all; or two
                are called alike.
        """
        if len(set(names)) != len(names):
            raise UsageError("a disk is named twice")
        known = {disk.name: disk for disk in self.disks}
        for name in names:
            if name not in known:
                there = ", ".join(known) or "none"
                raise PointError(f"there is no disk {name}", hint=f"the disks are: {there}")
            if known[name].read_only:
                raise PointError(
                    f"disk {name} is read-only: nothing can change on it, so no "
                    "segment can follow it",
                    hint="leave it out",
                )
        chosen = tuple(known[name] for name in names) or tuple(
            disk for disk in self.disks if not disk.read_only
        )
        if not chosen:
            raise PointError("the guest has no writable disk")
        self._check_unlike(chosen)
        return chosen

    def _check_unlike(self, chosen: tuple[GuestDisk, ...]) -> None:
        """Raise `PointError` if a name could mean another disk too: ids and nodes may be alike."""
        for disk in chosen:
            alike = [other.node for other in self.disks if other.name == disk.name]
            if len(alike) > 1:
                raise PointError(
                    f"{len(alike)} disks are called {disk.name} (nodes {', '.join(alike)})",
                    hint="give each device an id= of its own",
                )


def pull_obstacle(disk: GuestDisk, version: tuple[int, int, int]) -> str | None:
    """Why a disk must not be pulled over NBD from this QEMU; None: it may.

    A QEMU before 8.2.3 aborts, and the guest with it, when an NBD client of a disk with an
    iothread disconnects (`nbd_blockdev_client_closed`, seen on 7.2).
    """
    if disk.iothread is None or version >= _IOTHREAD_FIXED:
        return None
    number = ".".join(map(str, version))
    return (
        f"it is served by an iothread ({disk.iothread}), and QEMU {number} aborts when an NBD "
        "client of such a disk disconnects; QEMU 8.2.3 mended that"
    )


def take_inventory(monitor: Monitor) -> Inventory:
    """Ask QEMU for all of it."""
    nodes = _nodes(monitor)
    for _ in range(_STILL_TRIES):
        graph = children(monitor)
        devices = [device for device in monitor.execute("query-block") if device.get("inserted")]
        before, nodes = nodes, _nodes(monitor)
        if before.keys() == nodes.keys():
            break
    else:
        raise SourceError("QEMU's block nodes change all the while", where=monitor.path)
    if devices:
        disks = [_device_disk(monitor, device, nodes, graph) for device in devices]
    else:
        disks = _daemon_disks(monitor, nodes, graph)
    return Inventory(guest_name(monitor), monitor.version, tuple(disks))


def _nodes(monitor: Monitor) -> dict[str, Any]:
    return {node["node-name"]: node for node in monitor.execute("query-named-block-nodes")}


def guest_name(monitor: Monitor) -> str | None:
    """QEMU's name of its guest, if it has one."""
    try:
        return monitor.execute("query-name").get("name") or None
    except CommandError:
        return None  # qemu-storage-daemon has no names


def children(monitor: Monitor) -> dict[str, dict[str, str]]:
    """For each node, its children's names by role."""
    graph: Mapping[str, Any] = monitor.execute("x-debug-query-block-graph")
    name = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
    found: dict[str, dict[str, str]] = {}
    for edge in graph["edges"]:
        if edge["parent"] in name and edge["child"] in name:
            found.setdefault(name[edge["parent"]], {})[edge["name"]] = name[edge["child"]]
    return found


def plugged(monitor: Monitor) -> dict[str, str]:
    """For each device with a medium, by its path or id, the node that is plugged in."""
    return {
        item["qdev"]: item["inserted"]["node-name"]
        for item in monitor.execute("query-block")
        if item.get("inserted") and item.get("qdev")
    }


def _below_filters(node: str, nodes: Mapping[str, Any], graph: dict[str, dict[str, str]]) -> str:
    """Walk from a device's node down to the one that holds its format."""
    while nodes[node]["drv"] in _FILTERS:
        below = graph.get(node, {})
        node = below.get("file") or below["backing"]
    return node


def _device_disk(
    monitor: Monitor,
    device: Mapping[str, Any],
    nodes: Mapping[str, Any],
    graph: dict[str, dict[str, str]],
) -> GuestDisk:
    node = _below_filters(device["inserted"]["node-name"], nodes, graph)
    qdev = device.get("qdev") or ""
    found = _QDEV.match(qdev)
    named_node = node if not node.startswith("#") else ""
    name = (found and found[1]) or named_node or device.get("device") or qdev
    if not name:
        raise SourceError(
            "QEMU has a disk without any name", where=monitor.path, hint="give its device an id="
        )
    read_only = bool(device["inserted"]["ro"]) or bool(nodes[node]["ro"])
    return _disk(name, nodes[node], read_only, _iothread(monitor, qdev), qdev or None)


def _daemon_disks(
    monitor: Monitor, nodes: Mapping[str, Any], graph: dict[str, dict[str, str]]
) -> list[GuestDisk]:
    """qemu-storage-daemon has no devices: its disks are the named nodes that nothing is above."""
    lower = {
        child
        for parent, below in graph.items()
        if nodes[parent]["drv"] not in _FILTERS and not parent.startswith(PREFIX)
        for child in below.values()
    }
    tops = [
        name
        for name, node in nodes.items()
        if name not in lower and not name.startswith(("#", PREFIX)) and node["drv"] not in _FILTERS
    ]
    iothread = _daemon_iothread(monitor)
    return [_disk(name, nodes[name], bool(nodes[name]["ro"]), iothread) for name in sorted(tops)]


def _disk(
    name: str,
    node: Mapping[str, Any],
    read_only: bool,
    iothread: str | None,
    device: str | None = None,
) -> GuestDisk:
    image = node["image"]
    compat = image.get("format-specific", {}).get("data", {}).get("compat")
    return GuestDisk(
        name=name,
        node=node["node-name"],
        size=int(image["virtual-size"]),
        format=node["drv"],
        read_only=read_only,
        persistent_bitmaps=node["drv"] == "qcow2" and compat == "1.1",
        iothread=iothread,
        bitmaps=tuple(_bitmap(raw) for raw in node.get("dirty-bitmaps", []) if raw.get("name")),
        device=device,
    )


def _bitmap(raw: Mapping[str, Any]) -> Bitmap:
    return Bitmap(
        name=raw["name"],
        granularity=raw["granularity"],
        count=raw["count"],
        recording=raw["recording"],
        busy=raw["busy"],
        persistent=raw["persistent"],
        inconsistent=raw.get("inconsistent", False),
    )


def _iothread(monitor: Monitor, qdev: str) -> str | None:
    """The iothread of a device, or of the SCSI controller that it hangs on."""
    if not qdev:
        return None
    path = _property(monitor, qdev, "iothread")
    if path is not None:
        return path or None
    bus = _property(monitor, qdev, "parent_bus")
    if not bus:
        return None
    return _property(monitor, bus.rsplit("/", 1)[0], "iothread") or None


def _daemon_iothread(monitor: Monitor) -> str | None:
    """Any iothread object of qemu-storage-daemon: it does not say what an iothread serves."""
    try:
        objects = monitor.execute("qom-list", {"path": "/objects"})
    except CommandError:
        return None  # the path appears with the first object
    for item in objects:
        if item["type"] == "child<iothread>":
            return f"/objects/{item['name']}"
    return None


def _property(monitor: Monitor, path: str, name: str) -> str | None:
    try:
        return str(monitor.execute("qom-get", {"path": path, "property": name}))
    except CommandError:
        return None
