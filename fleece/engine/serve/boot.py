"""Boot a point in a throw-away machine: proof that a backup is a machine, not only bytes.

The machine reads the point's disks through `serve`, so every byte that it sees is checked by hash,
and writes into an overlay that goes when it ends. It has no network.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from fleece import events
from fleece.cancel import CancelToken
from fleece.engine.serve.likeness import Likeness, likeness
from fleece.engine.serve.serve import ServedDisk, ServeOptions, Serving, serve
from fleece.engine.work.kvm import examine_kvm
from fleece.engine.work.new_file import (
    Manner,
    check_replaceable,
    is_there,
    new_file,
    target_errors,
)
from fleece.environment import child_environment
from fleece.errors import FleeceError, TargetError, UsageError, VerifyError
from fleece.machine.firmware import SECURE_FLASH, Firmware
from fleece.machine.shape import FLASH
from fleece.nbd.server import dies_with_parent
from fleece.programs import program, using
from fleece.source.qemu.agent import GuestAgent
from fleece.source.qemu.monitor import Monitor
from fleece.store.store import Store
from fleece.temporary import temporary_file, temporary_folder

_AGENT_PORT = "org.qemu.guest_agent.0"
_PAUSE = 0.1
_MONITOR_LIMIT = 30.0
_MOST_CONSOLE = 64 << 20
_TAIL = 2000

DISK_DEVICES = {
    "virtio": "virtio-blk-pci,drive={node}",
    "sata": "ide-hd,drive={node},bus=ide.{number}",
    "scsi": "scsi-hd,drive={node}",
    "nvme": "nvme,serial={node},drive={node}",
}
"""How a disk can be attached, and QEMU's words for it."""


@dataclass(frozen=True)
class BootMachine:
    """The throw-away machine. What is None is as the guest's own machine has it, if that is told.

    Attributes:
        memory: in MiB; None: as much as that has, if the host has it, else 1024.
        processors: how many; None: likewise, else 2.
        emulated: do without KVM, which is slow, even where it is there.
        bus: of the disks, one of `DISK_DEVICES`; None: of each its own, else virtio.
        firmware: an image to start instead of the BIOS, such as OVMF for UEFI; None: the guest's
            UEFI, with a copy of its variables, if it has one.
        kernel, initrd, append: to start a kernel directly, with this command line.

    Raises:
        UsageError: no memory or no processor: QEMU would take its own default.
    """

    memory: int | None = None
    processors: int | None = None
    emulated: bool = False
    bus: str | None = None
    firmware: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str | None = None

    def __post_init__(self) -> None:
        for name, number in (("memory", self.memory), ("processors", self.processors)):
            if number is not None and number < 1:
                raise UsageError(f"{name} must be at least 1", where=number)


@dataclass(frozen=True)
class BootWish:
    """What to boot, what counts as booted, and what to keep.

    Attributes:
        text: that must come on the serial console; None: the guest's agent must answer.
        limit: seconds to wait for it.
        screenshot: a PNG file to make of the screen in the end, whatever the outcome.
        console: a file for all that came on the serial console.
        mode: permissions of both; None: this user's alone, or those of a file that is replaced.
        guest: which guest, if `latest` could mean several.
        scratch: folder for what the guest writes; None: /var/tmp.

    Raises:
        UsageError: the text is empty: it is on any console, before the machine has started.
    """

    text: str | None = None
    limit: float = 300.0
    screenshot: Path | None = None
    console: Path | None = None
    mode: int | None = None
    guest: str | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if self.text == "":
            raise UsageError("the text that must come on the console is empty")


@dataclass(frozen=True)
class BootResult:
    """A point that has booted.

    Attributes:
        guest, point: which.
        disks: that it booted from, with their roots.
        seconds: until the sign came.
        sign: what was waited for: `agent` or `console`.
    """

    guest: str
    point: str
    disks: tuple[ServedDisk, ...]
    seconds: float
    sign: str


