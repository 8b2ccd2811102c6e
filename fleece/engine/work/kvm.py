"""Whether KVM works here: not only whether it is there."""

from __future__ import annotations

import enum
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.programs import Overdue, finished

_DEVICE = Path("/dev/kvm")
_PROBE = Path(__file__).with_name("kvm_probe.py")
_LIMIT = 60.0
"""Seconds that one instruction may take."""


class KvmState(enum.StrEnum):
    """What can be said of KVM on this host."""

    WORKS = "works"
    MISSING = "is not there"
    DENIED = "may not be opened by this user"
    BROKEN = "does not work"


@dataclass(frozen=True)
class Kvm:
    """KVM on this host.

    Attributes:
        state: whether it can be used.
        reason: more about why it does not work; None: there is no more to say.
    """

    state: KvmState
    reason: str | None = None

    @property
    def works(self) -> bool:
        """Whether machines can run on it."""
        return self.state is KvmState.WORKS

    def __str__(self) -> str:
        more = "" if self.reason is None else f" ({self.reason})"
        return f"KVM {self.state}{more}"

    @property
    def hint(self) -> str | None:
        """What the user can do about it."""
        match self.state:
            case KvmState.MISSING:
                return "enable virtualization in the firmware, or load kvm_intel or kvm_amd"
            case KvmState.DENIED:
                return "add this user to the group kvm"
            case KvmState.BROKEN:
                return "if this host is a virtual machine, its own host must allow nesting"
        return None


def examine_kvm(device: Path = _DEVICE, cancel: CancelToken | None = None) -> Kvm:
    """Have KVM run one instruction, in a process of its own: where it is broken it can hang.

    Args:
        device: KVM's.
        cancel: ends the wait for it.

    Raises:
        UsageError: no process can be started.
    """
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Kvm(KvmState.MISSING)
    except PermissionError:
        return Kvm(KvmState.DENIED, "group kvm")
    except OSError as error:
        return Kvm(KvmState.BROKEN, error.strerror)
    try:
        done = finished(
            [sys.executable, "-I", str(_PROBE)],
            cancel or CancelToken(),
            given=os.fsencode(device),
            limit=_LIMIT,
        )
    except Overdue:
        return Kvm(KvmState.BROKEN, "a machine that was started hangs")
    if done.code != 0:
        return Kvm(KvmState.BROKEN, done.said or None)
    return Kvm(KvmState.WORKS)
