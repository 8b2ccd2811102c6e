"""What a point holds of the machine besides its disks: small files, each in a delta of its own."""

from __future__ import annotations

import enum
from dataclasses import dataclass

MARK = "@"
"""The name of a part begins with it, that of a disk never does: so none is taken for the other.
No id of QEMU's and no target of libvirt's can begin so."""

LARGEST = 64 * 1024 * 1024
"""Bytes of a part: more than any firmware or TPM has, and no more than memory."""


class PartKind(enum.StrEnum):
    """What a part is; a point has at most one of each."""

    LIBVIRT_XML = "libvirt-xml"
    """libvirt's definition of the guest, as `virsh define` takes it: without secrets."""
    QEMU = "qemu"
    """What QMP tells of the machine: JSON."""
    NVRAM = "nvram"
    """The variables of the guest's UEFI: the image that QEMU has of them."""
    TPM = "tpm"
    """The state of the guest's TPM: a tar archive of swtpm's files."""

    @property
    def own_name(self) -> str:
        """What its delta says in the place of a disk's name."""
        return f"{MARK}{self.value}"


@dataclass(frozen=True)
class Part:
    """A part of a machine, with all its bytes."""

    kind: PartKind
    data: bytes

    @property
    def name(self) -> str:
        """That it has in a store."""
        return self.kind.own_name


def is_part(name: str) -> bool:
    """Whether a name is that of a part, and not of a disk."""
    return name.startswith(MARK)
