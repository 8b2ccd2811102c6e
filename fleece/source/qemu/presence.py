"""Which guest is in a QEMU, and whether it is there at all: it may not have come yet, or have left.

Two QEMUs have the disks of a guest that migrates, and only one of them may be read or changed. What
each run state means for a backup is docs/reference/backup.rst.
"""

from __future__ import annotations

import uuid

from fleece.delta.header import is_name
from fleece.delta.identity import GuestIdentity
from fleece.errors import SourceError
from fleece.source.qemu.inventory import guest_name
from fleece.source.qemu.monitor import CommandError, Monitor
from fleece.source.qemu.teardown import STOPPED_BY_ERROR, run_state

_MIGRATED = "postmigrate"
_RUNNING = "running"
_COMPLETED = "completed"

_PRESENT = frozenset(
    {
        "debug",
        "guest-panicked",
        "internal-error",
        "paused",
        "prelaunch",
        "shutdown",
        "suspended",
        "watchdog",
        STOPPED_BY_ERROR,
        _RUNNING,
    }
)
"""The run states (QAPI `RunState`) of a QEMU that has its guest's disks, running or not."""

_ABSENT = {
    "colo": "it keeps its guest in step with another QEMU",
    "finish-migrate": "its guest is leaving for another QEMU",
    "inmigrate": "it waits for a guest that migrates to it",
    _MIGRATED: "its guest has migrated to another QEMU, or into a file",
    "restore-vm": "it is loading the guest's state",
    "save-vm": "it is saving the guest's state",
}
"""Why a QEMU's disks are not to be touched in the other run states."""

_AT_REST = frozenset({"none", _COMPLETED, "failed", "cancelled"})
"""The states (QAPI `MigrationStatus`) of a migration that does not go on."""

_VAIN = frozenset({"failed", "cancelled"})
"""Those of one after which the guest should still be here."""

_PASSING = frozenset({"finish-migrate", "save-vm"})
"""Of these, those in which nobody else has the disks yet. A migration that cannot end, because of
the point, passes through the first."""

_LATE = "late-block-activate"
"""The capability (QAPI `MigrationCapability`) that gives a guest its disks when it first runs."""

_NIL = uuid.UUID(int=0)


def guest_identity(monitor: Monitor) -> GuestIdentity | None:
    """Which guest a QEMU has; None: it tells neither UUID nor name (qemu-storage-daemon)."""
    told, name = _uuid(monitor), guest_name(monitor)
    if name is not None and not is_name(name):
        name = None
    return GuestIdentity(told, name) if told or name else None


def _uuid(monitor: Monitor) -> str | None:
    try:
        answer = monitor.execute("query-uuid").part("UUID")
    except CommandError:
        return None
    try:
        told = uuid.UUID(answer.text())
    except ValueError as error:
        raise answer.bad("is not a UUID") from error
    return None if told == _NIL else str(told)  # QEMU's word for none


def absence(monitor: Monitor) -> str | None:
    """Why a QEMU's disks are not its guest's now, in one clause; None: they are."""
    return _why_absent(monitor, run_state(monitor))


def departure(monitor: Monitor) -> str | None:
    """Why another QEMU may have written to the disks of a point by now; None: none can have."""
    state = run_state(monitor)
    return None if state in _PASSING else _why_absent(monitor, state)


def _why_absent(monitor: Monitor, state: str | None) -> str | None:
    if state is None or state in _PRESENT:
        return None
    return _why_stranded(monitor, state) or _ABSENT.get(
        state, f"it is in the state {state}, which fleece does not know"
    )


def _why_stranded(monitor: Monitor, state: str | None) -> str | None:
    """Why it is not known where a guest is that did not run when it was to migrate.

    QEMU leaves it in the same state whether that went well or not.
    """
    if state != _MIGRATED or (ended := migration(monitor)) not in _VAIN:
        return None
    return f"a migration of its paused guest ended as {ended}, and QEMU calls it {_MIGRATED} still"


def without_disks(monitor: Monitor) -> str | None:
    """Why a guest that is here may not have its disks yet, in one clause; None: it has them.

    One that migrated here and was not continued yet may find them inactive: QEMU holds what it
    read of the images before the guest came, and shows that.
    """
    nodes = monitor.execute("query-named-block-nodes").list()
    told = [active.flag() for node in nodes if (active := node.maybe("active")) is not None]
    if told:  # QEMU 10.0
        return None if all(told) else "its disks are inactive"
    if run_state(monitor) in (None, _RUNNING) or migration(monitor) != _COMPLETED:
        return None
    capabilities = monitor.execute("query-migrate-capabilities").list()
    if not any(item.text("capability") == _LATE and item.flag("state") for item in capabilities):
        return None
    return f"it migrated here, does not run, and may not have its disks yet ({_LATE})"


def migration(monitor: Monitor) -> str:
    """How the last migration stands (QAPI `MigrationStatus`)."""
    try:
        status = monitor.execute("query-migrate").maybe("status")
    except CommandError:
        return "none"  # qemu-storage-daemon does not migrate
    return "none" if status is None else status.text()


def leaving(monitor: Monitor) -> str | None:
    """Why no point should be taken of a guest that is here, in one clause; None: it stays.

    What holds a point keeps QEMU 7.2 from handing its disks over: the migration fails when all
    memory is copied, and the guest stays.
    """
    status = migration(monitor)
    if status in _AT_REST:
        return None
    return f"it is being migrated (status {status}), and a point would make that fail"


def refuse_absent(monitor: Monitor) -> None:
    """Raise `SourceError` if the disks of a QEMU must be neither read nor changed through it."""
    _refuse(
        monitor,
        "this QEMU may not have its guest",
        _why_stranded(monitor, run_state(monitor)),
        "if no other QEMU has it, continue it here ('cont') and, if need be, pause it again",
    )
    _refuse(
        monitor,
        "this QEMU does not have its guest",
        absence(monitor),
        "name the QEMU that runs the guest",
    )
    _refuse(
        monitor,
        "the guest cannot be backed up now",
        without_disks(monitor),
        "continue the guest first",
    )


def refuse_leaving(monitor: Monitor) -> None:
    """Raise `SourceError` if a guest is leaving."""
    _refuse(
        monitor,
        "no point of the guest can be taken now",
        leaving(monitor),
        "wait for the migration to end, and name the QEMU that has the guest then",
    )


def _refuse(monitor: Monitor, what: str, reason: str | None, hint: str) -> None:
    if reason is not None:
        raise SourceError(f"{what}: {reason}", where=monitor.path, hint=hint)
