"""Once the point is stored nothing fails the backup: each step that follows is tried, and told of.

A fault is put into each call that follows the commit, one run each: QEMU refuses a command, its
answer never comes, the kernel fails a call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.events import Committed, Event, Leftover, Warned
from fleece.source.sockets import _unix_sockets
from tests.engine.scene import MIB, Ran, Scene, daemon
from tests.rig import images
from tests.rig.disk import Disk

# Words: a kind of fault, the number of the call, then those of the command line. With "list", the
# names of all calls after the commit go to standard error.
_FAULTY = """
import errno, itertools, json, os, sys
from fleece.cli.main import main
from fleece.cli.output import Output
from fleece.source.qemu.monitor import CommandError, Monitor, Unanswered
kind, wanted = sys.argv[1], int(sys.argv[2])
told, names, count = [], [], itertools.count()
hear = Output.listen
def listen(self, event):
    hear(self, event)
    if event.name == "committed":
        told.append(event)
Output.listen = listen
def wrap(owner, name, fail, after=False):
    plain = getattr(owner, name)
    def wrapper(*words, **named):
        if not told:
            return plain(*words, **named)
        names.append(words[1] if owner is Monitor else name)
        strike = next(count) == wanted
        if strike and not after:
            fail(*words)
        result = plain(*words, **named)
        if strike:
            fail(*words)
        return result
    setattr(owner, name, wrapper)
def system(*words):
    raise OSError(errno.EIO, os.strerror(errno.EIO))
def refuse(self, command, *rest):
    raise CommandError(command, "injected", self.path)
def vanish(self, command, *rest):
    raise Unanswered(f"injected: no answer to {command}", where=self.path)
def crash(self, command, *rest):
    raise KeyError("injected")
if kind in ("refuse", "vanish", "crash", "list-execute"):
    wrap(Monitor, "execute", {"vanish": vanish, "crash": crash}.get(kind, refuse))
else:
    for name in ("unlink", "rmdir", "scandir", "lstat"):
        wrap(os, name, system)
    wrap(os, "close", system, after=True)
code = main(sys.argv[3:])
if kind.startswith("list"):
    print(json.dumps(names), file=sys.stderr)
sys.stdout.flush()
os._exit(code)
"""


def _faulty(scene: Scene, kind: str, number: int) -> Ran:
    scene.writer().write(number % 32 * 65536, os.urandom(100))
    return scene.engine.script(_FAULTY, kind, number, *scene.words()).wait()


def _calls(scene: Scene, kind: str) -> list[str]:
    ran = _faulty(scene, kind, -1).succeeded()
    names: list[str] = json.loads(ran.err)
    return names


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    image = images.random_image(tmp_path / "d0.qcow2", 2 * MIB, seed=1)
    with daemon(tmp_path, Disk(image, "d0")) as made:
        made.take()
        yield made


@pytest.mark.parametrize("kind", ["refuse", "vanish", "crash"])
def test_no_refusal_after_the_commit_fails_the_backup(kind: str, scene: Scene) -> None:
    calls = _calls(scene, "list-execute")
    assert {"block-export-del", "job-dismiss", "blockdev-del", "nbd-server-stop"} < set(calls)
    for number, name in enumerate(calls):
        ran = _faulty(scene, kind, number).succeeded()
        assert len(ran.named("committed")) == 1, name
        assert ran.err == "", name
        told = "".join(event["what"] for event in ran.named("warning"))
        if not told:  # it was tried again, or did not matter
            scene.nothing_left()
            scene.only_newest_segment()
        assert not told or "injected" in told, f"{name}: {told}"
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()
    scene.only_newest_segment()


def test_no_failure_of_the_kernel_after_the_commit_fails_the_backup(scene: Scene) -> None:
    calls = _calls(scene, "list-system")
    assert {"unlink", "rmdir", "close", "scandir"} < set(calls)
    for number, name in enumerate(calls):
        ran = _faulty(scene, "system", number).succeeded()
        assert len(ran.named("committed")) == 1, name
        assert ran.err == "", name
        if not ran.named("warning"):
            scene.nothing_left()
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()


def test_a_refusal_of_one_step_stops_no_other(scene: Scene) -> None:
    """The export stays, and with it what it shows; all else of the point goes."""
    calls = _calls(scene, "list-execute")
    ran = _faulty(scene, "refuse", calls.index("block-export-del"))
    assert ran.succeeded().named("warning") != []
    assert scene.qemu.control.command("query-jobs") == []
    scene.only_newest_segment()
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()


class Unheard(Exception):
    """A listener's own."""


@pytest.mark.parametrize("deaf", [Committed, Warned], ids=lambda kind: kind.__name__)
def test_a_listener_that_raises_is_raised_when_all_is_cleaned_up(
    deaf: type[Event], scene: Scene, tmp_path: Path
) -> None:
    """Also one that raises at the warning that something could not be cleaned up."""
    with pytest.MonkeyPatch.context() as patch:
        if deaf is Warned:
            patch.setattr(fleece.Store, "trust", _cannot)

        def hear(event: Event) -> None:
            if isinstance(event, deaf):
                raise Unheard

        with pytest.raises(Unheard):
            scene.take("full", listener=hear)
    assert scene.points() == 2
    scene.nothing_left()
    scene.only_newest_segment()


def _cannot(*words: object) -> None:
    raise OSError(5, "injected")


@pytest.mark.parametrize(
    "name",
    [b"a b\tc", b"a\nb", b"\n0: 1 2 3", "ä\u2028ö".encode(), b"' \"\\x"],
    ids=["spaces", "a line", "a row", "no ASCII", "quotes"],
)
def test_a_scratch_of_any_name_is_used_and_left_as_it_was(name: bytes, scene: Scene) -> None:
    """`/proc/net/unix` shows a socket's path as it is, ends of lines and all."""
    scene.scratch = scene.scratch / os.fsdecode(name)
    scene.scratch.mkdir()
    for _ in range(2):
        assert scene.backup().succeeded().named("warning") == []
    running = scene.slow_backup("--mode", "full")
    running.wait_event("point")
    running.kill()
    heard: list[Event] = []
    scene.take(listener=heard.append, resume=False)
    assert [event for event in heard if isinstance(event, Leftover)] != []
    scene.check_exact()
    scene.nothing_left()


def test_rows_of_unix_sockets_are_bytes() -> None:
    head = b"Num       RefCount Protocol Flags    Type St Inode Path\n"
    row = b"0000000000000000: 00000002 00000000 %b 0001 01 %5d"
    said = head + row % (b"00010000", 17) + b" /a\nb/\xff c\n" + row % (b"00000000", 12345678)
    said += b"\n" + row % (b"00000000", 9) + b" @x\n"
    assert [*_unix_sockets(said)] == [
        (b"00010000", b"/a\nb/\xff c"),
        (b"00000000", b""),
        (b"00000000", b"@x"),
    ]
