"""Put a machine into a folder: a script that starts QEMU on its disks."""

from __future__ import annotations

import re
import shlex
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fleece.closing import Closing
from fleece.delta.part import PartKind
from fleece.disk.image import ImageFormat
from fleece.errors import TargetError
from fleece.machine.base import (
    NVRAM_FILE,
    SCRIPT_FILE,
    TPM_FOLDER,
    Landed,
    MachineWish,
    PlacedDisk,
    PlacedFile,
    SavedMachine,
)
from fleece.machine.firmware import SECURE_FLASH, Firmware, choose_firmware
from fleece.machine.shape import FLASH, Shape, shape_of
from fleece.machine.swtpm import state_files
from fleece.source.segments import Segment, disk_tag

_PRIVATE = 0o600
_RUNNABLE = 0o700
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,60}")
_DEVICES = {
    "virtio": "virtio-blk-pci,drive={drive},id={id}",
    "scsi": "scsi-hd,drive={drive},id={id}",
    "nvme": "nvme,serial={drive},drive={drive},id={id}",
    "sata": "ide-hd,bus={ahci}.{number},drive={drive},id={id}",
    "ide": "ide-hd,bus={ahci}.{number},drive={drive},id={id}",
}
_USUAL = "virtio"
_MEMORY, _PROCESSORS = 1024, 2
_CARDS = {"virtio": "virtio-net-pci", "e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139"}


