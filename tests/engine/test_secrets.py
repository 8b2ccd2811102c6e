"""What opens a store is in no process that reads what a guest has written."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.scene import INTACT, MIB, Running, Scene, daemon, wait_until
from tests.engine.test_boot import machines
from tests.engine.test_serve import children
from tests.rig import filesystems as made
from tests.rig.disk import Disk
from tests.rig.process import LIMIT

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """An encrypted store with one ext4 disk, on which is a file that no pipe takes at once."""
    folder = tmp_path_factory.mktemp("secrets")
    tree, phrase = folder / "tree", folder / "phrase"
    tree.mkdir()
    (tree / "large").write_bytes(random.Random(1).randbytes(MIB))
    phrase.write_text(PASSPHRASE)
    with daemon(folder, Disk(made.ext(folder / "ext4", 8 * MIB, tree), "vda", "raw")) as scene:
        scene.init("--encrypt", "--passphrase-file", phrase)
        scene.backup("--passphrase-file", phrase).succeeded()
        yield scene


@pytest.fixture(autouse=True)
def passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the environment, as of a service."""
    monkeypatch.setenv("FLEECE_PASSPHRASE", PASSPHRASE)
    monkeypatch.setenv("FLEECE_PASSPHRASE_FILE", "")
    monkeypatch.setenv("FLEECE_KEY_FILE", "")


def knows_no_secret(process: Path) -> None:
    """Check what a process was started with, once it is more than a fork."""
    wait_until(lambda: b"PATH=" in (process / "environ").read_bytes(), "its environment")
    started = (process / "environ").read_bytes()
    for secret in (b"FLEECE_PASSPHRASE", b"FLEECE_KEY_FILE", PASSPHRASE.encode()):
        assert secret not in started, (process / "cmdline").read_bytes()


@contextmanager
def command(*words: object) -> Iterator[Running]:
    """A command that runs, and is told to end whatever is found."""
    running = INTACT.command(*words)
    try:
        yield running
    finally:
        running.signal(signal.SIGTERM)
        running.close_output()


def test_the_reader_of_file_systems_knows_no_secret(scene: Scene) -> None:
    def readers() -> list[Path]:
        found = [Path(f"/proc/{pid}") for pid in children(running.pid)]
        # Until it has become the other program, a child has the environment of its parent.
        return [path for path in found if b"files.reader" in (path / "cmdline").read_bytes()]

    with command("files", scene.store, "latest", "vda", "cp", "/large", "-") as running:
        wait_until(lambda: bool(readers()), "the reader")
        (reader,) = readers()
        knows_no_secret(reader)


def test_neither_the_machine_nor_its_server_knows_a_secret(scene: Scene) -> None:
    words = ("boot-test", scene.store, "latest", "--emulated", "--memory", 64, "--timeout", LIMIT)
    with command(*words) as running:
        wait_until(lambda: bool(machines(running.pid)), "a machine")
        assert len(children(running.pid)) == 2
        for pid in children(running.pid):
            knows_no_secret(Path(f"/proc/{pid}"))


def test_a_server_of_a_point_knows_no_secret(scene: Scene) -> None:
    with command("serve", scene.store, "latest", "--json") as running:
        running.wait_event("serving")
        (server,) = children(running.pid)
        knows_no_secret(Path(f"/proc/{server}"))


def test_a_wrong_passphrase_that_is_not_utf_8_is_one_error_and_not_shown(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEECE_PASSPHRASE", "sesame\udcff")
    for words in ((), ("--json",)):
        ran = INTACT.run("list", scene.store, *words).failed(2, "not the key")
        assert "sesame" not in ran.out + ran.err


def test_the_callers_own_environment_stays_as_it_is(scene: Scene) -> None:
    script = (
        "import fleece, os, sys; secret = fleece.Secret.of_passphrase(sys.argv[2])\n"
        "with fleece.serve(fleece.open_store(sys.argv[1], secret), 'latest'):\n"
        "    print(os.environ['FLEECE_PASSPHRASE'])"
    )
    ran = INTACT.script(script, scene.store, PASSPHRASE).wait().succeeded()
    assert ran.out.split(os.linesep)[0] == PASSPHRASE
