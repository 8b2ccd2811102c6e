"""Serve an image file over NBD by a qemu-nbd of our own, for as long as it is needed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fleece.errors import FleeceError
from fleece.nbd.uri import unix_uri
from fleece.programs import program, server_environment

_START_LIMIT = 20.0
"""Seconds that qemu-nbd may take until it listens."""


@contextlib.contextmanager
def served_image(
    path: str, image_format: str, *, writable: bool, failure: type[FleeceError]
) -> Iterator[str]:
    """Serve an image; gives the NBD URI, and ends qemu-nbd afterwards.

    Args:
        path: of the image.
        image_format: as qemu-img names it (`qcow2`, `raw`).
        writable: else the export is read-only and the image is not locked for writing.
        failure: the family of errors about this image.
    """
    with tempfile.TemporaryDirectory(prefix="fleece-", ignore_cleanup_errors=True) as folder:
        place = Path(folder) / "nbd.sock"
        command = [
            program("qemu-nbd"),
            "--persistent",
            "--shared=16",
            f"--format={image_format}",
            f"--socket={place}",
            "--detect-zeroes=off",
            "--discard=unmap",
        ]
        command += [] if writable else ["--read-only"]
        process = subprocess.Popen(
            [*dies_with_parent(), *command, "--", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=server_environment(),
        )
        try:
            _wait(process, place, path, failure)
            yield unix_uri(str(place))
        finally:
            process.terminate()
            _, errors = process.communicate()
        if process.returncode not in (0, -15):
            raise failure(f"qemu-nbd failed: {_one_line(errors)}", where=path)


def dies_with_parent() -> list[str]:
    """A prefix that ends the child if this process is killed, where the system has one."""
    return ["setpriv", "--pdeathsig=TERM"] if shutil.which("setpriv") else []


def _wait(
    process: subprocess.Popen[bytes], place: Path, path: str, failure: type[FleeceError]
) -> None:
    limit = time.monotonic() + _START_LIMIT
    while not greets(place):
        if process.poll() is not None:
            assert process.stderr is not None
            text = _one_line(process.stderr.read())
            raise failure(f"cannot be opened as an image: {text}", where=path)
        if time.monotonic() > limit:
            raise failure("qemu-nbd did not start in time", where=path)
        time.sleep(0.005)


def greets(place: Path) -> bool:
    """Whether an NBD server answers: qemu-nbd listens before it has opened the image."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_START_LIMIT)
        try:
            probe.connect(str(place))
            return probe.recv(8) == b"NBDMAGIC"
        except OSError:
            return False


def _one_line(text: bytes) -> str:
    return " ".join(text.decode(errors="replace").split())
