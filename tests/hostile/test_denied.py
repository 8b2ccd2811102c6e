"""A socket that cannot be opened: why not is told, and nobody is taken for gone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.scene import INTACT, LIMIT, ROOT, Ran, Scene
from tests.rig.qmp import QmpError

_NOBODY = 65534


def _as_nobody(*words: object) -> Ran:
    """Run fleece as a user who is nothing to QEMU."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user")
    user = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    done = subprocess.run(
        [*user, sys.executable, "-m", "fleece", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "HOME": "/"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    if "No module named" in done.stderr or "Permission denied: " in done.stderr:
        pytest.skip("another user cannot read this copy of the program")
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def foreign(scene: Scene) -> Scene:
    """A QEMU of root's whose monitor anybody may use, and a store and scratch of nobody's."""
    scene.qemu.folder.chmod(0o755)
    scene.qemu.qmp_socket.chmod(0o666)
    # Whoever runs the tests may have a temporary folder that nobody else can enter.
    scene.store = scene.qemu.folder / "store"
    scene.store.mkdir()
    if os.geteuid() == 0:
        for folder in (scene.scratch, scene.store):
            os.chown(folder, _NOBODY, _NOBODY)
    return scene


def test_who_may_not_open_the_nbd_server_leaves_none_behind(foreign: Scene) -> None:
    """Else no backup could begin any more: QEMU runs one server, and nobody would know of it."""
    words = foreign.words()
    for path in (foreign.store, *foreign.store.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY)
    _as_nobody(*words).failed(3, "permission denied", "nbd.sock", "root")
    foreign.nothing_left()
    foreign.store = foreign.folder / "store"
    foreign.take("full")
    foreign.check_exact()
    foreign.nothing_left()


def test_a_server_that_this_user_may_not_open_is_not_taken_for_gone(foreign: Scene) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    place = foreign.qemu.folder / "nbd.sock"
    address = {"type": "unix", "data": {"path": str(place)}}
    foreign.qemu.control.command("nbd-server-start", {"addr": address})
    script = (
        "import sys; from pathlib import Path; from fleece.source.qemu.server import listens;"
        "print(listens(Path(sys.argv[1])))"
    )
    user = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    words = [*user, sys.executable, "-c", script, str(place)]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.stdout == "True\n", done.stderr
    foreign.qemu.control.command("nbd-server-stop")


def test_a_monitor_that_this_user_may_not_open(foreign: Scene) -> None:
    foreign.qemu.qmp_socket.chmod(0o600)
    ran = _as_nobody("doctor", foreign.source, "--json")
    ran.failed(3, "permission denied", "as root", str(foreign.qemu.qmp_socket))


def _folder(path: Path) -> None:
    path.mkdir()


def _file(path: Path) -> None:
    path.touch()


def _left(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))


def _nothing(path: Path) -> None:
    assert not path.exists()


_PLACES: list[tuple[Callable[[Path], None], str]] = [
    (_folder, "this is a folder, not a socket"),
    (_file, "this is not a socket"),
    (_left, "nobody listens on this socket"),
    (_nothing, "there is no such socket"),
]


@pytest.mark.parametrize(
    ("make", "what"), _PLACES, ids=lambda value: getattr(value, "__name__", "")
)
def test_what_is_no_socket_is_told_apart(
    make: Callable[[Path], None], what: str, scene: Scene
) -> None:
    path = scene.qemu.folder / "place"
    make(path)
    INTACT.run("doctor", f"qmp:{path}", "--json").failed(3, what, str(path))
    agent = ("--guest-agent", path, "--require-freeze")
    scene.backup(*agent).failed(4, what, str(path))
    INTACT.run("root", f"nbd+unix:///?socket={path}", "--json").failed(3, what, str(path))
    scene.nothing_left()


def test_a_path_that_is_too_long_for_a_socket(scene: Scene) -> None:
    path = scene.folder / ("x" * 120)
    INTACT.run("doctor", f"qmp:{path}", "--json").failed(3, "too long for a unix socket")
    agent = ("--guest-agent", path, "--require-freeze")
    scene.backup(*agent).failed(4, "too long for a unix socket")
    words = ("root", f"nbd+unix:///?socket={path}", "--json")
    INTACT.run(*words).failed(3, "too long for a unix socket")
    scene.nothing_left()


def test_a_foreign_server_is_still_refused(scene: Scene) -> None:
    address = {"type": "unix", "data": {"path": str(scene.qemu.folder / "other.sock")}}
    scene.qemu.control.command("nbd-server-start", {"addr": address})
    scene.backup().failed(3, "is not fleece's")
    scene.nothing_left(foreign_server=True)
    scene.qemu.control.command("nbd-server-stop")
    with pytest.raises(QmpError):
        scene.qemu.control.command("nbd-server-stop")