class ScriptLanding(Closing):
    """A folder that gets a machine, and a script that starts it.

    Args:
        saved: the machine.
        wish: where it is put, and as what.

    Raises:
        StoreError: a part of the point is not what it says.
    """

    kind = "script"

    def __init__(self, saved: SavedMachine, wish: MachineWish) -> None:
        self._saved, self._wish = saved, wish
        told = shape_of(saved.parts, f"the definition of point {saved.point}")
        self._known = told is not None
        self._shape = told or Shape()
        self._name = wish.name or saved.guest
        own = self._shape.uuid or saved.uuid
        self._uuid = own if own is not None and wish.keep_identity else str(uuid.uuid4())
        self._tpm = state_files(saved.parts[PartKind.TPM]) if PartKind.TPM in saved.parts else None
        self._nvram = saved.parts.get(PartKind.NVRAM)
        self._disks: tuple[PlacedDisk, ...] = ()
        self._firmware: Path | None = None
        self._found: Firmware | None = None

    def close(self) -> None:
        """Nothing is open."""

    def formats(self) -> Mapping[str, ImageFormat]:
        """All are qcow2: it keeps bitmaps."""
        return {}

    def prepare(self, disks: Sequence[PlacedDisk]) -> Sequence[str]:
        """See what of the machine a script can carry."""
        self._disks = tuple(disks)
        return list(self._lacking())

    def _lacking(self) -> Iterator[str]:
        shape = self._shape
        if not self._known:
            yield "the point tells nothing of its machine: the script has a usual one"
        if shutil.which(self._program) is None:
            yield f"{self._program} is not installed here"
        if shape.uefi or self._nvram is not None:
            size = None if self._nvram is None else len(self._nvram)
            found = self._found = choose_firmware(
                shape.arch, secure=shape.secure, loader=shape.loader, variables=size
            )
            if found is None:
                yield "no UEFI firmware for it is installed here: set FIRMWARE for the script"
                self._firmware = Path(shape.loader or "/usr/share/OVMF/OVMF_CODE_4M.fd")
            else:
                self._firmware = found.code
                if self._nvram is None and not shape.has_flash:
                    yield "its UEFI variables are not in the point: it gets new ones"
                    self._nvram = found.template.read_bytes()

    @property
    def _program(self) -> str:
        return f"qemu-system-{self._shape.arch}"

    def files(self) -> Sequence[PlacedFile]:
        """The script, the variables of its UEFI, the state of its TPM."""
        folder = self._wish.folder
        found = [PlacedFile(folder / SCRIPT_FILE, self._script().encode(), _RUNNABLE)]
        if self._nvram is not None and self._firmware is not None:
            found.append(PlacedFile(folder / NVRAM_FILE, self._nvram, _PRIVATE))
        for name, data in (self._tpm or {}).items():
            found.append(PlacedFile(folder / TPM_FOLDER / name, data, _PRIVATE))
        return found

    def bitmap(self, disk: str, chain_id: str, sequence: int, point: str) -> str:
        """That of a segment of this disk, which QEMU and `image:` go on from."""
        return Segment(chain_id, sequence, 0, point, disk_tag(disk)).bitmap

    def land(self, bitmap: Mapping[str, str]) -> Landed:
        """All is there already."""
        path = self._wish.folder / SCRIPT_FILE
        return Landed(self._name, self._uuid, f"{path} starts it")

    def start(self) -> None:
        """Refused before: whoever starts a machine chooses where it runs.

        Raises:
            TargetError: always.
        """
        raise TargetError("is for you to start", where=self._wish.folder / SCRIPT_FILE)

    # ---- the script --------------------------------------------------------------------------

    def _script(self) -> str:
        lines = [
            "#!/bin/sh",
            f"# {_comment(self._name)}, as it was at point {self._saved.point}. Change it freely.",
            "# Words that are given to it are QEMU's. fleece backs it up by qmp:qmp.sock here.",
            "set -e",
            'cd "$(dirname "$0")"',
        ]
        if self._has_tpm:
            lines += _tpm_lines("" if self._shape.tpm == "1.2" else " --tpm2")
        if self._firmware is not None:
            lines.append(f": ${{FIRMWARE:={shlex.quote(str(self._firmware))}}}")
        words = " \\\n    ".join(self._words())
        lines.append(f'exec {self._program} \\\n    {words} \\\n    "$@"')
        return "\n".join(lines) + "\n"

    @property
    def _has_tpm(self) -> bool:
        return self._tpm is not None or self._shape.tpm is not None

    def _words(self) -> Iterator[str]:
        """The words of QEMU's command line, some to a line, as a shell takes them."""
        shape = self._shape
        yield f"-name {shlex.quote('guest=' + _doubled(self._name))} -uuid {self._uuid}"
        smm = "" if self._found is None or not self._found.smm else f",smm=on {SECURE_FLASH}"
        yield f"-machine {shape.machine or 'q35'}{smm} -accel kvm -accel tcg -cpu max"
        yield f"-smp {shape.processors or _PROCESSORS} -m {shape.memory or _MEMORY}"
        yield "-nodefaults -vga std -rtc base=utc"
        if self._firmware is not None:
            yield '-drive if=pflash,format=raw,readonly=on,file="$FIRMWARE"'
        if self._nvram is not None and self._firmware is not None:
            yield f"-drive if=pflash,format=raw,file={NVRAM_FILE}"
        if self._has_tpm:
            yield "-chardev socket,id=tpm,path=tpm.sock -tpmdev emulator,id=tpm0,chardev=tpm"
            yield "-device tpm-crb,tpmdev=tpm0"
        yield from self._drives()
        for number, card in enumerate(shape.cards):
            model = _CARDS.get(card.model, "virtio-net-pci")
            mac = f",mac={card.mac}" if card.mac is not None and self._wish.keep_identity else ""
            yield f"-netdev user,id=net{number} -device {model},netdev=net{number}{mac}"
        yield "-device virtio-serial-pci"
        yield "-chardev socket,id=agent,path=agent.sock,server=on,wait=off"
        yield "-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0"
        yield "-qmp unix:qmp.sock,server=on,wait=off"

    def _drives(self) -> Iterator[str]:
        buses = [self._shape.buses.get(disk.name, _USUAL) for disk in self._disks]
        ahci = "ide"
        if "scsi" in buses:
            yield "-device virtio-scsi-pci"
        if {"sata", "ide"} & set(buses) and "q35" not in (self._shape.machine or "q35"):
            yield "-device ahci,id=ahci"
            ahci = "ahci"
        attached = 0
        for number, (disk, bus) in enumerate(zip(self._disks, buses, strict=True)):
            drive = f"drive{number}"
            inside = disk.path.parent == self._wish.folder
            place = _doubled(f"./{disk.path.name}" if inside else str(disk.path))
            if bus == FLASH:  # the variables of a UEFI, which were backed up as a disk
                yield f"-drive {shlex.quote(f'if=pflash,format={disk.format},file={place}')}"
                continue
            file = f"if=none,id={drive},format={disk.format},discard=unmap,file={place}"
            name = disk.name if _ID.fullmatch(disk.name) else f"disk{number}"
            device = _DEVICES[bus].format(drive=drive, id=name, ahci=ahci, number=attached)
            attached += bus in ("sata", "ide")
            yield f"-drive {shlex.quote(file)} -device {device},bootindex={number + 1}"


def _tpm_lines(version: str) -> Iterator[str]:
    """What starts swtpm. A daemon of it works in the root folder."""
    yield f"mkdir -p -m 700 {TPM_FOLDER}"
    # One whose QEMU never came waits for ever, and keeps the state to itself.
    yield 'timeout 2 swtpm_ioctl -s --unix "$PWD/tpm.sock" 2> /dev/null || :'
    yield f'swtpm socket{version} --terminate --daemon --tpmstate "dir=$PWD/{TPM_FOLDER}" \\'
    yield '    --ctrl "type=unixio,path=$PWD/tpm.sock"'


def _doubled(text: str) -> str:
    """A value of an option of QEMU's: a comma would end it."""
    return text.replace(",", ",,")


def _comment(text: str) -> str:
    """A text that cannot end its line."""
    return "".join(each if each.isprintable() else "?" for each in text)
