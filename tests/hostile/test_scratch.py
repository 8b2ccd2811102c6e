"""Whatever lies in the scratch: it is not read, followed, waited for or removed unless it is ours.

A machine whose guest is paused, an agent that counts who talks to it, victims outside of the
scratch, and folders that look like those of an interrupted backup of just this QEMU.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleece.source.workfolder import PREFIX
from tests.engine.scene import (
    MIB,
    Engine,
    MachineScene,
    Mutation,
    Ran,
    Running,
)
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.listening import Listening
from tests.rig.machine import Machine

STRANGER = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make others' files")

_BOUNDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from fleece.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""The engine with little memory: it fails if it reads a file that has no end."""

_SLOW = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from fleece.nbd.connection import Connection
read = Connection.read
def slowly(self, *words):
    time.sleep(0.3)
    return read(self, *words)
Connection.read = slowly
from fleece.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


class Agent(Listening):
    """Takes connections on a socket, as a guest's agent does, and counts them."""

    clients = 0

    def meet(self, client: socket.socket) -> None:
        """Count it."""
        self.clients += 1
        client.close()


class Trap(MachineScene):
    """A scene with a paused guest, an agent and victims.

    Attributes:
        agent: named by the notes that are planted.
        victims: a folder with files of the names that a work folder has.
        chain: of the guest in the store.
    """

    def __init__(self, qemu: Machine, folder: Path) -> None:
        super().__init__(qemu, folder)
        self.scratch.chmod(0o1777)
        self.agent = Agent(qemu.folder / "agent.sock")
        self.victims = folder / "victims"
        (self.victims / "qemu").mkdir(parents=True)
        for name in (*PLACES, "qemu/nbd.sock", "s0.raw", "victim"):
            if name not in ("itself", "qemu"):
                (self.victims / name).write_bytes(b"precious")
        self.take()
        self.chain = self.segments()[0].split("-")[1]
        qemu.control.command("cont")
        qemu.control.command("stop")
        self._kept = _tree(self.victims)
        self._ids = iter(range(10**6))

    def start(self, *words: object, slow: bool = False) -> Running:
        """Start the engine with a bound on its memory."""
        return self.engine.script(_SLOW if slow else _BOUNDED, *words)

    def work_folder(self) -> Path:
        """A name for a work folder of the guest's chain."""
        return self.scratch / f"{PREFIX}{self.chain}-{next(self._ids):010x}"

    def decoy(self) -> Path:
        """A folder just as a backup of this QEMU leaves it that was killed with the guest still."""
        made = self.work_folder()
        made.mkdir(0o700)
        (made / "qemu").mkdir(0o700)
        (made / "lock").write_text(str(self.qemu.pid))
        (made / "server").write_text(str(self.qemu.pid))
        (made / "stopped").touch()
        (made / "frozen").write_bytes(os.fsencode(self.agent.path))
        (made / "joined").write_bytes(os.fsencode(self.victims))
        (made / "s0.qcow2").write_bytes(b"x" * 1000)
        for name in ("lock", "server", "stopped", "frozen", "joined", "s0.qcow2"):
            (made / name).chmod(0o600)
        return made

    def check_unharmed(self) -> None:
        """Nothing outside was touched, the guest stands still, nobody talked to the agent."""
        assert _tree(self.victims) == self._kept
        assert self.status == "paused"
        assert self.agent.clients == 0


Plant = Callable[[Path, Path], None]


def _deep(path: Path, victims: Path) -> None:
    for _ in range(60):
        path.mkdir()
        path = path / "deeper"
    path.symlink_to(victims)


def _huge(path: Path, victims: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _bound(path: Path, victims: Path) -> None:
    short = Path(f"/proc/self/fd/{(folder := os.open(path.parent, os.O_PATH))}") / path.name
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short))
    os.close(folder)


def _link(path: Path) -> None:
    """To a file beside the scratch: on its file system, wherever the victims are."""
    scratch = next(folder for folder in path.parents if folder.name == "scratch")
    other = scratch.parent / "linked"
    if not other.exists():
        other.write_bytes(b"linked")
    os.link(other, path)


