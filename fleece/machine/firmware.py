"""UEFI firmware that this host has, by the descriptions that its packages bring.

QEMU's interop/firmware.json: a file of JSON for each, below these folders, the first by name first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECURE_FLASH = "-global driver=cfi.pflash01,property=secure,value=on"
"""With it the guest's own system cannot write to the variables; its firmware in that mode can."""
_FOLDERS = ("/etc/qemu/firmware", "/usr/share/qemu/firmware")


@dataclass(frozen=True)
class Firmware:
    """A UEFI firmware.

    Attributes:
        code: its file.
        template: of its variables.
        arch: of the machines that it is for.
        secure: it checks signatures.
        smm: it works only in a machine with system management mode.
    """

    code: Path
    template: Path
    arch: str
    secure: bool
    smm: bool


def known_firmware() -> list[Firmware]:
    """All that are here, the preferred first."""
    paths = [path for folder in _FOLDERS for path in Path(folder).glob("*.json")]
    found = []
    for path in sorted(paths, key=lambda path: path.name):
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        found += list(_described(told))
    return found


def _described(told: Any) -> Iterator[Firmware]:
    try:
        mapping = told["mapping"]
        if "uefi" not in told["interface-types"] or mapping["device"] != "flash":
            return
        code = Path(mapping["executable"]["filename"])
        template = Path(mapping["nvram-template"]["filename"])
        secure, smm = (word in told["features"] for word in ("secure-boot", "requires-smm"))
        if code.exists() and template.exists():
            for target in told["targets"]:
                yield Firmware(code, template, target["architecture"], secure, smm)
    except (KeyError, TypeError):
        return


def choose_firmware(
    arch: str, *, secure: bool, loader: str | None, variables: int | None
) -> Firmware | None:
    """The firmware for a machine; None: there is none that takes its variables.

    Args:
        arch: of the machine.
        secure: it had one that checks signatures.
        loader: the file that it had, wherever that was.
        variables: bytes of its variables, which fit one size of firmware only; None: it has none.
    """
    fitting = [
        each
        for each in known_firmware()
        if each.arch == arch and (variables is None or _size(each.template) == variables)
    ]
    same = [each for each in fitting if str(each.code) == loader]
    alike = [each for each in fitting if each.secure == secure]
    return next(iter([*same, *alike, *fitting]), None)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
