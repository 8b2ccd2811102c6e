"""Serve an image file over NBD by a qemu-nbd of our own, for as long as it is needed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fleece.cancel import CancelToken
from fleece.environment import server_environment
from fleece.errors import FleeceError
from fleece.nbd.uri import unix_uri
from fleece.programs import ended, file_name, one_line, program, using
from fleece.temporary import temporary_file, temporary_folder

_TICK = 0.2
_LAST = 4096
"""Bytes of what qemu-nbd said that are told at most."""
_START_LIMIT = 20.0
"""Seconds that qemu-nbd may take until it listens."""


@contextlib.contextmanager
def served_image(
    path: str,
    image_format: str,
    *,
    writable: bool,
    failure: type[FleeceError],
    cancel: CancelToken | None = None,
    name: str | None = None,
) -> Iterator[str]:
    """Serve an image; gives the NBD URI, and ends qemu-nbd afterwards.

    Args:
        path: of the image.
        image_format: as qemu-img names it (`qcow2`, `raw`).
        writable: else the export is read-only and the image is not locked for writing.
        failure: the family of errors about this image.
        cancel: ends the wait for its start, and soon also that for its end.
        name: of the image in messages; None: its path.
    """
    image = ServedImage(path, image_format, failure, name)
    words = ["--shared=16", "--discard=unmap"]
    words += [] if writable else ["--read-only"]
    with temporary_folder() as folder:
        place = folder / "nbd.sock"
        with qemu_nbd(image, place, words, cancel or CancelToken()):
            yield unix_uri(str(place))


@dataclass(frozen=True)
class ServedImage:
    """An image that qemu-nbd serves, and how what it says of the image is told.

    Attributes:
        path: of the image.
        format: as qemu-img names it (`qcow2`, `raw`).
        failure: the family of errors about this image.
        name: of the image in messages; None: its path.
    """

    path: str
    format: str
    failure: type[FleeceError]
    name: str | None = None

    def line(self, text: str) -> str:
        """What qemu-nbd said, in one line, under the image's own name."""
        return text.replace(self.path, self.where)

    @property
    def where(self) -> str:
        """For messages."""
        return self.name or self.path


@contextlib.contextmanager
def qemu_nbd(
    image: ServedImage, place: Path, words: Sequence[str], cancel: CancelToken
) -> Iterator[subprocess.Popen[bytes]]:
    """Serve an image on a unix socket; gives the process, and ends it afterwards.

    Args:
        image: what is served.
        place: of the socket.
        words: more options of qemu-nbd's.
        cancel: ends the wait for its start, and soon also that for its end.

    Raises:
        FleeceError: of the image's family; it cannot be served, or was not to the end.
    """
    command = [
        program("qemu-nbd"),
        "--persistent",
        f"--format={image.format}",
        f"--socket={place}",
        "--detect-zeroes=off",
        *words,
    ]
    # It loses a SIGTERM that comes before it is ready. A reader can be killed at any time.
    reads = "--read-only" in words
    ready = False
    with temporary_file() as said:  # a pipe would be full after some clients that it complains of
        with using(command):
            death = dies_with_parent("KILL" if reads else "TERM")
            process = subprocess.Popen(
                [*death, *command, "--", file_name(image.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=server_environment(),
            )
        try:
            _wait(process, place, image, cancel, said)
            ready = True
            yield process
        finally:
            if reads and not ready:
                process.kill()
            else:
                process.terminate()
            ended(process, cancel)
            errors = _last(said)
    if process.returncode not in (0, -15):
        raise image.failure(f"qemu-nbd failed: {image.line(errors)}", where=image.where)


def dies_with_parent(death: str = "TERM") -> list[str]:
    """A prefix that ends the child if this process is killed, where the system has one.

    One that is killed before the child has asked for the signal would never cause it: so the child
    then looks whether it still has its parent, and else does not start.

    Args:
        death: the signal.
    """
    if shutil.which("setpriv") is None:
        return []
    alive = 'test "$PPID" -eq "$0" && exec "$@"'
    return ["setpriv", f"--pdeathsig={death}", "sh", "-c", alive, str(os.getpid())]


def _last(said: BinaryIO) -> str:
    """The end of what a process has written into a file, in one line."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - _LAST))
    return one_line(said.read())


def _wait(
    process: subprocess.Popen[bytes],
    place: Path,
    image: ServedImage,
    cancel: CancelToken,
    said: BinaryIO,
) -> None:
    limit = time.monotonic() + _START_LIMIT
    while not greets(place, cancel):
        cancel.check()
        if process.poll() is not None:
            text = image.line(_last(said))
            raise image.failure(f"cannot be opened as an image: {text}", where=image.where)
        if time.monotonic() > limit:
            raise image.failure("qemu-nbd did not start in time", where=image.where)
        time.sleep(0.005)


def greets(place: Path, cancel: CancelToken | None = None) -> bool:
    """Whether an NBD server answers: qemu-nbd listens before it has opened the image.

    Raises:
        Interrupted: `cancel` was called before it did.
        UsageError: the system has no socket left.
    """
    with using(("an NBD client",)):
        probe = socket.socket(socket.AF_UNIX)
    with probe:
        probe.settimeout(_TICK)
        try:
            probe.connect(str(place))
        except OSError:
            return False
        end = time.monotonic() + _START_LIMIT
        while time.monotonic() < end:
            if cancel is not None:
                cancel.check()
            try:
                return probe.recv(8) == b"NBDMAGIC"
            except TimeoutError:
                continue
            except OSError:
                return False
    return False
