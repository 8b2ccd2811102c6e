"""The two QEMU processes of a measurement: the source, and a plain export of the same image."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.daemon import StorageDaemon
from tests.rig.process import find_tool

NODE = "disk"


@contextmanager
def plain_export(image: Path, fmt: str) -> Iterator[tuple[str, int]]:
    """Serve an image read-only by a qemu-storage-daemon of its own, while another one writes it.

    Gives the NBD URI and the process id.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        socket = Path(folder) / "nbd.sock"
        file = {"driver": "file", "filename": str(image)}
        node = {"driver": fmt, "node-name": NODE, "read-only": True, "force-share": True}
        command = [
            find_tool("qemu-storage-daemon"),
            "--blockdev",
            json.dumps(node | {"file": file}),
        ]
        command += ["--nbd-server", f"addr.type=unix,addr.path={socket}"]
        command += ["--export", f"type=nbd,id=plain,node-name={NODE},name={NODE}"]
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command])
        try:
            while not socket.exists() and process.poll() is None:
                time.sleep(0.01)
            yield f"nbd+unix:///{NODE}?socket={socket}", process.pid
        finally:
            process.terminate()
            process.wait()


def forget_points(source: StorageDaemon) -> None:
    """Remove all dirty bitmaps, so that the next backup finds the disk as the first one did."""
    for node in source.control.command("query-named-block-nodes"):
        for bitmap in node.get("dirty-bitmaps", []):
            if node["node-name"] == NODE:
                arguments = {"node": NODE, "name": bitmap["name"]}
                source.control.command("block-dirty-bitmap-remove", arguments)
