"""A guest as libvirt has it: its state, definition, checkpoints and jobs."""

from __future__ import annotations

import enum
import functools
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from xml.etree.ElementTree import Element

from fleece.cancel import CancelToken
from fleece.errors import SourceError
from fleece.source.libvirt.connection import ANSWER_LIMIT, BEGIN_LIMIT, Libvirt, Refused
from fleece.source.libvirt.xml import BackupJob, Checkpoint, backup_job, checkpoint, parsed

_SETTLE_LIMIT = 20.0
"""Seconds for a job that libvirt tells half of. A client that was killed while its backup began
leaves one for 0.6 s; a libvirtd that was killed then, for as long as the guest runs."""
_END_LIMIT = 60.0
_PAUSE = 0.02

T = TypeVar("T")


class Code(enum.IntEnum):
    """Errors of libvirt's that mean something to a backup (virterror.h, `virErrorNumber`)."""

    INTERNAL = 1
    NO_DOMAIN = 42
    OPERATION_INVALID = 55
    OPERATION_TIMEOUT = 68
    UNSUPPORTED = 84
    AGENT_UNRESPONSIVE = 86
    ARGUMENT_UNSUPPORTED = 74
    NO_METADATA = 80
    NO_CHECKPOINT = 103
    NO_BACKUP = 104
    CHECKPOINT_INCONSISTENT = 109


class State(enum.Enum):
    """What a guest does (`virDomainState` and its reason), as far as it matters to a backup."""

    RUNNING = "running"
    PAUSED = "paused"
    IO_ERROR = "stopped by an I/O error"
    STARTING = "starting up"
    MIGRATING = "being migrated"
    SAVING = "being saved"
    CRASHED = "crashed"
    OFF = "off"
    AWAY = "migrated to another host"


@dataclass(frozen=True)
class Busy:
    """Another operation than a backup has the guest: what it is called."""

    operation: str


def reached(uri: str | None, where: str, cancel: CancelToken) -> Libvirt:
    """A connection to a libvirt.

    Args:
        uri: of it; None: libvirt's own default.
        where: for messages.
        cancel: of the run.

    Raises:
        SourceError: it cannot be reached.
        UsageError: libvirt's Python bindings are missing.
    """
    try:
        return Libvirt(uri, where, cancel)
    except Refused as error:
        shown = uri or "its default URI"
        raise SourceError(
            f"libvirt cannot be reached at {shown}: {error.reason}",
            where=where,
            hint="is libvirtd running, and may this user use it? --connect names another one",
        ) from error


