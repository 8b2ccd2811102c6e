"""Disks read over NBD: from servers that take little at once, and from QEMU at length."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleece.cancel import CancelToken
from fleece.disk.nbd import NbdDisk
from fleece.errors import SourceError
from fleece.nbd.connection import connected
from fleece.nbd.uri import unix_uri
from tests.engine.scene import wait_until

_MIB = 1 << 20
_READ = 2 * _MIB
_THREADS = 5
_SIZE = 64 * _MIB


@contextmanager
def _served(folder: Path, *words: str) -> Iterator[tuple[str, int]]:
    """A server that listens at SOCKET: the URI of its export "disk", its process id."""
    socket = folder / "nbd.sock"
    command = [word.replace("SOCKET", str(socket)) for word in words]
    with subprocess.Popen(command) as server:
        try:
            wait_until(socket.exists, "the server")
            yield unix_uri(str(socket), "disk"), server.pid
        finally:
            server.terminate()


def test_a_server_that_takes_little_at_once_is_read_and_written_in_pieces(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(3 * _MIB)
    limits = ["blocksize-maximum=65536", "blocksize-error-policy=error"]
    words = ["nbdkit", "-f", "-U", "SOCKET", "--filter=blocksize-policy", "memory", "4M", *limits]
    with _served(tmp_path, *words) as (uri, _):
        disk = NbdDisk(uri)
        with disk.writer() as writer:
            writer.write(4096, data)
        with disk.reader() as reader:
            assert reader.read(4096, len(data)) == data


def test_qemu_keeps_the_buffers_of_reads_once_much_is_read(tmp_path: Path) -> None:
    """Else it maps each one afresh, with a fault for each page that is read."""
    image = tmp_path / "disk.raw"
    image.write_bytes(b"data" * (_SIZE // 4))
    node = {"driver": "file", "node-name": "disk", "filename": str(image), "read-only": True}
    words = ["qemu-storage-daemon", "--blockdev", json.dumps(node)]
    words += ["--nbd-server", "addr.type=unix,addr.path=SOCKET"]
    words += ["--export", "type=nbd,id=disk,node-name=disk"]
    with _served(tmp_path, *words) as (uri, qemu):
        disk = NbdDisk(uri)
        for _ in range(3):
            _read(disk)
        before = _faults(qemu)
        for _ in range(3):
            _read(disk)
        assert _faults(qemu) - before < 3 * _SIZE // 4096 / 3


def _read(disk: NbdDisk) -> None:
    """Read the whole disk, as a backup's workers do."""

    def work(first: int) -> None:
        with disk.reader() as reader:
            for at in range(first, _SIZE, _THREADS * _READ):
                assert len(reader.read(at, _READ)) == _READ

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(work, range(0, _THREADS * _READ, _READ)))


def _faults(process: int) -> int:
    """Page faults of a process that needed no disk (proc(5), /proc/PID/stat, minflt)."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[7])


class _Exchange(CancelToken):
    """The server that a client waits for hangs up, and another one takes its place."""

    def __init__(self, server: socket.socket, place: str, other: str) -> None:
        super().__init__()
        self._server, self._place, self._other = server, place, other

    def check(self) -> None:
        if self._server.fileno() != -1:
            self._server.close()
            os.rename(self._other, self._place)


def test_a_server_that_hangs_up_on_a_client_that_was_slow_is_asked_again(tmp_path: Path) -> None:
    """QEMU 9.2 and later give a client 10 s; an engine can stand still for longer."""
    place = str(tmp_path / "place.sock")
    with (
        _served(tmp_path, "nbdkit", "-f", "-U", "SOCKET", "-e", "disk", "memory", "1M"),
        socket.socket(socket.AF_UNIX) as server,
    ):
        server.bind(place)
        server.listen()
        token = _Exchange(server, place, str(tmp_path / "nbd.sock"))
        with connected(unix_uri(place, "disk"), cancel=token) as connection:
            assert connection.size == _MIB
        with pytest.raises(SourceError, match="cannot be reached"):
            connected(unix_uri(str(tmp_path / "none"), "disk"))