KINDS: dict[str, Plant] = {
    "link to a file": lambda path, victims: path.symlink_to(victims / "victim"),
    "link to a folder": lambda path, victims: path.symlink_to(victims),
    "link to nothing": lambda path, victims: path.symlink_to(victims / "none"),
    "link to a device": lambda path, victims: path.symlink_to("/dev/zero"),
    "pipe": lambda path, victims: os.mkfifo(path),
    "socket": _bound,
    "huge file": _huge,
    "deep folder": _deep,
    "hard link": lambda path, victims: _link(path),
    "plain": lambda path, victims: None,
}
PLACES = (
    "itself", "lock", "stopped", "frozen", "server", "joined", "sink.nbd", "s0.qcow2", "qemu"
)  # fmt: skip
OWNERS = ("a stranger's", "root's")
MOMENTS = ("before a backup", "before clean", "during a backup")


def _plant(trap: Trap, place: str, kind: str, owner: str) -> Path | None:
    """Plant one thing; gives what must be there unchanged afterwards, None: it may be ours."""
    if place == "itself":
        return _plant_itself(trap, kind, owner)
    made = trap.decoy()
    if kind != "plain":
        target = made / place
        if target.is_dir():
            target.rmdir()
        else:
            target.unlink(missing_ok=True)
        KINDS[kind](target, trap.victims)
    if owner == "root's":
        # Its own files a user can have as he likes: here, what tells of a stopped guest goes.
        for name in {"stopped", "frozen"} - {place}:
            (made / name).unlink()
        return None
    if kind != "hard link":
        _give(made)
    else:
        os.chown(made, STRANGER, STRANGER)
    return made


def _plant_itself(trap: Trap, kind: str, owner: str) -> Path:
    if kind == "plain":
        made = trap.decoy()
        made.chmod(0o777)  # a mode that fleece never gives
    else:
        made = trap.work_folder()
        KINDS[kind](made, trap.victims)
    if owner != "root's" and kind != "hard link":
        _give(made)
    return made


def _give(path: Path) -> None:
    os.lchown(path, STRANGER, STRANGER)
    if not path.is_symlink() and path.is_dir():
        for item in path.iterdir():
            _give(item)


def _tree(path: Path) -> list[tuple[object, ...]]:
    """All that is in a folder, and what it is, without following anything."""
    found: list[tuple[object, ...]] = []
    for place in [path, *sorted(path.rglob("*") if path.is_dir() else ())]:
        state = place.lstat()
        data = None
        if stat.S_ISREG(state.st_mode) and state.st_size < MIB:
            data = place.read_bytes()
        if stat.S_ISLNK(state.st_mode):
            data = os.fsencode(os.readlink(place))
        same = state.st_mode, state.st_uid, state.st_gid, state.st_ino, state.st_size
        found.append((place, *same, None if path.is_symlink() else state.st_mtime_ns, data))
    return found


def cases(place: str) -> list[tuple[str, str]]:
    """The kinds and owners that are planted at a place.

    Root's own plain folder is one of fleece's, and a folder has no second name.
    """
    return [
        (kind, owner)
        for kind in KINDS
        for owner in OWNERS
        if not (place != "itself" and kind == "plain" and owner == "root's")
    ]


COUNT = sum(len(cases(place)) for place in PLACES) * len(MOMENTS)
"""Of what is planted, where, by whom and when."""


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    image = images.random_image(tmp_path / "d0.qcow2", 2 * MIB, seed=1)
    with Machine([Disk(image, "d0")]) as qemu:
        made = Trap(qemu, tmp_path)
        yield made
        made.agent.close()


