"""The kernel and the initramfs that the rig's guests boot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.rig.process import run_checked

_GUEST = Path(__file__).parent / "guest"


KERNEL_WORDS = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check"
"""Words for the kernel wherever the rig boots it. An emulated guest's timer stands still while the
host has no time for QEMU's main loop: the kernel would take its clock for broken, and panic."""


@dataclass(frozen=True)
class GuestFiles:
    """What a guest boots from."""

    kernel: Path
    initramfs: Path


def guest_files(cache_dir: Path) -> GuestFiles:
    """The guest's files, built in `cache_dir` (in about 1 s) unless they are there.

    Raises:
        RigError: the build failed; the message has what it printed, such as a missing package.
    """
    files = GuestFiles(cache_dir / "vmlinuz", cache_dir / "initramfs.cpio")
    if not files.initramfs.exists():
        run_checked("bash", _GUEST / "build.sh", cache_dir)
    return files
