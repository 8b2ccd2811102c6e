"""What the engine and a kind of machine tell each other when a guest is put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

from fleece.delta.part import PartKind
from fleece.disk.image import ImageFormat

NVRAM_FILE = "nvram.fd"
"""The file of the UEFI's variables, beside the disks."""
SCRIPT_FILE = "start.sh"
TPM_FOLDER = "tpm"
"""Where a script has the TPM's state, beside the disks."""


@dataclass(frozen=True)
class MachineWish:
    """Where and as what a machine is put back.

    Attributes:
        folder: of its files, as an absolute path.
        name: that it gets; None: its own.
        keep_identity: it keeps its UUID and the addresses of its network cards.
        connect: the libvirt that gets it; None: libvirt's default.
        script: make a script in any case.
        trusted: what in its definition reaches into the host is kept.
        force: a guest of the same name, if it is off, is replaced.
        start: it is to be started.
    """

    folder: Path
    name: str | None = None
    keep_identity: bool = False
    connect: str | None = None
    script: bool = False
    trusted: bool = False
    force: bool = False
    start: bool = False


@dataclass(frozen=True)
class SavedMachine:
    """What a point tells of its machine.

    Attributes:
        guest: its name in the store.
        point: the point's id.
        parts: the point's, proven.
        disks: the names of its disks.
        uuid: of the guest, as its source told it; None: it did not.
    """

    guest: str
    point: str
    parts: Mapping[PartKind, bytes]
    disks: tuple[str, ...]
    uuid: str | None = None


@dataclass(frozen=True)
class PlacedDisk:
    """Where a disk is restored to.

    Attributes:
        name: of the disk.
        path: absolute.
        format: of the image there.
        device: it is a block device.
    """

    name: str
    path: Path
    format: ImageFormat
    device: bool = False


@dataclass(frozen=True)
class PlacedFile:
    """A small file of the machine, to be made beside its disks."""

    path: Path
    data: bytes = field(repr=False)
    mode: int


@dataclass(frozen=True)
class Landed:
    """A machine that is there.

    Attributes:
        name, uuid: its own now.
        told: where it is, in words.
        notices: what was not carried, as it turned out only then.
    """

    name: str
    uuid: str
    told: str
    notices: tuple[str, ...] = ()


class Landing(Protocol):
    """A place that takes a machine: a libvirt, or a folder that gets a script.

    The order is: `formats`, `prepare`, then the disks and `files` are made, then `land`.
    """

    kind: str

    def __enter__(self) -> Landing: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of it."""

    def formats(self) -> Mapping[str, ImageFormat]:
        """What the definition says of the disks' images, by disk."""

    def prepare(self, disks: Sequence[PlacedDisk]) -> Sequence[str]:
        """Check that the machine can be put here; what of it cannot be carried is told.

        Raises:
            TargetError: it cannot be put here. Nothing was changed.
        """

    def files(self) -> Sequence[PlacedFile]:
        """The files that it needs beside its disks."""

    def bitmap(self, disk: str, chain_id: str, sequence: int, point: str) -> str:
        """The name of the bitmap by which the next backup knows what was written since a point."""

    def land(self, bitmap: Mapping[str, str]) -> Landed:
        """Put the machine there.

        Args:
            bitmap: that a disk has, by disk; of those that have one.

        Raises:
            TargetError: it cannot be put there; nothing of it stays but files.
        """

    def start(self) -> None:
        """Start the machine.

        Raises:
            TargetError: it does not start. It is there, whole.
        """