class Domain:
    """A guest, found by id, UUID or name, as virsh finds it.

    Args:
        place: what the user calls it.
        uri: of the libvirt that has it; None: libvirt's own default.
        cancel: of the run.

    Attributes:
        where: for messages.
        name, uuid: its own.

    Raises:
        SourceError: libvirt cannot be reached, or has no such guest.
        UsageError: libvirt's Python bindings are missing.
    """

    def __init__(self, place: str, uri: str | None, cancel: CancelToken | None = None) -> None:
        self.where = f"libvirt:{place}"
        self._libvirt = reached(uri, self.where, cancel or CancelToken())
        self._lib, self._connection = self._libvirt.lib, self._libvirt.connection
        self._calls = self._libvirt.calls
        self.cancel = self._calls.cancel
        try:
            self._domain = self._look_up(place)
            self.name: str = self._ask("the guest's name", self._domain.name)
            self.uuid: str = self._ask("the guest's UUID", self._domain.UUIDString)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it. Safe to repeat."""
        self._libvirt.close()

    def _look_up(self, place: str) -> Any:
        ways: list[Callable[[], Any]] = [lambda: self._connection.lookupByName(place)]
        if _is_uuid(place):
            ways.insert(0, lambda: self._connection.lookupByUUIDString(place))
        if place.isdecimal() and len(place) < 10:
            ways.insert(0, lambda: self._connection.lookupByID(int(place)))
        for way in ways:
            try:
                return self._calls("the guest", way)
            except Refused as error:
                if error.number != Code.NO_DOMAIN:
                    raise
        raise SourceError(
            "libvirt has no such guest",
            where=self.where,
            hint="virsh list --all shows them; another libvirt is named by --connect",
        )

    def _ask(self, what: str, call: Callable[[], T], limit: float = ANSWER_LIMIT) -> T:
        return self._calls(what, call, limit)

    def far(self) -> str | None:
        """Why this host cannot back the guest up, if it is on another one; None: it is here."""
        host = self._libvirt.other_host
        if host is None:
            return None
        return f"the guest is on another host, {host}, and so are its images and the scratch"

    def check_here(self) -> None:
        """Check that the guest is on this host.

        Raises:
            SourceError: it is on another one.
        """
        if (why := self.far()) is not None:
            raise SourceError(
                why,
                where=self.where,
                hint="name it by ssh: --connect qemu+ssh://HOST/system; fleece must be there, too",
            )

    def is_of_session(self) -> bool:
        """Whether its libvirt is that of an ordinary user."""
        return self._libvirt.of_session

    # ---- what it is and does -----------------------------------------------------------------

    def versions(self) -> tuple[int, int]:
        """Of libvirtd, and of the QEMU that it starts, as libvirt has them: 7002022 is 7.2.22."""
        return (
            self._ask("its version", self._connection.getLibVersion),
            self._ask("QEMU's version", self._connection.getVersion),
        )

    def capabilities(self) -> Element:
        """What libvirt and its host can do (`<capabilities>`)."""
        return parsed(self._ask("its capabilities", self._connection.getCapabilities), self.where)

    @functools.cached_property
    def home(self) -> str:
        """Which libvirt has it, however that is reached: its host's UUID, and its mode."""
        return f"{self.capabilities().findtext('host/uuid', '')} {self._libvirt.mode}"

    def run(self) -> int:
        """The number of the guest's run, another one each time it is started; -1: it is off."""
        # A domain object keeps the id that it was looked up with.
        found = self._ask("the guest", lambda: self._connection.lookupByUUIDString(self.uuid))
        return int(found.ID())

    def state(self) -> State:
        """What the guest does now."""
        lib = self._lib
        state, reason = self._ask("the guest's state", lambda: self._domain.state())
        if state == lib.VIR_DOMAIN_PAUSED:
            return {
                lib.VIR_DOMAIN_PAUSED_IOERROR: State.IO_ERROR,
                lib.VIR_DOMAIN_PAUSED_MIGRATION: State.MIGRATING,
                lib.VIR_DOMAIN_PAUSED_POSTCOPY: State.MIGRATING,
                lib.VIR_DOMAIN_PAUSED_SAVE: State.SAVING,
                lib.VIR_DOMAIN_PAUSED_STARTING_UP: State.STARTING,
            }.get(reason, State.PAUSED)
        if state == lib.VIR_DOMAIN_SHUTOFF:
            away = reason == lib.VIR_DOMAIN_SHUTOFF_MIGRATED
            return State.AWAY if away else State.OFF
        return State.CRASHED if state == lib.VIR_DOMAIN_CRASHED else State.RUNNING

    def is_active(self) -> bool:
        """Whether a QEMU of it is there, running or not."""
        return bool(self._ask("whether the guest is on", self._domain.isActive))

    def definition(self) -> Element:
        """Its definition as it is now (`<domain>`)."""
        return parsed(
            self._ask("the guest's definition", lambda: self._domain.XMLDesc(0)), self.where
        )

    def saved_definition(self) -> str:
        """The definition that it will start with next, without passwords, as libvirt writes it."""
        flags = self._lib.VIR_DOMAIN_XML_INACTIVE
        return str(self._ask("the guest's definition", lambda: self._domain.XMLDesc(flags)))

    def sizes(self) -> dict[str, int]:
        """Of its disks, in bytes, by target; those of an empty drive are missing."""
        told = self._ask(
            "the disks' sizes",
            lambda: self._connection.domainListGetStats(
                [self._domain], self._lib.VIR_DOMAIN_STATS_BLOCK
            ),
        )
        stats: Mapping[str, Any] = told[0][1] if told else {}
        numbers = range(int(stats.get("block.count", 0)))
        return {
            str(stats[f"block.{n}.name"]): int(stats[f"block.{n}.capacity"])
            for n in numbers
            if f"block.{n}.capacity" in stats
        }

    def resume(self) -> None:
        """Let it go on."""
        self._ask("the guest to go on", self._domain.resume)

    def freeze(self, limit: int) -> int:
        """Have the agent freeze the guest's file systems; gives how many.

        Args:
            limit: seconds that the agent has. Without it libvirt waits for ever.
        """
        return self._of_agent("to freeze", lambda: self._domain.fsFreeze(None, 0), limit)

    def thaw(self, limit: int) -> int:
        """Have them thawed; gives how many were frozen."""
        return self._of_agent("to thaw", lambda: self._domain.fsThaw(None, 0), limit)

    def _of_agent(self, what: str, call: Callable[[], Any], limit: int) -> int:
        block = self._lib.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK

        def patient() -> int:
            self._domain.agentSetResponseTimeout(limit, 0)
            try:
                return int(call())
            finally:
                self._domain.agentSetResponseTimeout(block, 0)

        return self._ask(what, patient, 2 * limit + ANSWER_LIMIT)

    # ---- checkpoints ---------------------------------------------------------------------------

    def checkpoints(self) -> list[str]:
        """The names of all its checkpoints, whoever made them."""
        found = self._ask("the checkpoints", lambda: self._domain.listAllCheckpoints(0))
        return [str(each.getName()) for each in found]

    def checkpoint(self, name: str) -> Checkpoint | None:
        """A checkpoint, with how much changed since; None: libvirt knows none of this name.

        Of a guest that is off no sizes are told.
        """
        lib = self._lib
        flags = lib.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
        if self.is_active():
            flags |= lib.VIR_DOMAIN_CHECKPOINT_XML_SIZE
        try:
            text = self._ask(
                f"checkpoint {name}",
                lambda: self._domain.checkpointLookupByName(name).getXMLDesc(flags),
            )
        except Refused as error:
            if error.number == Code.NO_CHECKPOINT:
                return None
            raise
        return checkpoint(parsed(text, self.where))

    def remember(self, xml: str) -> None:
        """Tell libvirt of a checkpoint that was made while the guest was off."""
        flags = self._lib.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        self._ask("a checkpoint", lambda: self._domain.checkpointCreateXML(xml, flags))

    def redefine(self, xml: str) -> bool:
        """Tell libvirt of a checkpoint that it has forgotten; whether its bitmaps are there, whole.

        The guest must be on.
        """
        lib = self._lib
        flags = lib.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        flags |= lib.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
        try:
            self._ask("a checkpoint", lambda: self._domain.checkpointCreateXML(xml, flags))
        except Refused as error:
            if error.number == Code.CHECKPOINT_INCONSISTENT:
                return False
            raise
        return True

    def delete(self, name: str, *, metadata_only: bool = False) -> None:
        """Delete a checkpoint, and its bitmaps; one that is gone is fine.

        Args:
            name: its own.
            metadata_only: leave the bitmaps.
        """
        flags = self._lib.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY if metadata_only else 0
        try:
            self._ask(
                f"to delete checkpoint {name}",
                lambda: self._domain.checkpointLookupByName(name).delete(flags),
            )
        except Refused as error:
            if error.number != Code.NO_CHECKPOINT:
                raise

    # ---- backup jobs ---------------------------------------------------------------------------

    def begin(self, backup: str, checkpoint: str | None) -> None:
        """Begin a backup, with a checkpoint of the same moment."""
        self._ask("a backup", lambda: self._domain.backupBegin(backup, checkpoint, 0), BEGIN_LIMIT)

    def job(self) -> BackupJob | None:
        """The backup job that the guest has; None: none, or none that is whole yet."""
        try:
            text = self._ask("the backup job", lambda: self._domain.backupGetXMLDesc(0))
        except Refused as error:
            if error.number == Code.NO_BACKUP:
                return None
            raise
        return backup_job(parsed(text, self.where))

    def settled(self) -> BackupJob | Busy | None:
        """What has the guest, once that is clear; None: nothing does.

        Raises:
            SourceError: it does not become clear.
        """
        end, reason = time.monotonic() + _SETTLE_LIMIT, ""
        while time.monotonic() < end:
            try:
                told = self._ask("the guest's job", lambda: self._domain.jobStats(0))
            except Refused as error:
                if error.number == Code.UNSUPPORTED:  # only the host that it comes from tells
                    return Busy(_OPERATIONS[4])
                if error.number != Code.INTERNAL:
                    raise
                reason = error.reason  # a backup that begins
            else:
                found = self._having(told)
                if found is not _UNCLEAR:
                    return found
            self.cancel.check()
            time.sleep(_PAUSE)
        raise SourceError(
            f"a job holds the guest, and libvirt does not tell which ({reason or 'no reason'}): "
            "libvirtd was ended while a backup began, and nothing but a restart of both ends that",
            where=self.where,
            hint="shut the guest down, then restart libvirtd, then start the guest",
        )

    def _having(self, told: Mapping[str, Any]) -> BackupJob | Busy | None:
        lib = self._lib
        if told.get("type", lib.VIR_DOMAIN_JOB_NONE) == lib.VIR_DOMAIN_JOB_NONE:
            return self.job()
        operation = told.get("operation", lib.VIR_DOMAIN_JOB_OPERATION_UNKNOWN)
        if operation in (lib.VIR_DOMAIN_JOB_OPERATION_UNKNOWN, lib.VIR_DOMAIN_JOB_OPERATION_BACKUP):
            return self.job() or _UNCLEAR
        return Busy(_OPERATIONS.get(operation, "another operation"))

    def trouble_of_ended(self) -> str | None:
        """Why the backup job that has ended by itself failed; None: it did not."""
        flags = self._lib.VIR_DOMAIN_JOB_STATS_COMPLETED
        told = self._ask("how the backup ended", lambda: self._domain.jobStats(flags))
        if told.get("success", told.get("type") == self._lib.VIR_DOMAIN_JOB_COMPLETED):
            return None
        return str(told.get("errmsg", "it was cancelled"))

    def is_backed_up(self, disk: str) -> bool:
        """Whether a disk has the block job of a backup."""
        told = self._ask(f"disk {disk}'s job", lambda: self._domain.blockJobInfo(disk, 0))
        return bool(told) and told.get("type") == self._lib.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP

    def wait_for_files(self, disk: str) -> None:
        """Wait until QEMU has closed the files of a backup job that ended by itself.

        libvirt forgets the job before it has QEMU close them, and holds the guest until then; a
        question that it answers only while nothing else holds the guest comes after.

        Args:
            disk: any of the guest's.
        """
        self.is_backed_up(disk)

    def end_job(self) -> None:
        """End the backup job, and wait until it is gone.

        Raises:
            SourceError: it does not end.
        """
        try:
            self._ask("the backup's end", self._domain.abortJob)
        except Refused as error:
            if error.number != Code.OPERATION_INVALID:
                raise
        end = time.monotonic() + _END_LIMIT
        while self.settled() is not None:
            if time.monotonic() > end:
                raise SourceError("the backup job does not end", where=self.where)
            time.sleep(_PAUSE)


_UNCLEAR = Busy("")
"""A job of which libvirt does not tell enough yet."""

_OPERATIONS = {
    1: "its start",
    2: "a save of its state",
    3: "the restore of its state",
    4: "a migration to here",
    5: "a migration from here",
    6: "a snapshot",
    7: "a return to a snapshot",
    8: "a dump of its memory",
    10: "the deletion of a snapshot",
}
"""`virDomainJobOperation`, in words."""


def version_text(version: int) -> str:
    """A version that libvirt numbers, as people write it: 7002022 is 7.2.22."""
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
