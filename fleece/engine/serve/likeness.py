"""What a throw-away machine has of the guest's own, by what the point tells of that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fleece.delta.part import PartKind
from fleece.engine.work.part import parts
from fleece.machine.firmware import Firmware, choose_firmware
from fleece.machine.shape import shape_of
from fleece.store.store import Store

_MEMORY, _PROCESSORS = 1024, 2
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Likeness:
    """What is known of the guest's own machine.

    Attributes:
        memory: in MiB, no more than half of what the host has left.
        processors: how many, no more than the host has.
        buses: of the disks, by name.
        firmware: a UEFI like its own; None: it has none, or this host has not.
        variables: of that.
        lacking: what the host lacks, a line each.
    """

    memory: int = _MEMORY
    processors: int = _PROCESSORS
    buses: Mapping[str, str] = field(default_factory=dict)
    firmware: Firmware | None = None
    variables: bytes | None = None
    lacking: tuple[str, ...] = ()

    def __str__(self) -> str:
        start = "a BIOS" if self.firmware is None else f"UEFI ({self.firmware.code})"
        buses = ", ".join(f"{disk} on {bus}" for disk, bus in sorted(self.buses.items()))
        disks = f", {buses}" if buses else ""
        return f"{self.memory} MiB, {self.processors} processors, {start}{disks}"


def likeness(store: Store, point: str, guest: str | None = None) -> Likeness | None:
    """What the machine of a point is like; None: the point tells nothing of it.

    Raises:
        StoreError: the point is not there, or a part of it is damaged, or not what it says.
    """
    told = {part.kind: part.data for part in parts(store, point, guest)}
    shape = shape_of(told, f"the definition of point {point}")
    if shape is None:
        return None
    variables = told.get(PartKind.NVRAM)
    firmware, lacking = None, []
    if shape.uefi or variables is not None:
        size = None if variables is None else len(variables)
        firmware = choose_firmware(
            shape.arch, secure=shape.secure, loader=shape.loader, variables=size
        )
        if firmware is None:
            lacking.append("no UEFI firmware like the guest's is installed (Debian: ovmf)")
        elif variables is None and shape.has_flash is False:
            variables = firmware.template.read_bytes()
    return Likeness(
        min(shape.memory or _MEMORY, _room()),
        min(shape.processors or _PROCESSORS, os.cpu_count() or 1),
        shape.buses,
        firmware,
        variables if firmware is not None else None,
        tuple(lacking),
    )


def _room() -> int:
    """MiB of memory that a machine may have here: half of what is left, 256 at least."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return max(256, int(lines["MemAvailable"].split()[0]) // 2048)
    except (OSError, ValueError, KeyError, IndexError):
        return _MEMORY
