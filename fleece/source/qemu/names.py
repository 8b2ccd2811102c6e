"""The names of all that fleece makes in QEMU.

Every one begins with `fleece-` and bears the chain's and the point's id, so that leftovers are
found by name. Node names are at most 31 bytes (QEMU, include/block/block_int-common.h).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fleece.source.workfolder import PREFIX, folder_name

DELTA_BITMAP = "delta"
PUSH_JOB = "p"

_GUARD = "c"
_ACCESS = "a"


@dataclass(frozen=True)
class PointNames:
    """The names of one point's things in QEMU."""

    chain_id: str
    point: str

    @property
    def prefix(self) -> str:
        """What they all begin with; also the name of the point's folder in the scratch folder."""
        return folder_name(self.chain_id, self.point)

    def overlay(self, number: int) -> str:
        """The scratch's qcow2 node, which is what is exported."""
        return f"{self.prefix}s{number}"

    def overlay_file(self, number: int) -> str:
        """The scratch's protocol node."""
        return f"{self.prefix}f{number}"

    def filter(self, number: int) -> str:
        """The copy-before-write filter that the job puts above the disk."""
        return f"{self.prefix}w{number}"

    def guard(self, number: int) -> str:
        """The copy-before-write filter that the engine itself puts above the disk."""
        return f"{self.prefix}{_GUARD}{number}"

    def access(self, number: int) -> str:
        """What shows a guard's snapshot; it is exported."""
        return f"{self.prefix}{_ACCESS}{number}"

    def job(self, number: int) -> str:
        """The fleecing job."""
        return f"{self.prefix}j{number}"

    def export(self, number: int) -> str:
        """The export's id and its NBD name."""
        return f"{self.prefix}e{number}"

    def view(self, number: int) -> str:
        """What a push job reads: the overlay, without claims on it."""
        return f"{self.prefix}v{number}"

    def target(self, number: int) -> str:
        """The node that is the sink's export."""
        return f"{self.prefix}t{number}"

    def push_filter(self, number: int) -> str:
        """The filter that a push job puts above its view; nothing is written through it."""
        return f"{self.prefix}q{number}"

    def push_job(self, number: int) -> str:
        """The job that copies from the view to the sink."""
        return f"{self.prefix}{PUSH_JOB}{number}"


def is_guard(node: str) -> bool:
    """Whether a node is a filter that some engine put above a disk."""
    return re.fullmatch(rf"{PREFIX}[0-9a-f]{{8}}-[0-9a-f]{{10}}{_GUARD}\d+", node) is not None


def is_access(node: str) -> bool:
    """Whether a node shows a guard's snapshot."""
    return re.fullmatch(rf"{PREFIX}[0-9a-f]{{8}}-[0-9a-f]{{10}}{_ACCESS}\d+", node) is not None
