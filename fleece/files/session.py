"""The other process, and this side of the line to it: gives it the disk's bytes, hears answers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fleece.cancel import CancelToken
from fleece.environment import child_environment
from fleece.errors import DeltaError, StoreError, UsageError
from fleece.files.wire import MOST_BLOB, PAGE, Head, Wire, WireError
from fleece.programs import using
from fleece.terminal import shown

_TICK = 0.2
_SILENCE = 120.0
"""Seconds without a word until the other process is taken for stuck."""

_PACKAGES = Path(__file__).parents[2]


class FilesError(StoreError):
    """A file system, or a part of one, cannot be read: damaged, unknown, encrypted."""


class MissingError(Exception):
    """A path leads nowhere; `link` is the target if the last part that is there is a link."""

    def __init__(self, what: str, at: list[str], link: str | None) -> None:
        super().__init__(what)
        self.what = what
        self.at = "/" + "/".join(at)
        self.link = link


class DiskBytes(Protocol):
    """A disk, as the other process gets it."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def where(self) -> str:
        """Its name in messages."""

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """Exactly `length` bytes, or a `DeltaError`."""


class Session:
    """A reader of one disk. It loads its library while the caller still looks for the disk.

    Args:
        cancel: asked all the time.
    """

    _disk: DiskBytes

    def __init__(self, cancel: CancelToken) -> None:
        self._cancel = cancel
        self._damage: DeltaError | None = None
        self._heard = time.monotonic()
        self._busy = False  # an answer is not read to its end: only closing is left
        self._enough = False
        path = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-P", "-m", "fleece.files.reader"]
        with contextlib.ExitStack() as stack, using(command):
            mine, theirs = socket.socketpair()
            stack.enter_context(theirs)
            stack.enter_context(mine)
            mine.settimeout(_TICK)
            self._line = mine
            self._wire = Wire(mine, self._idle)
            self._process = subprocess.Popen(
                command,
                env=child_environment(PYTHONPATH=os.pathsep.join(path)),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for this process
            )
            stack.pop_all()
            theirs.close()

    def open(self, disk: DiskBytes) -> None:
        """Give it a disk, and wait until it is ready.

        Args:
            disk: whose bytes it gets, such as a `fleece.disk.chain.ChainDisk`.

        Raises:
            UsageError: the library is not installed.
        """
        self._disk, self._heard = disk, time.monotonic()
        for _ in self.ask({"size": self._disk.size}):
            pass

    def close(self) -> None:
        """End it, whatever it does."""
        self._line.close()
        self._process.kill()
        self._process.wait()

    def _idle(self) -> None:
        self._cancel.check()
        if time.monotonic() - self._heard > _SILENCE:
            raise FilesError(
                f"the reader of its file system has been silent for {_SILENCE:.0f} s",
                where=self._disk.where,
                hint="the file system is damaged",
            )

    def ask(self, request: Head) -> Iterator[tuple[Head, bytearray]]:
        """Ask, and give the frames of the answer as they come; take all of them.

        Raises:
            DeltaError: bytes that were needed are damaged in the store.
            FilesError: the file system is damaged, or of no known kind.
            MissingError: there is no such path.
            Interrupted: it was cancelled.
        """
        self._damage = None
        if self._busy:
            raise FilesError("its reader was given up in the middle", where=self._disk.where)
        self._busy = True
        try:
            self._wire.send(request)
            while "end" not in (frame := self._frame())[0]:
                yield frame
        except WireError as error:
            raise self._died(error) from error
        self._busy = False
        self.check()

    def give_up(self) -> None:
        """Have the list that is being taken end where the reader next asks whether to go on.

        Afterwards it can be asked again. Take no more of that list.

        Raises:
            FilesError: it does not end.
        """
        self._enough = True
        try:
            # One that a guest has taken over may never ask.
            frames = (self._frame()[0] for _ in range(PAGE + 1))
            self._busy = not any("end" in head for head in frames)
        except WireError as error:
            raise self._died(error) from error
        finally:
            self._enough = False
        if self._busy:
            raise FilesError("its reader does not end a list", where=self._disk.where)

    def _frame(self) -> tuple[Head, bytearray]:
        """The next frame that is for the one who asked."""
        while True:
            # What comes out of blocks that the reader keeps comes without a pause or a wish.
            self._cancel.check()
            head, blob = self._wire.receive()
            self._heard = time.monotonic()
            if "failed" in head:
                self._busy = False
                raise self._failure(head)
            if "read" in head:
                self._give(head)
            elif "more" in head:
                self._wire.send({"ok": not self._enough})
            else:
                return head, blob

    def check(self) -> None:
        """Raise if the store's damage was met since this was last asked.

        The library may pass over a read that failed; this does not.

        Raises:
            DeltaError: it was.
        """
        damage, self._damage = self._damage, None
        if damage is not None:
            raise damage

    def _give(self, request: Head) -> None:
        """Answer a wish for bytes of the disk; nothing else is ever given."""
        offset, length = int(request["read"]), int(request["length"])
        if not (0 <= length <= MOST_BLOB and 0 <= offset <= self._disk.size - length):
            raise FilesError("its reader asked for what is not there", where=self._disk.where)
        try:
            data = self._disk.read(offset, length)
        except DeltaError as error:
            self._damage = error
            self._wire.send({"ok": False})
        else:
            self._wire.send({"ok": True}, data)

    def _failure(self, head: Head) -> Exception:
        kind, what = head["failed"], head["what"]
        if kind == "missing" and "at" not in head:
            return UsageError(
                f"the library that reads file systems is not installed ({what})",
                hint="pip install 'fleece-backup[files]'",
            )
        if kind in ("missing", "link"):
            return MissingError(what, head["at"], what if kind == "link" else None)
        if self._damage is not None:
            return self._damage
        if kind == "unsupported":
            return FilesError(shown(what))
        return FilesError(f"the file system is damaged or not supported ({shown(what)})")

    def _died(self, error: WireError) -> StoreError:
        if self._damage is not None:
            return self._damage
        self._process.kill()
        code = self._process.wait()
        return FilesError(
            f"the file system is damaged or not supported (its reader ended with {code}: {error})",
            where=self._disk.where,
        )
