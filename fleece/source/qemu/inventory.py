"""What is in a QEMU: its disks as a backup sees them, their bitmaps, its leftovers of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fleece.errors import PointError, SourceError
from fleece.source.choice import writable
from fleece.source.qemu.answers import Answer, known
from fleece.source.qemu.monitor import CommandError, Monitor
from fleece.source.segments import Bitmap, segments_of
from fleece.source.workfolder import PREFIX

_FILTERS = ("copy-before-write", "throttle", "copy-on-read", "preallocate", "compress")
_QDEV = re.compile(r"/machine/peripheral/([^/]+)(?:/.*)?")
_STILL_TRIES = 20
"""Another backup may begin or end between two of the questions that make an inventory."""

_LARGEST_DISK = 1 << 60
_LARGEST_ID = (1 << 64) - 1
_IOTHREAD_FIXED = (8, 2, 3)


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

    def segments(self, chain_id: str) -> dict[int, Bitmap]:
        """The chain's segments on this disk, by sequence."""
        return segments_of(self.bitmaps, chain_id)


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
        why = "nothing can change on it, so no segment can follow it"
        chosen = writable(self.disks, names, why)
        self._check_unlike(chosen)
        return chosen

    def _check_unlike(self, chosen: tuple[GuestDisk, ...]) -> None:
        """Raise `PointError` if a name could mean another disk too: ids and nodes may be alike."""
        for disk in chosen:
            alike = [other.node for other in self.disks if other.name == disk.name]
            if len(alike) > 1:
                raise PointError(
                    f"{len(alike)} disks are called {disk.name} (nodes {', '.join(alike)})",
                    hint="give each device its own id=",
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
        devices = _with_medium(monitor)
        before, nodes = nodes, _nodes(monitor)
        if before.keys() == nodes.keys():
            break
    else:
        raise SourceError("QEMU's block nodes keep changing", where=monitor.path)
    block = _BlockGraph(monitor.path, nodes, graph)
    if devices:
        disks = [_device_disk(monitor, device, medium, block) for device, medium in devices]
    else:
        disks = _daemon_disks(monitor, block)
    return Inventory(guest_name(monitor), monitor.version, tuple(disks))


@dataclass(frozen=True)
class _BlockGraph:
    """QEMU's block nodes by name, and their children as `children` gives them."""

    where: str
    nodes: Mapping[str, Answer]
    below: Mapping[str, Mapping[str, str]]

    def node(self, name: str) -> Answer:
        return known(self.nodes, name, self.where)

    def is_filter(self, name: str) -> bool:
        return self.node(name).text("drv") in _FILTERS

    def below_filters(self, name: str) -> str:
        """Walk from a device's node down to the one that holds its format."""
        for _ in range(len(self.nodes)):
            if not self.is_filter(name):
                return name
            below = self.below.get(name, {})
            name = below.get("file") or known(below, "backing", self.where)
        raise self.node(name).bad("is a filter above itself")


def _nodes(monitor: Monitor) -> dict[str, Answer]:
    return monitor.execute("query-named-block-nodes").by("node-name")


def node_names(monitor: Monitor) -> list[str]:
    """The names of all block nodes."""
    return list(_nodes(monitor))


def _with_medium(monitor: Monitor) -> list[tuple[Answer, Answer]]:
    """The devices that have a medium, and what QEMU says of it."""
    devices = monitor.execute("query-block").list()
    return [(device, medium) for device in devices if (medium := device.maybe("inserted"))]


def guest_name(monitor: Monitor) -> str | None:
    """QEMU's name of its guest, if it has one."""
    try:
        name = monitor.execute("query-name").maybe("name")
    except CommandError:
        return None  # qemu-storage-daemon has no names
    return None if name is None else name.text() or None


def children(monitor: Monitor) -> dict[str, dict[str, str]]:
    """For each node, its children's names by role."""
    graph = monitor.execute("x-debug-query-block-graph")
    name = {
        node.number("id", _LARGEST_ID): node.text("name")
        for node in graph.list("nodes")
        if node.text("type") == "block-driver"
    }
    found: dict[str, dict[str, str]] = {}
    for edge in graph.list("edges"):
        parent, child = edge.number("parent", _LARGEST_ID), edge.number("child", _LARGEST_ID)
        if parent in name and child in name:
            found.setdefault(name[parent], {})[edge.text("name")] = name[child]
    return found


def plugged(monitor: Monitor) -> dict[str, str]:
    """For each device with a medium, by its path or id, the node that is plugged in."""
    return {
        qdev: medium.text("node-name")
        for device, medium in _with_medium(monitor)
        if (qdev := _text_or_none(device, "qdev"))
    }


def _text_or_none(answer: Answer, key: str) -> str | None:
    found = answer.maybe(key)
    return None if found is None else found.text()


def error_of(job: Answer) -> str | None:
    """The error that a job (QAPI `JobInfo`) has failed with; None: none yet."""
    return _text_or_none(job, "error")


def bitmaps_of(node: Answer) -> tuple[Bitmap, ...]:
    """The bitmaps of a block node (QAPI `BlockDeviceInfo`) that have a name."""
    found = node.maybe("dirty-bitmaps")
    listed = [] if found is None else found.list()
    return tuple(_bitmap(raw) for raw in listed if _text_or_none(raw, "name"))


def _device_disk(monitor: Monitor, device: Answer, medium: Answer, block: _BlockGraph) -> GuestDisk:
    name = block.below_filters(medium.text("node-name"))
    node = block.node(name)
    qdev = _text_or_none(device, "qdev") or ""
    found = _QDEV.match(qdev)
    named_node = name if not name.startswith("#") else ""
    shown = (found and found[1]) or named_node or _text_or_none(device, "device") or qdev
    if not shown:
        raise SourceError(
            "QEMU has a disk without any name", where=monitor.path, hint="give its device an id="
        )
    read_only = medium.flag("ro") or node.flag("ro")
    return _disk(shown, node, read_only, _iothread(monitor, qdev), qdev or None)


def _daemon_disks(monitor: Monitor, block: _BlockGraph) -> list[GuestDisk]:
    """qemu-storage-daemon has no devices: its disks are the named nodes that nothing is above."""
    lower = {
        child
        for parent, below in block.below.items()
        if not parent.startswith(PREFIX) and not block.is_filter(parent)
        for child in below.values()
    }
    tops = [
        name
        for name in block.nodes
        if name not in lower and not name.startswith(("#", PREFIX)) and not block.is_filter(name)
    ]
    iothread = _daemon_iothread(monitor)
    shown = [(name, block.node(name)) for name in sorted(tops)]
    return [_disk(name, node, node.flag("ro"), iothread) for name, node in shown]


def _disk(
    name: str,
    node: Answer,
    read_only: bool,
    iothread: str | None,
    device: str | None = None,
) -> GuestDisk:
    image = node.part("image")
    driver = node.text("drv")
    return GuestDisk(
        name=name,
        node=node.text("node-name"),
        size=image.number("virtual-size", _LARGEST_DISK),
        format=driver,
        read_only=read_only,
        persistent_bitmaps=driver == "qcow2" and _compat(image) == "1.1",
        iothread=iothread,
        bitmaps=bitmaps_of(node),
        device=device,
    )


def _compat(image: Answer) -> str | None:
    """The version of a qcow2 image (QAPI `ImageInfo`)."""
    specific = image.maybe("format-specific")
    data = None if specific is None else specific.maybe("data")
    return None if data is None else _text_or_none(data, "compat")


def _bitmap(raw: Answer) -> Bitmap:
    inconsistent = raw.maybe("inconsistent")
    return Bitmap(
        name=raw.text("name"),
        granularity=raw.number("granularity"),
        count=raw.number("count"),
        recording=raw.flag("recording"),
        busy=raw.flag("busy"),
        persistent=raw.flag("persistent"),
        inconsistent=inconsistent is not None and inconsistent.flag(),
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
    for item in objects.list():
        if item.text("type") == "child<iothread>":
            return f"/objects/{item.text('name')}"
    return None


def _property(monitor: Monitor, path: str, name: str) -> str | None:
    try:
        found = monitor.execute("qom-get", {"path": path, "property": name})
    except CommandError:
        return None
    return found.text()
