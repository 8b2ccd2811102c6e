"""qemu-system-x86_64: a machine without a guest, and one that boots the rig's own Linux.

All machines are emulated (TCG), so that no test depends on KVM.
"""

from __future__ import annotations

import json
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.rig.disk import Disk
from tests.rig.images import make_overlay
from tests.rig.initramfs import KERNEL_WORDS, GuestFiles
from tests.rig.process import LIMIT, Child, RigError, find_tool
from tests.rig.qemu import QemuProcess
from tests.rig.qmp import GuestAgent, connect_unix
from tests.rig.writer import QemuIo, QemuIoWriter, Writer

__all__ = ["Disk", "GuestMachine", "Machine", "boot_check"]


class Machine(QemuProcess):
    """A machine without a guest, its processors stopped; its disks are written by ``qemu-io``.

    What needs a running machine (``control.command("cont")``) finds a BIOS with nothing to boot.

    Args:
        disks: the disks, as virtio-blk devices with the ids ``vd-NODE``.
        monitors: how many monitors there are for the code under test.
        iothreads: give each disk an iothread of its own.
        extra: more words for QEMU's command line.
    """

    memory_mib = 64

    def __init__(
        self,
        disks: Sequence[Disk],
        *,
        monitors: int = 1,
        iothreads: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        super().__init__(disks, monitors=monitors)
        self._iothreads = iothreads
        self._extra = list(extra)
        self._qemu_io: QemuIo | None = None

    def _spawn(self, log: Path) -> Child:
        # Line by line, because what qemu-io says is read from the log.
        return Child(self._command(), log, line_buffered=True)

    def _on_started(self) -> None:
        self._qemu_io = QemuIo(self.control, self._running.log, self.folder / "qemu-io.data")

    def _make_writer(self, disk: Disk) -> Writer:
        if self._qemu_io is None or not self.alive:
            raise RigError("it does not run")
        return QemuIoWriter(self._qemu_io, disk.backend, iothread=self._iothreads)

    def _command(self) -> list[str]:
        command = [find_tool("qemu-system-x86_64"), "-nodefaults", "-no-user-config"]
        command += ["-display", "none", "-machine", "q35,accel=tcg", "-cpu", "qemu64"]
        command += ["-smp", "1", "-m", str(self.memory_mib), *self._boot_words()]
        for path in [self._control_socket, *self.qmp_sockets]:
            command += ["-qmp", f"unix:{path},server=on,wait=off"]
        for disk in self.disks.values():
            command += self._disk_words(disk)
        return command + self._extra

    def _disk_words(self, disk: Disk) -> list[str]:
        words = ["-blockdev", json.dumps(disk.blockdev())]
        device = f"virtio-blk-pci,drive={disk.node},id={disk.device}"
        if self._iothreads:
            words += ["-object", f"iothread,id=io-{disk.node}"]
            device += f",iothread=io-{disk.node}"
        return [*words, "-device", device]

    def _boot_words(self) -> list[str]:
        return ["-S"]


class GuestMachine(Machine):
    """A machine that boots the rig's Linux, with guest agent and record writer (guest/init).

    It answers after 3 to 4 s. Disks with ext4 are mounted on /a, /b, /c and /d, and the writer
    writes to all of them; `tests.rig.consistency` judges what it wrote.

    Args:
        files: what to boot.
        disks: at most four.
        append: words for the kernel's command line, such as ``rig.mode=none`` (guest/init has
            them all).
        monitors: how many monitors there are for the code under test.
        iothreads: give each disk an iothread of its own.
        extra: more words for QEMU's command line.
    """

    memory_mib = 128

    def __init__(
        self,
        files: GuestFiles,
        disks: Sequence[Disk],
        *,
        append: str = "",
        monitors: int = 1,
        iothreads: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        super().__init__(disks, monitors=monitors, iothreads=iothreads, extra=extra)
        self._files = files
        self._append = append
        self._progress_socket = self.folder / "progress.sock"
        self._progress: threading.Thread | None = None
        self._acked = 0
        self._agent: GuestAgent | None = None

    @property
    def agent_socket(self) -> Path:
        """The guest agent's socket; serves one client at a time."""
        return self.folder / "agent.sock"

    @property
    def acked(self) -> int:
        """The last record that the writer has said to be durable on all disks."""
        return self._acked

    def console(self) -> str:
        """What the guest has printed since its start."""
        log = self.folder / "serial.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def wait_ready(self, timeout: float = LIMIT) -> None:
        """Wait until the guest has mounted its disks and started agent and writer.

        Raises:
            TimeoutError: not within `timeout` seconds.
            RigError: QEMU ended.
        """
        self._wait(lambda: "RIG READY" in self.console(), timeout)

    def wait_acked(self, count: int, timeout: float = LIMIT) -> None:
        """Wait until record `count` is durable on all disks.

        Raises:
            TimeoutError: not within `timeout` seconds.
            RigError: QEMU ended, or the writer in the guest met an error.
        """
        self._wait(lambda: self._acked >= count, timeout)

    def agent(self, timeout: float = LIMIT) -> GuestAgent:
        """A connection to the guest's agent; close it before the code under test needs it.

        It is closed anyway when the machine ends.
        """
        self._agent = GuestAgent(self.agent_socket, timeout=timeout)
        return self._agent

    def _wait(self, done: Callable[[], bool], timeout: float) -> None:
        end = time.monotonic() + timeout
        while not done():
            if not self.alive:
                raise RigError(f"QEMU ended\n{self.output()}\n{self.console()}")
            if "RIG WRITER FAILED" in self.console():
                raise RigError(f"the writer in the guest failed\n{self.console()}")
            if time.monotonic() > end:
                raise TimeoutError(f"acked {self._acked}, console:\n{self.console()}")
            time.sleep(0.02)

    def _boot_words(self) -> list[str]:
        words = ["-kernel", str(self._files.kernel), "-initrd", str(self._files.initramfs)]
        words += ["-append", f"{KERNEL_WORDS} {self._append}"]
        words += ["-no-reboot", "-serial", f"file:{self.folder}/serial.log"]
        words += ["-device", "virtio-serial-pci"]
        words += _port("agent", "org.qemu.guest_agent.0", self.agent_socket)
        return words + _port("progress", "rig.progress", self._progress_socket)

    def _on_started(self) -> None:
        super()._on_started()
        connection = connect_unix(self._progress_socket, LIMIT, lambda: self.alive)
        self._progress = threading.Thread(target=self._follow, args=(connection,), daemon=True)
        self._progress.start()

    def _on_stopped(self) -> None:
        if self._progress is not None:
            self._progress.join()
            self._progress = None
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    def _follow(self, connection: socket.socket) -> None:
        """Hear what the progress port says until QEMU ends."""
        with connection, connection.makefile("rb") as lines:
            try:
                for line in lines:
                    self._hear(line)
            except OSError:
                return

    def _hear(self, line: bytes) -> None:
        """Keep `acked`, from the lines "D N"."""
        match = re.fullmatch(rb"D (\d+)\n", line)
        if match:
            self._acked = int(match[1])


def _port(chardev: str, name: str, path: Path) -> list[str]:
    """A virtio-serial port of the guest that is a unix socket on the host."""
    return [
        "-chardev",
        f"socket,id={chardev},path={path},server=on,wait=off",
        "-device",
        f"virtserialport,chardev={chardev},name={name}",
    ]


def boot_check(files: GuestFiles, disks: Sequence[Disk], timeout: float = LIMIT) -> None:
    """Boot a guest on images (at most four) and check that it mounts every one of them.

    The images are not changed: the guest writes to overlays that are thrown away.

    Raises:
        AssertionError: an image did not mount; the message has the guest's console.
    """
    with tempfile.TemporaryDirectory(prefix="rig-", dir="/tmp") as folder:
        overlays = [
            Disk(make_overlay(Path(folder) / f"{i}.qcow2", disk.path, disk.fmt), disk.node)
            for i, disk in enumerate(disks)
        ]
        with GuestMachine(files, overlays, append="rig.mode=none") as machine:
            machine.wait_ready(timeout)
            console = machine.console()
    for letter, disk in zip("abcd", disks, strict=False):
        assert f"RIG mounted /dev/vd{letter}" in console, f"{disk.path} did not mount\n{console}"