def _run(trap: Trap, moment: str, plant: Callable[[], list[Path]]) -> tuple[Ran, list[Path]]:
    """Plant at a moment; gives how the run ended, and what must be unchanged."""
    trap.writer().write(0, os.urandom(1000))
    if moment == "during a backup":
        running = trap.start(*trap.words(), slow=True)
        running.wait_event("point")
        planted = plant()
        return running.wait(), planted
    planted = plant()
    clean = "clean", trap.source, "--scratch", trap.scratch, "--json"
    words = clean if moment == "before clean" else trap.words()
    return trap.start(*words).wait(), planted


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_planted_in_the_scratch_harms_nobody(place: str, moment: str, trap: Trap) -> None:
    before: list[list[tuple[object, ...]]] = []

    def plant() -> list[Path]:
        made = [_plant(trap, place, kind, owner) for kind, owner in cases(place)]
        kept = [path for path in made if path is not None]
        before.extend(_tree(path) for path in kept)
        return kept

    ran, planted = _run(trap, moment, plant)
    ran.succeeded()
    told = [event["what"] for event in ran.named("warning") if "left alone" in event["what"]]
    assert len(told) == (moment != "during a backup")
    trap.check_unharmed()
    assert [_tree(path) for path in planted] == before
    # And now that they lie there: the next backup is as good as any.
    trap.start(*trap.words()).wait().succeeded()
    trap.check_unharmed()
    assert [_tree(path) for path in planted] == before
    trap.check_exact()
    for path in trap.scratch.iterdir():
        path.unlink() if not path.is_dir() or path.is_symlink() else shutil.rmtree(path)
    trap.nothing_left()


def test_so_many_things_are_planted() -> None:
    assert COUNT == 516


def test_thousands_of_folders_cost_a_look_each(trap: Trap) -> None:
    """They are told of in one line, and only the first are named."""
    for number in range(5000):
        path = trap.work_folder()
        path.mkdir()
        if number < 100:
            _huge(path / "lock", trap.victims)
        os.lchown(path, STRANGER, STRANGER)
    for moment in MOMENTS[:2]:
        ran, _ = _run(trap, moment, lambda: [])
        (told,) = ran.succeeded().named("warning")
        assert "and 4997 more" in told["what"]
        assert len(told["what"]) < 1000
    trap.check_unharmed()
    assert len([*trap.scratch.iterdir()]) == 5000


def test_one_folder_with_thousands_of_files(trap: Trap) -> None:
    made = trap.decoy()
    for number in range(10_000):
        (made / f"s{number}.raw").touch()
    ran = trap.start(*trap.words()).wait().succeeded()
    assert "more than 10000 files" in ran.named("warning")[0]["what"]
    trap.check_unharmed()


def test_a_scratch_in_which_others_can_exchange_things_is_told_of(trap: Trap) -> None:
    trap.scratch.chmod(0o777)
    (told,) = trap.backup().succeeded().named("warning")
    assert "no sticky bit" in told["what"]
    assert "--scratch" in told["what"]
    trap.scratch.chmod(0o1777)
    os.chown(trap.scratch, STRANGER, STRANGER)
    (told,) = trap.backup().succeeded().named("warning")
    assert f"it is user {STRANGER}'s" in told["what"]
    os.chown(trap.scratch, 0, 0)
    assert trap.backup().succeeded().named("warning") == []


def test_a_note_of_our_own_is_still_followed(trap: Trap) -> None:
    """Else all of the above would prove nothing."""
    made = trap.decoy()
    (made / "frozen").unlink()
    ran = trap.start("clean", trap.source, "--scratch", trap.scratch, "--json").wait()
    assert "stop of the guest" in [event["kind"] for event in ran.succeeded().named("removed")]
    assert trap.status == "running"
    assert not made.exists()


_TRUSTING = Mutation(
    "whoever made it",
    (
        ("source/workfolder.py", "if state.st_uid != os.geteuid():", "if False:"),
        ("source/workfolder.py", "if state.st_uid == os.geteuid():", "if True:"),
        ("source/workfolder.py", "if not _fits(name", "if False and not _fits(name"),
        ("source/workfolder.py", "if mode not in (", "if False and mode not in ("),
    ),
)


def _fooled(trap: Trap, engine: Engine) -> None:
    trap.engine = engine
    _give(trap.decoy())
    trap.start("clean", trap.source, "--scratch", trap.scratch, "--json").wait()
    trap.check_unharmed()


def test_these_checks_can_fail(trap: Trap, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        _fooled(trap, _TRUSTING.engine(tmp_path))