def boot_test(
    store: Store,
    point: str,
    disks: tuple[str, ...] = (),
    wish: BootWish | None = None,
    machine: BootMachine | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> BootResult:
    """Boot a point, and wait for a sign of life.

    Args:
        store: that holds the point. It is only read.
        point: an id, a prefix of one, or `latest`.
        disks: which, in the order in which they are tried for booting; none: all, by name.
        wish: what to wait for, and what to keep.
        machine: to boot; None: one like the guest's own.
        listener: hears `Problem` when a read meets damage, and `Warned` when it has not booted, or
            was cancelled, and a file to keep could not be written, or KVM does not work.
        cancel: stops it.

    Raises:
        VerifyError: the sign did not come in time, the machine ended, or a read met damage; its
            `fields` have the end of the console.
        TargetError: QEMU or nbdkit does not start, or a file to keep cannot be written; told at
            once if it can be.
        StoreError: the point is not there, or a chain is broken.
        UsageError: a program is missing, or the point has no such disk.
    """
    wish, machine = wish or BootWish(), machine or BootMachine()
    cancel = cancel or CancelToken()
    for path in (wish.console, wish.screenshot):
        if path is not None:
            _check_place(path)
    _machine_program()
    machine = _as_the_host_can(machine, listener, cancel)
    like = likeness(store, point, wish.guest) or Likeness()
    for lack in like.lacking if machine.firmware is None else ():
        listener(events.Warned(lack))
    with contextlib.ExitStack() as stack:
        options = ServeOptions(wish.guest, writable=True, scratch=wish.scratch)
        serving = stack.enter_context(serve(store, point, disks, options, listener, cancel))
        folder = stack.enter_context(temporary_folder())
        drafted = _Draft(machine, like, serving.disks, folder)
        running = stack.enter_context(_running(drafted))
        try:
            seconds = _wait(running, serving, wish, cancel)
        except BaseException:
            # What came of the machine is what the caller must hear.
            for lost in _keep(running, wish, listener):
                listener(events.Warned(str(lost)))
            raise
        for lost in _keep(running, wish, listener):
            raise lost
    sign = "agent" if wish.text is None else "console"
    return BootResult(serving.guest, serving.point, serving.disks, seconds, sign)


def _machine_program() -> str:
    return program("qemu-system-x86_64", "qemu-system-x86")


def _as_the_host_can(
    machine: BootMachine, listener: events.Listener, cancel: CancelToken
) -> BootMachine:
    """The machine, emulated if KVM cannot run it."""
    if machine.emulated or (kvm := examine_kvm(cancel=cancel)).works:
        return machine
    hint = "" if kvm.hint is None else f"; {kvm.hint}"
    listener(events.Warned(f"{kvm}: the machine is emulated, which is slow{hint}"))
    return replace(machine, emulated=True)


class _Running:
    """A machine that was started.

    Args:
        process: QEMU's.
        folder: of its own, with its sockets.
        console: what comes on its serial console.
        errors: what it prints.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        folder: Path,
        console: BinaryIO,
        errors: BinaryIO,
    ) -> None:
        self.process = process
        self.folder = folder
        self.monitor = folder / "qmp"
        self.agent = GuestAgent(str(folder / "agent"), answer_limit=1.0)
        self._console = console
        self._errors = errors

    def console(self) -> str:
        """What came on the serial console."""
        return _content(self._console)

    def said(self) -> str:
        """What QEMU printed, in one line."""
        return " ".join(_content(self._errors).split())

    def alive(self) -> bool:
        """Whether the machine still is."""
        return self.process.poll() is None


def _content(file: BinaryIO) -> str:
    return os.pread(file.fileno(), _MOST_CONSOLE, 0).decode(errors="replace")


@dataclass(frozen=True)
class _Draft:
    """What is known of a machine before it is started."""

    machine: BootMachine
    like: Likeness
    disks: Sequence[ServedDisk]
    folder: Path

    def command(self, console: int) -> list[str]:
        """The words that start it."""
        machine, like, folder = self.machine, self.like, self.folder
        flash = like.firmware if machine.firmware is None else None
        words = [_machine_program(), "-nodefaults", "-no-user-config"]
        words += ["-machine", "q35,smm=on" if flash is not None and flash.smm else "q35"]
        words += ["-cpu", "max", "-no-reboot"]
        words += ["-accel", "tcg" if machine.emulated else "kvm"]
        words += ["-smp", str(machine.processors or like.processors)]
        words += ["-m", str(machine.memory or like.memory)]
        words += ["-nic", "none", "-display", "none", "-vga", "std"]
        words += ["-serial", f"file:/proc/self/fd/{console}"]
        words += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
        words += ["-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off"]
        words += ["-device", "virtio-serial-pci"]
        words += ["-device", f"virtserialport,chardev=agent,name={_AGENT_PORT}"]
        for option, value in (
            ("-bios", machine.firmware),
            ("-kernel", machine.kernel),
            ("-initrd", machine.initrd),
            ("-append", machine.append),
        ):
            words += [] if value is None else [option, str(value)]
        return words + ([] if flash is None else self._flash(flash)) + self._drives(flash)

    def _flash(self, firmware: Firmware) -> list[str]:
        """The guest's UEFI, with a copy of its variables."""
        words = SECURE_FLASH.split() if firmware.smm else []
        code = str(firmware.code).replace(",", ",,")
        words += ["-drive", f"if=pflash,format=raw,readonly=on,file={code}"]
        if self.like.variables is not None:
            place = self.folder / "variables"
            with target_errors(place):
                place.write_bytes(self.like.variables)
            words += ["-drive", f"if=pflash,format=raw,file={place}"]
        return words

    def _drives(self, flash: Firmware | None) -> list[str]:
        own = [self.machine.bus or self.like.buses.get(disk.disk, "") for disk in self.disks]
        words = ["-device", "virtio-scsi-pci"] if "scsi" in own else []
        for number, (disk, bus) in enumerate(zip(self.disks, own, strict=True)):
            node, place = f"disk{number}", disk.uri.replace(",", ",,")
            if bus == FLASH:
                # Without its firmware nothing reads it.
                drive = ["-drive", f"if=pflash,format=raw,cache=unsafe,file={place}"]
                words += [] if flash is None else drive
                continue
            words += ["-drive", f"if=none,id={node},format=raw,cache=unsafe,file={place}"]
            known = DISK_DEVICES.get("sata" if bus == "ide" else bus, DISK_DEVICES["virtio"])
            # A kernel that is started directly has the first index.
            device = f"{known.format(node=node, number=number)},bootindex={number + 1}"
            words += ["-device", device]
        return words


@contextlib.contextmanager
def _running(draft: _Draft) -> Iterator[_Running]:
    """A machine for as long as the context lasts."""
    # Files without names: what a guest said must not stay if this process is killed.
    with temporary_file() as console, temporary_file() as errors:
        # A group of its own: Ctrl-C is for this process, which then ends QEMU in order.
        command = draft.command(console.fileno())
        with using(command):
            process = subprocess.Popen(
                [*dies_with_parent(), *command],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(console.fileno(),),
                process_group=0,
                env=child_environment(),
            )
        try:
            yield _Running(process, draft.folder, console, errors)
        finally:
            process.kill()
            process.wait()


def _wait(running: _Running, serving: Serving, wish: BootWish, cancel: CancelToken) -> float:
    """Wait for the sign; gives the seconds that it took."""
    begun = time.monotonic()
    while True:
        cancel.check()
        serving.check()
        passed = time.monotonic() - begun
        if serving.problems:
            raise _failed(running, "reads met damage while it booted", serving)
        if _came(running, wish):
            return passed
        if not running.alive():
            if not running.console():
                raise TargetError(f"QEMU does not start: {running.said()}")
            raise _failed(running, "the machine ended before it had booted", serving)
        if passed > wish.limit:
            what = "the guest's agent" if wish.text is None else f"{wish.text!r} on the console"
            raise _failed(running, f"{what} did not come in {wish.limit:g} s", serving)
        time.sleep(_PAUSE)


def _came(running: _Running, wish: BootWish) -> bool:
    if wish.text is not None:
        return wish.text in running.console()
    return running.alive() and running.agent.answers()


def _failed(running: _Running, what: str, serving: Serving) -> VerifyError:
    said = running.console()[-_TAIL:]
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\n]", "", said)
    lines = [line for line in shown.splitlines() if line.strip()]
    error = VerifyError(
        f"point {serving.point} did not boot: {what}",
        hint=f"the console's last line: {lines[-1]!r}" if lines else "nothing came on the console",
    )
    error.fields = {"point": serving.point, "console": shown}
    return error


