"""A server is ended when its engine is killed, also one that is only about to start."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fleece.nbd.server import dies_with_parent

pytestmark = pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv here")


def test_a_child_starts(tmp_path: Path) -> None:
    made = tmp_path / "it's made"
    subprocess.run([*dies_with_parent(), "touch", made], check=True)
    assert made.exists()


def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    """Its signal was due before it asked for it: as one sees whose parent is another process."""
    made = tmp_path / "made"
    words = [*dies_with_parent(), "touch", str(made)]
    done = subprocess.run(["sh", "-c", '"$@"; true', "sh", *words], check=False)
    assert done.returncode == 0
    assert not made.exists()


@pytest.mark.parametrize("death", ["TERM", "KILL"])
def test_a_child_is_ended_with_its_parent(death: str) -> None:
    parent = (
        "import subprocess, sys, os, signal\n"
        "from fleece.nbd.server import dies_with_parent\n"
        f"child = subprocess.Popen([*dies_with_parent({death!r}), 'sh', '-c',"
        " 'echo; exec cat'], stdin=subprocess.PIPE)\n"
        "sys.stdin.read(1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        assert running.stdout.readline() == b"\n"
        running.stdin.write(b".")
        running.stdin.flush()
        assert running.stdout.read() == b""  # nobody holds the other end any more
