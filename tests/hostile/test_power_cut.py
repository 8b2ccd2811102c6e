"""The power fails: what was said to be done is there, and the next run copes with all else.

The store lies on a file system of its own in a file, which is shut down in the middle of a command:
what was not made durable by then is gone, as it is after a power cut. Each command has mounts of
its own, so that nobody else keeps that file system alive.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.history import Guest
from tests.engine.scene import GUEST, KIB64, MIB, ROOT, Json, Ran, Scene, daemon
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.process import LIMIT, find_tool, run

MOMENTS = 2
"""How many moments of each command are tried besides its end."""
SIZES = {"ext4": 32 * MIB, "xfs": 320 * MIB}
"""The smallest file system that mkfs.xfs makes is one of 300 MiB."""

_MOUNTED = 'mount -o loop "$1" "$2" && shift && place=$1 && shift || exit 99; "$@"; code=$?'
_MOUNTED += '; umount "$place" || exit 98; exit $code'

_CUT = """
import os, subprocess, sys
place, moment, told = sys.argv[1], int(sys.argv[2]), sys.argv[3]
calls = 0
def cut(code):
    sys.stdout.flush()
    subprocess.run(["xfs_io", "-x", "-c", "shutdown", place], check=True, stdin=subprocess.DEVNULL)
    os._exit(code)
def watched(real):
    def call(*words, **named):
        global calls
        calls += 1
        if calls == moment:
            cut(97)
        return real(*words, **named)
    return call
for name in ("fsync", "fdatasync", "rename", "link", "unlink", "rmdir", "mkdir", "write"):
    setattr(os, name, watched(getattr(os, name)))
from fleece.cli.main import main
code = main(sys.argv[4:])
if moment == 0:
    with open(told, "w") as file:
        file.write(str(calls))
cut(code)
"""
"""Runs a command line and cuts the power before its nth call that changes what is on the disk; with
0 in the moment after its success, and says how many calls there were. The command ends with it."""

_STATE = """
import hashlib, json, sys
from pathlib import Path
import fleece
place, name = Path(sys.argv[1]), sys.argv[2]
found = {}
for path in (place / name, place / "new"):
    if (path / "fleece-store").exists() or path.name == name:
        store = fleece.open_store(path)
        catalogue = store.catalogue()
        assert not catalogue.damaged, catalogue.damaged
        assert (result := fleece.verify_store(catalogue)).errors == (), result.errors
        for point in catalogue.points:
            for disk, entry in point.disks.items():
                found[f"{path.name} {point.id} {disk}"] = [entry.root, entry.header.mode.value]
        for pin in path.rglob("[!.]*pin*"):
            found[f"pin {pin.name}"] = True
