"""How many clients of QEMU's NBD server a run is, and what it does if it gets no place there."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.disk.nbd import NbdDisk
from fleece.events import Event
from fleece.nbd import connection
from fleece.nbd.connection import Connection
from fleece.nbd.uri import unix_uri
from fleece.source.sockets import connections
from fleece.source.workfolder import SOCKET
from tests.engine.scene import GUEST, MIB, Scene, daemon
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.process import LIMIT

_DISKS = 14
_OTHERS = 110
"""More than the 100 that QEMU takes unless it is told otherwise."""


def test_a_backup_gets_a_place_beside_a_hundred_other_clients(scene: Scene) -> None:
    with contextlib.ExitStack() as others:

        def listener(event: Event) -> None:
            if event.name == "point":
                (path,) = scene.scratch.glob(f"*/{SOCKET}")
                exports = scene.qemu.control.command("query-block-exports")
                (name,) = [item["id"] for item in exports if item["type"] == "nbd"]
                for _ in range(_OTHERS):
                    others.enter_context(Connection(unix_uri(str(path), name)))
            elif event.name == "committed":
                others.close()

        scene.take(listener=listener)
    scene.check_exact()
    scene.nothing_left()


@contextlib.contextmanager
def _counted(scene: Scene) -> Iterator[list[int]]:
    """How many connections QEMU's server had, over and over, while the context lasted."""
    seen, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            for path in scene.scratch.glob(f"*/{SOCKET}"):
                seen.append(connections(scene.qemu.pid, path))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_a_worker_is_one_client_however_many_disks_there_are(tmp_path: Path) -> None:
    disks = [
        Disk(
            images.random_image(tmp_path / f"d{n}.raw", 4 * MIB, seed=n, fmt="raw", fill=1.0),
            f"d{n}",
            "raw",
        )
        for n in range(_DISKS)
    ]
    with daemon(tmp_path, *disks) as scene:
        store = fleece.init(scene.store)
        options = fleece.BackupOptions(guest=GUEST, audit=1.0)
        for _ in ("all is read", "all is audited"):
            with (
                fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source,
                _counted(scene) as seen,
            ):
                result = fleece.backup(source, store, options)
            # One that asks for zeros, and those whose end QEMU has not seen yet, come on top.
            assert options.workers <= max(seen) <= 3 * options.workers
            scene.nothing_left()
        assert {disk.audited_bytes for disk in result.disks} == {4 * MIB}
        scene.check_exact("d0", f"d{_DISKS - 1}")


def test_a_server_that_never_greets_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_LIMIT", 1.0)
    path = tmp_path / "mute"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        uri = unix_uri(str(path), "d0")
        begun = time.monotonic()
        with pytest.raises(fleece.SourceError, match="did not answer within 1 s") as told:
            NbdDisk(uri)
        assert time.monotonic() - begun >= 1
        assert told.value.where == uri
        client, _ = listener.accept()
        with client:
            client.settimeout(LIMIT)
            assert client.recv(1) == b"", "the connection was not given up"
