"""Writing to a live disk as its guest would, without a guest.

Two ways, one protocol. `FuseWriter` writes through a FUSE export of qemu-storage-daemon,
`QemuIoWriter` through the human monitor command ``qemu-io`` of a machine. Both go through the
block layer above the disk's node: dirty bitmaps and running backup jobs see the writes. Neither
uses QEMU's NBD server, of which a process can have only one: that is the engine's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tests.rig.qmp import Monitor

_KEEP_SIZE = 0x01  # linux/falloc.h
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10


class Writer(Protocol):
    """The guest's side of a disk. Offsets and lengths are in bytes.

    Every method returns when QEMU has done the request and raises OSError when QEMU failed it or
    is gone. Data is durable only after `flush`. May be used by several threads.
    """

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`."""

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Write zeros; with `unmap`, the image may give the space up."""

    def discard(self, offset: int, length: int) -> None:
        """Tell that the range is no longer needed; QEMU may ignore it."""

    def flush(self) -> None:
        """Make all that was written durable."""

    def close(self) -> None:
        """Let go of the disk; every later call raises OSError."""


class FuseWriter:
    """A writer through the file that a FUSE export shows.

    The kernel cuts a write at each MiB of the disk, so `write` is one request only within one.
    Zeroing a range is a write of zeros that keeps the space. On QEMU 7.2 a punched hole is a
    discard; on 10.0 it is a write of zeros that gives the space up, or is refused where the image
    cannot, as within a cluster of qcow2 (block/export/fuse.c). So zeroing with unmap is made of
    both, and of a hole that is refused nothing is told, as the other writer tells nothing.

    Args:
        path: the mounted file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`."""
        view = memoryview(data)
        with self._lock:
            while view:
                done = os.pwrite(self._fd, view, offset)
                if done == 0:  # beyond the end, for QEMU 11
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                view, offset = view[done:], offset + done

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Write zeros; with `unmap`, the image may give the space up."""
        self._fallocate(_ZERO_RANGE, offset, length)
        if unmap:
            self.discard(offset, length)

    def discard(self, offset: int, length: int) -> None:
        """Tell that the range is no longer needed."""
        try:
            self._fallocate(_PUNCH_HOLE, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise

    def flush(self) -> None:
        """Make all that was written durable."""
        with self._lock:
            os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the disk."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                # close asks the daemon, which may be gone; the descriptor is freed all the same.
                with suppress(OSError):
                    os.close(fd)

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        with self._lock:
            # Python's os module has no fallocate with a mode. ctypes lets other threads run.
            failed = _fallocate(self._fd, mode | _KEEP_SIZE, offset, length)
            number = ctypes.get_errno()
        if failed:
            raise OSError(number, os.strerror(number))


_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_fallocate.restype = ctypes.c_int


class QemuIo:
    """The human monitor's ``qemu-io`` command.

    It prints its result on QEMU's standard output, not in the monitor's answer: so the output
    must go to a file, line by line, and be read there.

    Args:
        monitor: the rig's own monitor.
        log: the file that QEMU's standard output goes to.
        data_file: a file to hand data over in; its path without blanks.
    """

    def __init__(self, monitor: Monitor, log: Path, data_file: Path) -> None:
        self._lock = threading.Lock()
        self._monitor = monitor
        self._log = log
        self._data_file = data_file

    def execute(self, backend: str, command: str, expect: str, data: bytes = b"") -> None:
        """Run one command on a device's backend.

        Args:
            backend: the QOM path of the backend.
            command: such as ``discard 0 65536``; ``{data}`` stands for the file with `data`.
            expect: what it prints when it succeeds.
            data: what to write.

        Raises:
            OSError: it failed, or QEMU has gone.
        """
        with self._lock:
            if data:
                self._data_file.write_bytes(data)
            before = self._log.stat().st_size
            line = command.format(data=self._data_file)
            try:
                answer = self._monitor.hmp(f'qemu-io -d {backend} "{line}"')
            except EOFError as error:
                raise OSError(errno.ENOTCONN, str(error)) from error
            with self._log.open("rb") as log:
                log.seek(before)
                printed = answer + log.read().decode(errors="replace")
        if expect not in printed:
            raise OSError(errno.EIO, f"qemu-io {line}: {printed.strip()}")


class QemuIoWriter:
    """A writer through a machine's device backend, stopped or running; about 1 ms a call.

    A write is one request, whatever its size. The device's own error policy (stop the machine,
    tell the guest) does not apply, and a failing flush is not seen.

    Args:
        qemu_io: the machine's ``qemu-io``.
        backend: the QOM path of the disk's backend.
        iothread: the disk has one. There QEMU 7.2's ``qemu-io write -z`` aborts QEMU (it polls the
            iothread's context from the main thread), so zeros are written as data.
    """

    def __init__(self, qemu_io: QemuIo, backend: str, *, iothread: bool = False) -> None:
        self._qemu_io: QemuIo | None = qemu_io
        self._backend = backend
        self._iothread = iothread

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`."""
        if data:
            command = f"write -s {{data}} {offset} {len(data)}"
            self._execute(command, f"wrote {len(data)}/{len(data)} bytes", data)

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Write zeros; with `unmap`, the image may give the space up."""
        if self._iothread:
            self.write(offset, bytes(length))
            return
        flags = "-z -u" if unmap else "-z"
        self._execute(f"write {flags} {offset} {length}", f"wrote {length}/{length} bytes")

    def discard(self, offset: int, length: int) -> None:
        """Tell that the range is no longer needed."""
        self._execute(f"discard {offset} {length}", f"discard {length}/{length} bytes")

    def flush(self) -> None:
        """Make all that was written durable."""
        self._execute("flush", "")

    def close(self) -> None:
        """Let go of the disk."""
        self._qemu_io = None

    def _execute(self, command: str, expect: str, data: bytes = b"") -> None:
        if self._qemu_io is None:
            raise OSError(errno.EBADF, "the writer is closed")
        self._qemu_io.execute(self._backend, command, expect, data)