out = place / "out"
for path in sorted(out.rglob("*")) if out.exists() else ():
    if path.is_file() and ".fleece-" not in str(path):
        found[f"out {path.relative_to(out)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
print(json.dumps(found))
"""


class Volume:
    """A file system in a file, mounted while a command runs.

    Attributes:
        place: its mount point.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.image = folder / f"{kind}.image"
        self.place = folder / "place"
        self.place.mkdir()
        self._told = folder / "calls"
        with self.image.open("wb") as file:
            file.truncate(SIZES[kind])
        done = run(f"mkfs.{kind}", "-q", self.image)
        if done.returncode != 0:
            pytest.skip(f"no {kind} can be made here: {done.stderr}")

    def run(self, *words: object, stdin: Path | None = None) -> Ran:
        """Run a command while it is mounted."""
        command = ["unshare", "--mount", "sh", "-c", _MOUNTED, "-", self.image, self.place, *words]
        with (stdin or Path("/dev/null")).open("rb") as data:
            done = subprocess.run(
                [*map(str, command)], cwd=ROOT, stdin=data, capture_output=True, text=True,
                timeout=LIMIT, check=False,
            )  # fmt: skip
        if done.returncode == 99:
            pytest.skip(f"cannot mount here: {done.stderr}")
        return Ran(done.returncode, done.stdout, done.stderr)

    def fleece(self, *words: object, stdin: Path | None = None) -> Ran:
        """Run fleece."""
        return self.run(sys.executable, "-m", "fleece", *words, stdin=stdin)

    def cut(self, moment: int, *words: object, stdin: Path | None = None) -> Ran:
        """Run fleece, and cut the power at a moment."""
        script = (sys.executable, "-c", _CUT, self.place, moment, self._told)
        return self.run(*script, *words, stdin=stdin)

    def calls(self) -> int:
        """How many moments the last command had that came to its end."""
        return int(self._told.read_text())

    def state(self) -> Json:
        """What the store and a restored image hold; all of it is sound."""
        ran = self.run(sys.executable, "-c", _STATE, self.place, "store").succeeded()
        state: Json = json.loads(ran.out)
        return state

    def copied(self, folder: Path) -> None:
        """Copy the file as it is."""
        folder.mkdir()
        run("cp", "--sparse=always", self.image, folder / "image")

    def put_back(self, folder: Path) -> None:
        """Be what was copied."""
        run("cp", "--sparse=always", folder / "image", self.image)


@pytest.fixture(params=SIZES)
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    """An empty file system, gone with the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    find_tool("xfs_io")
    made = Volume(tmp_path, request.param)
    done = made.run("xfs_io", "-x", "-c", "shutdown", made.place)
    if done.code != 0:
        pytest.skip(f"the power cannot be cut here: {done.err}")
    yield made
    assert run("losetup", "-j", made.image).stdout == ""


@dataclass(frozen=True)
class Case:
    """A command whose power is cut; `{}` stands for the mount point, `{1}` for the first point."""

    name: str
    words: tuple[str, ...]
    reads: bool = False

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("init", ("init", "{}/new")),
    Case("import", ("import", "{}/store"), reads=True),
    Case("merge", ("merge", "{}/store", "{2}")),
    Case("prune", ("prune", "{}/store", "--keep-last", "1")),
    Case("pin", ("pin", "{}/store", "{1}")),
    Case("verify", ("verify", "{}/store")),
    Case("restore", ("restore", "{}/store", "latest", "vda", "{}/out/raw")),
    Case(
        "restore qcow2", ("restore", "{}/store", "latest", "vda", "{}/out/q", "--format", "qcow2")
    ),
    Case("chain", ("restore", "{}/store", "latest", "vda", "{}/out/c", "--as-chain")),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_was_done_is_there_after_a_power_cut(
    case: Case, volume: Volume, tmp_path: Path
) -> None:
    """And what was not done can be done then."""
    guest = Guest(tmp_path / "store")
    guest.holding({"vda": os.urandom(MIB)})
    for _ in range(3):
        guest.become(vda=os.urandom(3 * KIB64) + guest.disk("vda")[3 * KIB64 :])
    last = guest.paths["vda"].pop()
    stdin = last.rename(tmp_path / "delta") if case.reads else None
    if stdin is not None:
        last.parent.rmdir()
    volume.run("cp", "-a", guest.store, volume.place).succeeded()
    volume.run("mkdir", volume.place / "out").succeeded()
    before = volume.state()
    volume.copied(tmp_path / "kept")
    words = [word.format(volume.place, *guest.points) for word in case.words]

    assert volume.cut(0, *words, stdin=stdin).code == 0
    after = volume.state()
    calls = volume.calls()
    assert calls > 0
    volume.put_back(tmp_path / "kept")
    volume.fleece(*words, stdin=stdin).succeeded()
    assert volume.state() == after, "it was not durable when it was said to be done"

    chance = random.Random(f"{case} {volume.image.name}")
    for moment in chance.sample(range(1, calls + 1), min(MOMENTS, calls)):
        volume.put_back(tmp_path / "kept")
        ran = volume.cut(moment, *words, stdin=stdin)
        state = volume.state()
        for name in before.keys() & after.keys():
            assert state[name] in (before[name], after[name]), (moment, name)
        assert ran.code == 97, (moment, ran)
        assert state == after or "committed" not in ran.out, f"moment {moment}: it is gone"
        if state != after:
            volume.fleece(*words, stdin=stdin).succeeded()
        assert volume.state() == after, moment
        left = volume.run("find", volume.place / "store", "-name", "*partial*").out
        assert left == "", (moment, left)


def test_a_backup_outlives_a_power_cut(volume: Volume, tmp_path: Path) -> None:
    """Points that were said to be stored are there, the next one is exact."""
    image = images.random_image(tmp_path / "d0.qcow2", 4 * MIB, seed=1)
    chance, moments = random.Random(volume.image.name), [0, 0]
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        store = volume.place / "store"
        volume.fleece("init", store).succeeded()
        words = ("backup", scene.source, store, "--guest", GUEST, "--scratch", scene.scratch)
        stored: Json = {}
        for number in range(len(moments) + MOMENTS):
            scene.writer().write(number * KIB64, os.urandom(KIB64))
            moment = moments[number] if number < len(moments) else chance.randint(1, volume.calls())
            ran = volume.cut(moment, *words)
            now = volume.state()
            assert now.items() >= stored.items(), moment
            assert ran.code == (97 if moment else 0), (moment, ran)
            if "committed" in ran.out or not moment:
                assert len(now) == len(stored) + 1, (moment, "the point is gone")
            scene.writer().write(2 * MIB, os.urandom(KIB64))
            volume.fleece(*words).succeeded()
            _exact(scene, volume, store)
            stored = volume.state()
            left = volume.run("find", store, "-name", "*partial*").out
            assert left == "", (moment, left)
        scene.nothing_left()


def _exact(scene: Scene, volume: Volume, store: Path) -> None:
    """The newest point on the volume is what the disk holds now."""
    target = scene.folder / "restored"
    volume.fleece("restore", store, "latest", "d0", target).succeeded()
    scene.same_as_live("d0", target)
    target.unlink()
