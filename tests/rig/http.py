"""HTTP clients that this project did not write: curl, and the one of oVirt's imageio."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig.process import find_tool, run_checked


@dataclass(frozen=True)
class Got:
    """What curl was answered.

    Attributes:
        status: of HTTP; 0: none.
        headers: their names in small letters.
        body: what came of it.
        failed: curl's exit code.
    """

    status: int
    headers: dict[str, str]
    failed: int
    body: bytes = field(repr=False)


def curl(url: str, *words: str | Path) -> Got:
    """Ask for a URL."""
    command = [find_tool("curl"), "-sS", "--path-as-is", "-D", "/dev/stderr", *words, url]
    done = subprocess.run(command, capture_output=True, check=False)
    lines = done.stderr.decode("latin-1").split("\r\n")
    heads = [line for line in lines if line.startswith("HTTP/")]
    status = int(heads[-1].split()[1]) if heads else 0
    pairs = [line.partition(":") for line in lines if ":" in line]
    headers = {name.lower(): text.strip() for name, _, text in pairs}
    return Got(status, headers, done.returncode, done.stdout)


_DOWNLOAD = """
import json, sys
from ovirt_imageio import client
url, file, more = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
client.download(url, file, more.pop("cafile", None), **more)
"""


def imageio_download(url: str, target: Path, **more: Any) -> None:
    """Have imageio's client download a disk, in a process of its own: it is GPL.

    Args:
        url: of the disk.
        target: the new image.
        more: as `ovirt_imageio.client.download` takes it.
    """
    run_checked(sys.executable, "-c", _DOWNLOAD, url, target, json.dumps(more))
