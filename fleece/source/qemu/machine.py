"""The machine of a QEMU, as far as QMP tells it: what a person needs who starts one like it.

Nothing is in it that changes while the guest runs: no counters, no addresses that a guest's
firmware gives, no threads. It is told by properties of QEMU's object model, of which those are
asked for that the user may have given on QEMU's command line (qom-list-properties, qdev).
"""

from __future__ import annotations

import json
import re

from fleece.delta.part import Part, PartKind
from fleece.errors import SourceError
from fleece.source.base import Machine
from fleece.source.qemu.answers import Answer
from fleece.source.qemu.inventory import GuestDisk, take_inventory
from fleece.source.qemu.monitor import CommandError, Monitor

_OF_MACHINE = ("firmware", "kernel", "initrd", "append", "smm")
_OF_DEVICE = ("addr", "bootindex", "chardev", "mac", "netdev", "parent_bus", "serial")
_NOT_GIVEN = (None, "", -1)
_NO_UUID = "00000000-0000-0000-0000-000000000000"
_CHILD = re.compile(r"child<(.+)>")
_PERIPHERALS = ("/machine/peripheral", "/machine/peripheral-anon")


def machine_of(monitor: Monitor) -> Machine:
    """What QMP tells of the machine, as it is now; of qemu-storage-daemon, which has none: nothing.

    The state of a TPM is in swtpm's files, and QMP does not tell where these are.
    """
    try:
        if not monitor.execute("qom-list", {"path": "/machine"}).list():
            return Machine(())
    except CommandError:
        return Machine(())
    except SourceError as error:
        return Machine((), (f"{PartKind.QEMU}: {error}",))
    try:
        told = json.dumps(_told(monitor), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        missing = [_MISSING_TPM] if monitor.execute("query-tpm").list() else []
    except SourceError as error:
        return Machine((), (f"{PartKind.QEMU}: {error}",))
    return Machine((Part(PartKind.QEMU, told.encode()),), missing)


_MISSING_TPM = f"{PartKind.TPM}: QMP does not tell where swtpm keeps its state"


def _told(monitor: Monitor) -> dict[str, object]:
    name = monitor.execute("query-name").maybe("name")
    uuid = monitor.execute("query-uuid").text("UUID")
    memory = monitor.execute("query-memory-size-summary")
    own = {each: _property(monitor, "/machine", each) for each in _OF_MACHINE}
    return {
        "name": None if name is None else name.text(),
        "uuid": None if uuid == _NO_UUID else uuid,
        "machine": str(_property(monitor, "/machine", "type")).removesuffix("-machine"),
        "kvm": monitor.execute("query-kvm").flag("enabled"),
        "memory": memory.number("base-memory"),
        "cpus": _cpus(monitor),
        "settings": {key: value for key, value in own.items() if value not in _NOT_GIVEN},
        "drives": _drives(monitor),
        "devices": _devices(monitor),
    }


def _cpus(monitor: Monitor) -> dict[str, object]:
    found = monitor.execute("query-cpus-fast").list()
    paths = sorted(each.text("qom-path") for each in found)
    kind = _property(monitor, paths[0], "type") if paths else None
    target = found[0].text("target") if found else None
    return {"count": len(found), "type": kind, "target": target}


def _drives(monitor: Monitor) -> list[dict[str, object]]:
    """Every drive with a medium, disk or not, below what holds a point."""
    nodes = monitor.execute("query-named-block-nodes").by("node-name")
    return [
        {
            "name": disk.name,
            "node": None if disk.node.startswith("#") else disk.node,
            "device": disk.device,
            "driver": _driver(monitor, disk),
            "format": disk.format,
            "file": _file(nodes.get(disk.node)),
            "size": disk.size,
            "read_only": disk.read_only,
        }
        for disk in take_inventory(monitor).disks
    ]


def _file(node: Answer | None) -> str | None:
    told = None if node is None else node.maybe("file")
    return None if told is None else told.text()


def _driver(monitor: Monitor, disk: GuestDisk) -> object:
    """The device that a disk is plugged into; of virtio, the one that has the disk within it."""
    if disk.device is None:
        return None
    return _property(monitor, disk.device.removesuffix("/virtio-backend"), "type")


def _devices(monitor: Monitor) -> list[dict[str, object]]:
    """The devices that were added to what the machine has by itself, with what they were given."""
    found: list[dict[str, object]] = []
    for place in _PERIPHERALS:
        for name, driver in sorted(_children(monitor, place)):
            path = f"{place}/{name}"
            there = {each.text("name") for each in _listed(monitor, path)}
            given = {key: _property(monitor, path, key) for key in _OF_DEVICE if key in there}
            given = {key: value for key, value in given.items() if value not in _NOT_GIVEN}
            found.append({"path": path, "driver": driver, "properties": given})
    return found


def _children(monitor: Monitor, path: str) -> list[tuple[str, str]]:
    found = [(e.text("name"), _CHILD.fullmatch(e.text("type"))) for e in _listed(monitor, path)]
    return [(name, child[1]) for name, child in found if child is not None]


def _listed(monitor: Monitor, path: str) -> list[Answer]:
    return monitor.execute("qom-list", {"path": path}).list()


def _property(monitor: Monitor, path: str, name: str) -> str | int | bool | None:
    """A simple property; None: there is none of that name."""
    try:
        return monitor.execute("qom-get", {"path": path, "property": name}).simple()
    except CommandError:
        return None
