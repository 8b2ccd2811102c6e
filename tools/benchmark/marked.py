"""An export whose dirty bitmap has any number of extents, over a disk that holds nothing."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd

from tests.rig.process import find_tool
from tests.rig.qmp import Monitor

_CLUSTER = 65536
_NODE = "disk"
_BITMAP = "marks"
_AHEAD = 64


@contextmanager
def marked(size: int, count: int) -> Iterator[tuple[str, str]]:
    """Serve a disk of QEMU's null driver on which every other cluster is dirty.

    Args:
        size: of the disk in bytes.
        count: of dirty clusters.

    Returns:
        The NBD URI, and the dirty context's name.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        place, control = Path(folder) / "nbd.sock", Path(folder) / "control.sock"
        node = {"driver": "null-co", "node-name": _NODE, "size": size, "read-zeroes": True}
        command = [find_tool("qemu-storage-daemon"), "--blockdev", json.dumps(node)]
        command += ["--nbd-server", f"addr.type=unix,addr.path={place}"]
        command += ["--chardev", f"socket,id=mon,path={control},server=on,wait=off"]
        command += ["--monitor", "chardev=mon"]
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command])
        try:
            while not control.exists() and process.poll() is None:
                time.sleep(0.01)
            monitor = Monitor(control, alive=lambda: process.poll() is None)
            bitmap = {"node": _NODE, "name": _BITMAP, "granularity": _CLUSTER}
            monitor.command("block-dirty-bitmap-add", bitmap)
            export = {"id": "marks", "type": "nbd", "node-name": _NODE}
            monitor.command("block-export-add", export | {"name": "w", "writable": True})
            _mark(f"nbd+unix:///w?socket={place}", size, count)
            monitor.command("block-export-del", {"id": "marks", "mode": "hard"})
            monitor.command("block-dirty-bitmap-disable", {"node": _NODE, "name": _BITMAP})
            time.sleep(0.5)  # the export goes a moment after its command
            monitor.command("block-export-add", export | {"name": "r", "bitmaps": [_BITMAP]})
            yield f"nbd+unix:///r?socket={place}", f"qemu:dirty-bitmap:{_BITMAP}"
            monitor.close()
        finally:
            process.terminate()
            process.wait()


def _mark(uri: str, size: int, count: int) -> None:
    """Write zeros to every other cluster, spread over the whole disk."""
    handle = nbd.NBD()
    handle.connect_uri(uri)
    step = max(2, size // _CLUSTER // count) * _CLUSTER
    for at in range(0, min(size, step * count), step):
        handle.aio_zero(_CLUSTER, at)
        while handle.aio_in_flight() >= _AHEAD:
            handle.poll(-1)
            while (cookie := handle.aio_peek_command_completed()) > 0:
                handle.aio_command_completed(cookie)
    while handle.aio_in_flight():
        handle.poll(-1)
    handle.shutdown()
