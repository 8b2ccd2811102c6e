"""What a machine is, as far as a plain QEMU can be made like it: told by what a point has of it.

All of it comes from a store, and becomes words of a command line: so it is numbers, and names that
are matched before they are used.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element

from fleece.delta.part import PartKind
from fleece.errors import StoreError
from fleece.machine.domain import own_uuid, tpm_version
from fleece.machine.xml import believed

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_MIB = 1 << 20
_MOST_MIB = 16 << 20
_MOST_PROCESSORS = 4096
_UNITS = {"b": 1, "bytes": 1, "kb": 1000, "k": 1024, "kib": 1024, "mb": 10**6, "m": _MIB}
_UNITS |= {"mib": _MIB, "gb": 10**9, "g": 1 << 30, "gib": 1 << 30, "tb": 10**12, "t": 1 << 40}
_UNITS |= {"tib": 1 << 40}

FLASH = "flash"
"""Where UEFI has its variables: no bus."""
BUSES = ("virtio", "sata", "scsi", "nvme", "ide")
_FLASH = "cfi.pflash01"
_DRIVERS = {
    "virtio-blk": "virtio",
    "scsi-": "scsi",
    "nvme": "nvme",
    "ide-": "ide",
    _FLASH: FLASH,
}
"""How QEMU's names of devices begin, and the bus that each is on."""


@dataclass(frozen=True)
class Card:
    """A network card: its model, and its address if that is known."""

    model: str
    mac: str | None


@dataclass(frozen=True)
class Shape:
    """A machine. What is not known is None, or empty.

    Attributes:
        machine: QEMU's name of it, like pc-q35-7.2.
        arch: of its processor.
        memory: in MiB.
        processors: how many.
        uefi: it starts by UEFI.
        secure: by one that checks signatures.
        loader: the firmware's file, where it was.
        buses: of its disks, by name.
        cards: its network cards.
        tpm: the version of its TPM.
        uuid: its own.
    """

    machine: str | None = None
    arch: str = "x86_64"
    memory: int | None = None
    processors: int | None = None
    uefi: bool = False
    secure: bool = False
    loader: str | None = None
    buses: Mapping[str, str] = field(default_factory=dict)
    cards: tuple[Card, ...] = ()
    tpm: str | None = None
    uuid: str | None = None

    @property
    def has_flash(self) -> bool:
        """Whether the variables of its UEFI are one of its disks."""
        return FLASH in self.buses.values()


def shape_of(parts: Mapping[PartKind, bytes], where: str) -> Shape | None:
    """What the parts of a point tell of its machine; None: nothing.

    Raises:
        StoreError: a part is not what it says.
    """
    if PartKind.LIBVIRT_XML in parts:
        return shape_of_domain(believed(parts[PartKind.LIBVIRT_XML], where))
    if PartKind.QEMU in parts:
        return shape_of_qemu(parts[PartKind.QEMU], where)
    return None


def shape_of_domain(root: Element) -> Shape:
    """What libvirt's definition tells."""
    system = root.find("os/type")
    loader = root.find("os/loader")
    flash = loader is not None and loader.get("type") == "pflash"
    buses = {}
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("bus") in BUSES:
            buses[target.get("dev", "")] = target.get("bus", "")
    return Shape(
        machine=_named(None if system is None else system.get("machine")),
        arch=_named(None if system is None else system.get("arch")) or "x86_64",
        memory=_mebibytes(root.find("memory")),
        processors=_count(root.findtext("vcpu"), _MOST_PROCESSORS),
        uefi=flash or root.find("os[@firmware='efi']") is not None,
        secure=loader is not None and loader.get("secure") == "yes",
        loader=None if loader is None or not flash else (loader.text or "").strip() or None,
        buses=buses,
        cards=tuple(_card(card) for card in root.iterfind("devices/interface")),
        tpm=tpm_version(root),
        uuid=own_uuid(root),
    )


def _card(card: Element) -> Card:
    model, mac = card.find("model"), card.find("mac")
    kind = _named(None if model is None else model.get("type")) or "virtio"
    address = None if mac is None else mac.get("address", "")
    return Card(kind, address if address and _MAC.fullmatch(address) else None)


def _named(text: object) -> str | None:
    return text if isinstance(text, str) and _NAME.fullmatch(text) else None


def _count(text: object, most: int) -> int | None:
    words = str(text).strip() if text is not None else ""
    if not words.isdecimal() or len(words) > 20:
        return None
    return int(words) if 0 < int(words) <= most else None


def _mebibytes(memory: Element | None) -> int | None:
    if memory is None:
        return None
    unit = _UNITS.get(memory.get("unit", "KiB").lower())
    number = _count(memory.text, 1 << 60)
    if unit is None or number is None:
        return None
    return _mebibytes_of(number * unit)


# ---- what QMP told -------------------------------------------------------------------------------


def shape_of_qemu(data: bytes, where: str) -> Shape:
    """What QEMU's monitor told (`fleece.source.qemu.machine`).

    Raises:
        StoreError: it is no JSON.
    """
    try:
        told = _mapping(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"is no JSON ({error})", where=where) from error
    cpus = _mapping(told.get("cpus"))
    drives = [_mapping(drive) for drive in _list(told.get("drives"))]
    devices = [_mapping(device) for device in _list(told.get("devices"))]
    codes = [str(drive["file"]) for drive in drives if _is_firmware(drive)]
    memory = told.get("memory")
    return Shape(
        machine=_named(told.get("machine")),
        arch=_named(cpus.get("target")) or "x86_64",
        memory=_mebibytes_of(memory) if isinstance(memory, int) else None,
        processors=_count(cpus.get("count"), _MOST_PROCESSORS),
        uefi=bool(codes),
        loader=codes[0] if codes else None,
        buses={str(drive.get("name")): _bus(str(drive.get("driver"))) for drive in drives},
        cards=tuple(_qemu_card(device) for device in devices if "mac" in _given(device)),
        tpm="2.0" if any(str(each.get("driver")).startswith("tpm-") for each in devices) else None,
        uuid=_uuid(told.get("uuid")),
    )


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _list(found: object) -> list[Any]:
    return found if isinstance(found, list) else []


def _given(device: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(device.get("properties"))


def _is_firmware(drive: Mapping[str, Any]) -> bool:
    """Whether a drive is the code of a UEFI, and not its variables or a disk."""
    driver, file = drive.get("driver"), drive.get("file")
    return driver == _FLASH and drive.get("read_only") is True and isinstance(file, str)


def _bus(driver: str) -> str:
    return next((bus for start, bus in _DRIVERS.items() if driver.startswith(start)), BUSES[0])


def _qemu_card(device: Mapping[str, Any]) -> Card:
    driver, mac = str(device.get("driver")), _given(device)["mac"]
    model = next((each for each in ("e1000e", "e1000", "rtl8139") if each == driver), "virtio")
    return Card(model, mac if isinstance(mac, str) and _MAC.fullmatch(mac) else None)


def _mebibytes_of(number: int) -> int | None:
    return min(max(1, number // _MIB), _MOST_MIB) if number > 0 else None


def _uuid(text: object) -> str | None:
    try:
        return str(uuid.UUID(text)) if isinstance(text, str) else None
    except ValueError:
        return None