def _check_place(path: Path) -> None:
    """Refuse a file that cannot be written when the machine has run, which takes its time.

    Raises:
        TargetError: that can be told.
    """
    if is_there(path):
        check_replaceable(path)
    if not os.access(path.parent, os.W_OK):
        raise TargetError("cannot be written", where=path, hint="choose another place")


def _keep(running: _Running, wish: BootWish, listener: events.Listener) -> list[FleeceError]:
    """Keep screenshot and console, as far as they are wished for; gives what went wrong."""
    manner = Manner(force=True, mode=wish.mode, listener=listener)
    wrong: list[FleeceError] = []
    if wish.console is not None:
        try:
            with new_file(str(wish.console), manner) as file:
                file.write(running.console().encode())
        except FleeceError as error:
            wrong.append(error)
    if wish.screenshot is not None and running.alive():
        try:
            with new_file(str(wish.screenshot), manner) as file:
                file.write(_screen(running))
        except FleeceError as error:
            wrong.append(TargetError(f"no screenshot: {error.what}", where=wish.screenshot))
    return wrong


def _screen(running: _Running) -> bytes:
    """The screen as a PNG file."""
    place = running.folder / "screen.png"
    with _monitor(running) as monitor:
        monitor.execute("screendump", {"filename": str(place), "format": "png"})
    with target_errors(place):
        return place.read_bytes()


def _monitor(running: _Running) -> Monitor:
    """Connect, as soon as QEMU listens."""
    limit = time.monotonic() + _MONITOR_LIMIT
    while not running.monitor.exists() and running.alive() and time.monotonic() < limit:
        time.sleep(_PAUSE)
    return Monitor(str(running.monitor))
