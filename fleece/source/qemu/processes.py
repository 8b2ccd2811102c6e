"""Processes that may be a QEMU, by their numbers."""

from __future__ import annotations

import os
from pathlib import Path

from fleece.source.workfolder import WorkFolder


def process_lives(pid: int) -> bool:
    """Whether a process of this number exists."""
    return Path(f"/proc/{pid}").exists()


def may_be_qemu(pid: int) -> bool:
    """Whether a process may be a QEMU, as its program's file is called. One that ended is none."""
    try:
        name = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except FileNotFoundError:
        return False
    except OSError:  # this user may not know
        return True
    return "qemu" in name or "kvm" in name


def qemu_of(work: WorkFolder) -> int | None:
    """The process number of the QEMU that a work folder was made for.

    None: it was not noted, or what holds its point is no QEMU of ours.
    """
    return _number(work.holder())


def server_of(work: WorkFolder) -> int | None:
    """The process number of the QEMU whose server was started in it; None: it was not noted."""
    return _number(work.server_of())


def _number(noted: str | None) -> int | None:
    return int(noted) if noted is not None and noted.isdecimal() else None
