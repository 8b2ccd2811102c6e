"""What the storage daemon and the machines have in common: a QEMU process with monitors."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.rig.disk import Disk
from tests.rig.process import LIMIT, Child, RigError
from tests.rig.qmp import Monitor
from tests.rig.writer import Writer


class QemuProcess(ABC):
    """A QEMU process under test; a context manager.

    It has a monitor of the rig's own (`control`) and others, that the rig never touches, for the
    code under test (`qmp_sockets`). On leaving the context the process is ended, cleanly if the
    body raised nothing, and its folder is removed; the images stay.

    Args:
        disks: the disks, in the guest's order.
        monitors: how many monitors there are for the code under test.

    Attributes:
        disks: by node name.
        folder: a short-named directory for sockets and logs (a unix socket's path must stay
            below 108 bytes).
        qmp_sockets: the monitors for the code under test; the same after `restart`.
    """

    def __init__(self, disks: Sequence[Disk], *, monitors: int = 1) -> None:
        self._holder = tempfile.TemporaryDirectory(prefix="rig-", dir="/tmp")
        self.folder = Path(self._holder.name)
        self.disks = {disk.node: disk for disk in disks}
        self.qmp_sockets = [self.folder / f"qmp{i}.sock" for i in range(monitors)]
        self._control_socket = self.folder / "control.sock"
        self._child: Child | None = None
        self._control: Monitor | None = None
        self._writers: list[Writer] = []

    # ---- what a kind of QEMU must say ------------------------------------------------------

    @abstractmethod
    def _spawn(self, log: Path) -> Child:
        """Start the process, its output appended to `log`."""

    @abstractmethod
    def _make_writer(self, disk: Disk) -> Writer:
        """A new writer for a disk of the running process."""

    def _on_started(self) -> None:  # noqa: B027 - a hook; most need none
        """Called when the process runs and `control` is connected."""

    def _on_stopped(self) -> None:  # noqa: B027
        """Called when the process is gone."""

    # ---- life ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._holder.cleanup()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self.alive:
                self.quit()
        finally:
            self.kill()
            self._holder.cleanup()

    def start(self) -> None:
        """Start the process and wait until it answers on the rig's monitor.

        Raises:
            RigError: it runs already, or it ended at once; the message has what it printed.
        """
        if self.alive:
            raise RigError("it runs already")
        self._child = self._spawn(self.folder / "output.log")
        try:
            self._control = Monitor(self._control_socket, alive=lambda: self.alive)
            self._on_started()
        except BaseException as error:
            printed = self.output()
            self.kill()
            if isinstance(error, RigError | OSError | EOFError):
                raise RigError(f"QEMU did not start: {error}\n{printed}") from error
            raise

    def quit(self) -> None:
        """End it cleanly, as the monitor command ``quit`` does. Its guest just loses power.

        Raises:
            RigError: it did not end, and is killed then; or it ended by a crash: what it keeps at
                its end, as persistent bitmaps, is not kept.
        """
        with suppress(EOFError, ConnectionError):
            self.control.command("quit")
        ended = self._running.wait(LIMIT)
        status = self._running.status
        printed = self.output()
        self.kill()
        if not ended:
            raise RigError(f"QEMU did not quit\n{printed}")
        if status:
            raise RigError(f"QEMU crashed as it quit: {status}\n{printed}")

    def kill(self) -> None:
        """End it by SIGKILL, as a crash of the host would. Harmless when it has ended."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        for writer in self._writers:
            writer.close()
        self._writers.clear()
        if self._control is not None:
            self._control.close()
            self._control = None
        self._on_stopped()

    def restart(self) -> None:
        """Start it again on the same disks and sockets, after a clean end if it still runs."""
        if self.alive:
            self.quit()
        self.start()

    # ---- the running process ---------------------------------------------------------------

    @property
    def version(self) -> tuple[int, int, int]:
        """Of QEMU: major, minor, micro."""
        told = self.control.command("query-version")["qemu"]
        return told["major"], told["minor"], told["micro"]

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise RigError("it does not run")
        return self._child

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._child is not None and self._child.alive

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running.pid

    @property
    def qmp_socket(self) -> Path:
        """The first monitor for the code under test."""
        return self.qmp_sockets[0]

    @property
    def control(self) -> Monitor:
        """The rig's own monitor; a new one after `restart`."""
        if self._control is None:
            raise RigError("it does not run")
        return self._control

    def output(self) -> str:
        """What all its runs printed on standard output and error."""
        log = self.folder / "output.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def writer(self, node: str) -> Writer:
        """The guest's side of a disk. It ends with this run of the process."""
        writer = self._make_writer(self.disks[node])
        self._writers.append(writer)
        return writer
