"""Backups into a bucket whose server fails, dies, is full or denies, by the commands users type.

What the client alone does about each fault: ``contract/test_s3_faults.py``.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fleece
from tests.engine.cloud import Cloud, clouded, lived
from tests.engine.cloud_soak import PASSING
from tests.engine.scene import INTACT, MIB, Moment, Ran, Running, small_tmpfs
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.process import run_checked
from tests.rig.s3 import SeaweedFs
from tests.rig.s3_script import Asked, Deed, Hang, Lose, Say, ScriptedS3

_SLOW = Say(503, "SlowDown", "reduce your request rate")
_DENIED = Say(403, "AccessDenied", "access denied")
# Runs a verb for which time passes only in the pauses between tries, and tells in the end how much.
# Words: seconds of silence that are borne in a try, and of such passing time that a call is tried;
# then those of the command line.
_HASTY = """
import sys
import fleece.store.s3.client.caller as caller
from fleece.cli.main import main
from fleece.store.s3.client.retry import Clock, Perseverance
passed = 0.0
def sleep(seconds, cancel):
    global passed
    cancel.check()
    passed += seconds
clock = Clock(lambda: passed, sleep)
silence, seconds = map(float, sys.argv[1:3])
caller.Perseverance = lambda: Perseverance(seconds, silence=silence, clock=clock)
code = main(sys.argv[3:])
print("seconds", passed)
sys.exit(code)
"""


class _Run:
    """How a hasty command ended.

    Args:
        running: it.

    Attributes:
        ran: what it printed.
        seconds: that would have passed.
    """

    def __init__(self, running: Running) -> None:
        ran = running.wait()
        out, _, last = ran.out.removesuffix("\n").rpartition("\n")
        self.ran = Ran(ran.code, out + "\n", ran.err)
        self.seconds = float(last.removeprefix("seconds "))


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, seaweedfs: SeaweedFs) -> Iterator[Cloud]:
    """Of all tests here."""
    with lived(seaweedfs, tmp_path_factory.mktemp("life")) as made:
        yield made


@pytest.fixture
def long(life: Cloud, server: SeaweedFs) -> Cloud:
    """It, changed since its newest point; none but the newest is left."""
    fleece.prune(life.opened(), fleece.KeepRules(last=1), merging=True)
    life.change(0, MIB)
    return life


class _Between:
    """Puts a scripted server before the real one, which commands are told of.

    Args:
        server: the real one.
        patch: tells them.
    """

    def __init__(self, server: SeaweedFs, patch: pytest.MonkeyPatch) -> None:
        self._server, self._patch = server, patch

    @contextmanager
    def __call__(self, script: Callable[[Asked], Deed]) -> Iterator[ScriptedS3]:
        with ScriptedS3(self._server.port, script) as scripted, self._patch.context() as told:
            told.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{scripted.port}")
            yield scripted


@pytest.fixture
def between(server: SeaweedFs, monkeypatch: pytest.MonkeyPatch) -> _Between:
    return _Between(server, monkeypatch)


def hasty(words: tuple[object, ...], silence: float = 60, seconds: float = 300) -> _Run:
    """Run a verb for which time passes only in the pauses between tries."""
    return _Run(INTACT.script(_HASTY, silence, seconds, *words))


def is_data(asked: Asked) -> bool:
    """Whether some of a delta is put."""
    return asked.method == "PUT" and "/data/" in asked.path


def _commit(asked: Asked) -> bool:
    """Whether a change is put: the point is to be seen."""
    return asked.method == "PUT" and "/commits/" in asked.path


def exact_at_last(cloud: Cloud) -> None:
    """The next backup is incremental and exact, and leaves nothing of the one that failed."""
    assert cloud.backup().succeeded().result["mode"] == "incremental"
    cloud.nothing_left()
    cloud.only_newest_segment()
    cloud.check_exact()
    cloud.verify()


def test_each_request_of_each_verb_fails_once(long: Cloud, between: _Between) -> None:
    """In turn by each of what passes; what a lost answer left in parts, the next backup removes."""
    deeds: Iterator[Deed] = itertools.cycle(PASSING)
    hit: set[tuple[str, ...]] = set()

    def script(asked: Asked) -> Deed:
        what = asked.method, asked.path, asked.headers.get("range", "")
        if what in hit:
            return None
        hit.add(what)
        return next(deeds)

    back = long.folder / "back.raw"
    for words in (
        long.words("--mode", "full"),
        ("prune", long.address, "--keep-last", "1", "--json"),
        ("restore", long.address, "latest", "d0", back, "--json"),
    ):
        hit.clear()
        with between(script):
            hasty(words).ran.succeeded()
        assert len(hit) > len(PASSING)
    assert long.points() == 1
    long.same_as_live("d0", back)
    back.unlink()
    exact_at_last(long)


def test_a_backup_waits_through_a_minute_of_slow_down(long: Cloud, between: _Between) -> None:
    slow = itertools.count()

    def script(asked: Asked) -> Deed:
        return _SLOW if is_data(asked) and next(slow) < 20 else None

    with between(script):
        done = hasty(long.words())
    done.ran.succeeded()
    assert 60 < done.seconds < 300
    exact_at_last(long)


@pytest.mark.parametrize(
    ("deed", "silence", "told"),
    [
        pytest.param(_DENIED, 60, "needs the right s3:PutObject", id="denied"),
        pytest.param(Hang(), 0.1, "whose disks are full", id="a full Ceph, which is silent"),
    ],
)
def test_a_server_that_takes_no_more_fails_a_backup_and_loses_nothing(
    long: Cloud, between: _Between, deed: Deed, silence: float, told: str
) -> None:
    """From the second part of a delta on."""
    puts = itertools.count(1)

    def script(asked: Asked) -> Deed:
        return deed if is_data(asked) and next(puts) > 1 else None

    with between(script):
        done = hasty(long.words("--mode", "full"), silence)
    done.ran.failed(5, told)
    assert long.points() == 1
    long.nothing_left()
    exact_at_last(long)


def test_of_a_point_whose_answer_is_lost_success_is_told_only_if_it_is_seen(
    long: Cloud, between: _Between
) -> None:
    """Else the run fails; the point is there, and the next builds on it."""
    lost = threading.Event()

    def script(asked: Asked) -> Deed:
        if _commit(asked) and not lost.is_set():
            lost.set()
            return Lose()
        return _DENIED if lost.is_set() and denying else None

    denying = False
    with between(script):
        long.engine.run(*long.words()).succeeded()
    assert long.points() == 2
    long.change(MIB)
    denying = True
    lost.clear()
    with between(script):
        long.engine.run(*long.words()).failed(5, "access denied")
    assert long.points() == 3
    long.change(2 * MIB)
    exact_at_last(long)


def test_what_a_key_may_not_remove_fails_no_backup(long: Cloud, between: _Between) -> None:
    """What a killed one left in parts stays, with a warning, until somebody may."""
    part = Moment("a part is sent", "fleece.store.s3.client.uploads", "Uploads.part")
    long.killed_backup(part, "--mode", "full")
    assert long.begun() == 1

    def script(asked: Asked) -> Deed:
        return _DENIED if asked.method == "DELETE" or "delete" in asked.path else None

    with between(script):
        done = long.engine.run(*long.words()).succeeded()
    assert [event["what"] for event in done.named("warning")]
    assert long.begun() == 1
    exact_at_last(long)


def test_a_server_is_killed_in_mid_backup(
    long: Cloud, between: _Between, server: SeaweedFs
) -> None:
    """One engine gives up, as the server does not come back; the next one waits until it does."""
    dead = threading.Event()

    def script(asked: Asked) -> Deed:
        if is_data(asked) and not dead.is_set():
            server.kill()
            dead.set()
        return None

    try:
        with between(script):
            hasty(long.words()).ran.failed(5, "times in 2", "/data/")
    finally:
        server.restart()
    assert long.points() == 1
    dead.clear()
    with between(script):
        running = long.engine.command(*long.words())
        try:
            assert dead.wait(60)
        finally:
            server.restart()
        done = running.wait().succeeded()
    assert done.result["mode"] == "incremental"
    assert [disk["dirty_bytes"] for disk in done.result["disks"]] == [MIB]
    long.change(MIB)
    exact_at_last(long)


def test_a_server_whose_disk_is_full_says_so_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one."""
    with small_tmpfs(40) as place:
        server = SeaweedFs(place)
        try:
            for name, text in server.environment.items():
                monkeypatch.setenv(name, text)
            image = images.random_image(tmp_path / "d0.qcow2", 20 * MIB, seed=1, fill=1.0)
            with clouded(server, tmp_path, Disk(image, "d0")) as cloud:
                cloud.backup().succeeded()
                cloud.change(0, MIB)
                done = hasty(cloud.words("--mode", "full"))
                done.ran.failed(5, "the server fails (500 InternalError", "its disks may be full")
                assert cloud.points() == 1
                run_checked("mount", "-o", "remount,size=200m", str(place))
                exact_at_last(cloud)
        finally:
            server.kill()
