"""`fleece run`: many guests by one file, run as its users run it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import fleece
from fleece.cancel import CancelToken
from fleece.engine.backup import fill_by_pull
from fleece.fleet import config as config_module
from fleece.fleet import run as fleet_run
from fleece.fleet import steps
from fleece.fleet.alone import alone
from fleece.fleet.config import load
from fleece.fleet.plan import Plan, PlannedGuest, plan
from fleece.fleet.steps import GuestResult, Step, StepResult, Work
from fleece.pace import Pace, rate_now
from tests.engine.scene import INTACT, LIMIT, MIB, Ran, wait_until
from tests.engine.test_boot import bootable
from tests.rig.libvirt import GuestDisk, libvirtd
from tests.rig.process import run_checked


class Fleet:
    """Guests that are off, a store, another one for copies, and the file that says so.

    Attributes:
        folder: of all that.
        image: of each guest.
        more: what the file says besides, of the store.
        limits: likewise, of the limits.
        last: likewise, of the last guest.
        after: likewise, at its end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image: dict[str, Path] = {}
        self.more = self.limits = self.last = self.after = ""
        for name in ("store", "copies"):
            INTACT.run("init", folder / name).succeeded()

    def add(self, *names: str) -> None:
        """Make guests of a disk each."""
        for name in names:
            self.image[name] = self.folder / f"{name}.qcow2"
            run_checked("qemu-img", "create", "-q", "-f", "qcow2", self.image[name], "16M")
            self.write(name, 0)

    def write(self, name: str, offset: int) -> None:
        """Write into a guest's disk."""
        word = f"write -q -P {len(name) + offset % 7 + 1} {offset} 1M"
        run_checked("qemu-io", "-f", "qcow2", "-c", word, self.image[name])

    @property
    def file(self) -> Path:
        """The configuration, as it is now."""
        text = f'[store.main]\nplace = "{self.folder}/store"\n{self.more}\n'
        text += f'[store.copies]\nplace = "{self.folder}/copies"\n'
        text += f"[limits]\nretries = 2\nretry-wait = 1\n{self.limits}\n"
        for name, image in self.image.items():
            text += f'[[guest]]\nname = "{name}"\nsource = "image:vda={image}"\nstore = "main"\n'
        path = self.folder / "fleece.toml"
        path.write_text(f"{text}{self.last}\n{self.after}")
        path.chmod(0o600)
        return path

    def words(self, *words: object) -> tuple[object, ...]:
        """The words of a run."""
        return ("run", "--config", self.file, "--json", *words)

    def run(self, *words: object) -> Ran:
        """Run it."""
        return INTACT.run(*self.words(*words))

    def in_process(self, guest: str, *, any_time: bool = False) -> GuestResult:
        """Run it for one guest, in this process."""
        (result,) = self.all_in_process(guest, any_time=any_time)
        return result

    def all_in_process(self, *guests: str, any_time: bool = False) -> tuple[GuestResult, ...]:
        """Run it in this process; gives what became of the guests."""
        config = load(self.file)
        token = CancelToken()
        work = Work(config, [*Step], {}, lambda name, event: None, token, any_time=any_time)
        return fleet_run.run(plan(config, guests), work, lambda one: None).guests

    def check_exact(self, *names: str, store: str = "store") -> None:
        """Check the newest points of guests, by what others read of their images."""
        for name in names:
            back = self.folder / f"{name}.back"
            place = fleece.open_store(self.folder / store)
            fleece.restore(place, "latest", "vda", str(back), fleece.RestoreOptions(guest=name))
            run_checked("qemu-img", "compare", "-f", "raw", "-F", "qcow2", back, self.image[name])
            back.unlink()


def _steps(ran: Ran) -> dict[str, list[tuple[str, bool]]]:
    return {
        told["guest"]: [(step["step"], step["ok"]) for step in told["steps"]]
        for told in ran.named("guest")
    }


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Three guests."""
    made = Fleet(tmp_path)
    made.add("a", "b", "c")
    return made


def test_all_that_is_asked_for_is_done_and_one_failure_stops_nobody_else(fleet: Fleet) -> None:
    fleet.more = 'keep = { last = 1 }\nverify = {}\ncopy-to = ["copies"]'
    fleet.image["b"].rename(fleet.folder / "elsewhere")
    ran = fleet.run()
    ran.failed(fleece.ExitCode.SOURCE, "1 of 3 guests failed", "b.qcow2: No such file")
    whole = [(step, True) for step in ("backup", "copy", "prune", "verify")]
    assert _steps(ran) == {"a": whole, "b": [("backup", False)], "c": whole}
    (fleet.folder / "elsewhere").rename(fleet.image["b"])
    for nth in (1, 2):
        for name in "abc":
            fleet.write(name, nth * MIB)
        assert _steps(fleet.run().succeeded()) == dict.fromkeys("abc", whole)
    fleet.check_exact("a", "b", "c")
    fleet.check_exact("a", "b", "c", store="copies")
    counts = {
        name: Counter(
            point.guest for point in fleece.open_store(fleet.folder / name).catalogue().points
        )
        for name in ("store", "copies")
    }
    assert counts == {"store": {"a": 1, "b": 1, "c": 1}, "copies": {"a": 3, "b": 2, "c": 3}}


def test_people_see_a_table_and_what_failed(fleet: Fleet) -> None:
    fleet.image["b"].unlink()
    ran = INTACT.run("run", "--config", fleet.file)
    lines = ran.out.splitlines()
    assert lines[0].split() == ["GUEST", "STORE", "MODE", "READ", "STORED", "TOOK", "WHAT"]
    assert lines[1].split()[:3] == ["a", "main", "full"]
    assert "backup FAILED: " in lines[2]
    assert "b: backup failed: " in ran.err
    ran.failed(fleece.ExitCode.SOURCE, "1 of 3 guests failed")
    ran = INTACT.run("run", "--config", fleet.file, "-q", "a", "c").succeeded()
    assert (ran.out, ran.err) == ("", "")
    ran = INTACT.run("run", "--config", fleet.file, "-v", "a").succeeded()
    assert "a: point " in ran.err


def test_a_store_is_opened_once_for_all_guests_that_take_turns(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once more after a step that failed."""
    fleet.more, fleet.limits = 'verify = {}\ncopy-to = ["copies"]', "at-once = 1"
    opened: list[str] = []
    opening = fleece.open_store

    def open_store(place: str, *words: Any) -> fleece.Store:
        opened.append(Path(place).name)
        return opening(place, *words)

    monkeypatch.setattr(fleece, "open_store", open_store)
    assert [result.error for result in fleet.all_in_process()] == [None] * 3
    assert opened == ["store", "copies"]
    fleet.image["b"].unlink()
    assert [result.error is None for result in fleet.all_in_process()] == [True, False, True]
    assert opened[2:] == ["store", "copies", "store"]


def test_a_dry_run_changes_nothing(fleet: Fleet) -> None:
    fleet.more = 'keep = { last = 1 }\nverify = {}\ncopy-to = ["copies"]'
    fleet.run().succeeded()
    fleet.run("a", "--only", "backup").succeeded()
    before = sorted(str(path) for path in fleet.folder.rglob("*"))
    said = [
        step["said"] for step in fleet.run("a", "--dry-run").succeeded().named("guest")[0]["steps"]
    ]
    assert said[0].startswith("would back up image:")
    assert said[1:] == [
        "would send 1 point to copies",
        "would remove 1 of 2 points",
        "would verify",
    ]
    assert sorted(str(path) for path in fleet.folder.rglob("*")) == before


def test_steps_and_guests_are_chosen(fleet: Fleet) -> None:
    fleet.more = "keep = { last = 1 }"
    assert _steps(fleet.run("c", "a", "--only", "backup").succeeded()) == {
        "a": [("backup", True)],
        "c": [("backup", True)],
    }
    fleet.run("d").failed(fleece.ExitCode.USAGE, "no guest 'd' is looked after; known are: a, b, c")


def test_a_guest_whose_point_is_young_is_not_due(fleet: Fleet) -> None:
    """The others are; and what else is asked for of that one is done."""
    fleet.more, fleet.last = "verify = {}", 'every = "1d"'
    for points in (1, 2):
        said = {told["guest"]: told["steps"] for told in fleet.run().succeeded().named("guest")}
        catalogue = fleece.open_store(fleet.folder / "store").catalogue()
        assert Counter(point.guest for point in catalogue.points) == {
            "a": points,
            "b": points,
            "c": 1,
        }
        assert said["c"][1]["said"] == "verified 1 delta, 0 left"
    assert said["c"][0]["said"].startswith("not due: point ")


def test_a_step_is_tried_again_while_somebody_else_is_at_work(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.run("a").succeeded()
    ended = contextlib.ExitStack()
    waited: list[float] = []

    def wait(seconds: float, cancel: CancelToken) -> None:
        waited.append(seconds)
        if len(waited) == 4:
            ended.close()

    monkeypatch.setattr(steps, "_wait", wait)
    ended.enter_context(fleece.open_store(fleet.folder / "store").locked("a"))
    result = fleet.in_process("a")
    assert result.error is not None
    assert "another backup of a" in str(result.error)
    assert waited == [1, 2]
    result = fleet.in_process("a")
    assert (result.error, waited) == (None, [1, 2, 1, 2])
    assert len(fleece.open_store(fleet.folder / "store").catalogue().points) == 2


def test_the_newest_point_is_booted_until_one_has_and_then_when_that_is_long_ago(
    fleet: Fleet,
) -> None:
    raw = fleet.folder / "raw"
    raw.write_bytes(bootable())
    run_checked("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, fleet.image["c"])

    def booted(text: str, limit: int) -> StepResult:
        fleet.last = f'boot-test = {{ every = "30d", console-text = "{text}", timeout = {limit} }}'
        return fleet.in_process("c").steps[-1]

    failed = booted("what never comes", 1)
    assert (failed.step, failed.error and failed.error.code) == ("boot-test", 6)
    assert fleet.run("c", "--dry-run").succeeded().named("guest")[0]["steps"][1]["said"] == (
        "would boot"
    )
    assert booted("BOOTED", int(LIMIT)).said.endswith(" has booted")
    assert booted("what never comes", 1).said.startswith("not due: has booted on ")


def test_another_run_of_the_same_file_waits_or_leaves(fleet: Fleet) -> None:
    with alone(fleet.file, 0, CancelToken()):
        ran = fleet.run()
        ran.failed(fleece.ExitCode.USAGE, "another run of this configuration is at work", "--wait")
        waiting = INTACT.command(*fleet.words("a", "--wait", 600))
        wait_until(lambda: _has_open(waiting.pid, "/fleece/run-"), "the other run")
    waiting.wait().succeeded()


def _has_open(pid: int, part: str) -> bool:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if part in os.readlink(link):
                return True
    return False


def test_a_signal_takes_down_what_is_underway_and_begins_nothing_else(fleet: Fleet) -> None:
    """And the next run goes on."""
    running = INTACT.slow("fleece.nbd.connection", "Connection.read", 500, *fleet.words())
    running.wait_event("point")
    running.signal(signal.SIGTERM)
    ran = running.wait().failed(fleece.ExitCode.INTERRUPTED)
    assert "c" not in _steps(ran)
    assert not [*(fleet.folder / "store").rglob("*.fleece")]
    fleet.run().succeeded()
    fleet.check_exact("a", "b", "c")


def test_shards_of_a_run_look_after_each_guest_once(fleet: Fleet) -> None:
    """All of them at once on one host: they are of other guests."""
    ran = [INTACT.command(*fleet.words("--shard", f"{number}/3")) for number in (1, 2, 3)]
    looked_after = [guest for running in ran for guest in _steps(running.wait().succeeded())]
    assert sorted(looked_after) == ["a", "b", "c"]
    fleet.check_exact("a", "b", "c")
    fleet.run("--shard", "1/3", "a").failed(fleece.ExitCode.USAGE, "one guest has no parts")
    fleet.run("--shard", "4/3").failed(fleece.ExitCode.USAGE, "shard 4/3 is none")


def test_a_run_that_is_killed_is_made_good_by_the_next_one(fleet: Fleet) -> None:
    running = INTACT.slow("fleece.nbd.connection", "Connection.read", 1, *fleet.words())
    running.wait_event("point")
    running.kill()
    fleet.run().succeeded()
    fleet.check_exact("a", "b", "c")


def test_no_more_guests_are_at_work_at_once_than_the_limits_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all, of a host, into a store. And each guest has its turn once."""
    chance = random.Random(24)
    text = "[limits]\nat-once = 5\n[host.one]\nat-once = 2\n[host.two]\n"
    text += '[store.main]\nplace = "/a"\nat-once = 3\n[store.other]\nplace = "/b"\n'
    for number in range(40):
        host, store = chance.choice(["one", "two"]), chance.choice(["main", "other"])
        text += f'[[guest]]\nname = "g{number}"\nsource = "libvirt:g{number}"\n'
        text += f'host = "{host}"\nstore = "{store}"\n'
    path = tmp_path / "fleece.toml"
    path.write_text(text)
    path.chmod(0o600)
    config = load(path)
    at_work: Counter[str] = Counter()
    most: Counter[str] = Counter()
    lock = threading.Lock()

    def pretend(guest: PlannedGuest, work: Work) -> GuestResult:
        slots = ["all", guest.host.name, guest.config.store.name]
        with lock:
            at_work.update(slots)
            most.update(
                {slot: at_work[slot] - most[slot] for slot in slots if at_work[slot] > most[slot]}
            )
        time.sleep(chance.random() / 100)
        with lock:
            at_work.subtract(slots)
        return GuestResult(guest.name, guest.config.store.name, ())

    monkeypatch.setattr(fleet_run, "look_after", pretend)
    done: list[str] = []
    work = Work(config, [*Step], {}, lambda guest, event: None, CancelToken())
    result = fleet_run.run(plan(config), work, lambda one: done.append(one.guest))
    assert sorted(done) == sorted(guest.guest for guest in result.guests)
    assert [guest.guest for guest in result.guests] == [f"g{number}" for number in range(40)]
    assert most["all"] <= 5
    assert most["one"] <= 2
    assert most["main"] <= 3
    assert most["all"] > 3, "nothing kept more than three from being at work"


def _several(monkeypatch: pytest.MonkeyPatch, path: Path, text: str, **found: Any) -> Plan:
    """The plan of a configuration whose hosts have such guests, by their URIs."""
    monkeypatch.setattr(fleece, "guests_of", lambda scheme, connect, cancel: found[connect])
    path.write_text(f'[store.main]\nplace = "/a"\n{text}')
    path.chmod(0o600)
    return plan(load(path))


def test_a_pattern_is_of_each_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that two have is taken where it is on; two guests of one name are refused."""
    text = '[host.one]\nconnect = "a"\n[host.two]\nconnect = "b"\n'
    text += '[[guest]]\nmatch = "libvirt:*"\nstore = "main"\n'
    found = {
        "a": [
            fleece.FoundGuest("moved", "libvirt:1"),
            fleece.FoundGuest("twin", "libvirt:2", running=True),
            fleece.FoundGuest("x", "libvirt:3", running=True),
        ],
        "b": [
            fleece.FoundGuest("moved", "libvirt:1", running=True),
            fleece.FoundGuest("twin", "libvirt:4"),
        ],
    }
    made = _several(monkeypatch, tmp_path / "fleece.toml", text, **found)
    hosts = {guest.name: guest.options.connect for guest in made.guests}
    assert hosts == {"moved": "b", "x": "a"}
    assert [*made.refused] == ["twin"]
    ((what, error),) = made.troubles
    assert what == "guest 'twin' is not looked after"
    assert "hosts 'one' and 'two' have a guest of this name each" in str(error)
    text += '[[guest]]\nname = "twin"\nsource = "libvirt:2"\nhost = "one"\nstore = "main"\n'
    made = _several(monkeypatch, tmp_path / "fleece.toml", text, **found)
    assert {guest.name for guest in made.guests} == {"moved", "twin", "x"}
    assert not made.troubles


def _hook(fleet: Fleet, name: str, text: str) -> str:
    """A program that notes what it is told, and does something."""
    path = fleet.folder / name
    log = fleet.folder / "log"
    path.write_text(
        f'#!/bin/sh\necho {name} $FLEECE_GUEST $FLEECE_RESULT $MINE "$@" >> {log}\n{text}\n'
    )
    path.chmod(0o700)
    return str(path)


def test_hooks_run_around_a_backup_whatever_becomes_of_it(fleet: Fleet) -> None:
    log, pipe = fleet.folder / "log", fleet.folder / "pipe"
    os.mkfifo(pipe)
    before, after = _hook(fleet, "before", ""), _hook(fleet, "after", f"cat < {pipe} &")
    fleet.last = f'hooks = {{ before = ["{before}", "a b"], after = ["{after}"], limit = 60'
    fleet.last += ', environment = { MINE = "mine" } }'
    fleet.run("c").succeeded()
    assert log.read_text() == "before c mine a b\nafter c ok mine\n"
    pipe.write_bytes(b"")  # ends what was left in the background, which nobody waited for
    _hook(fleet, "after", "echo no luck; exit 3")
    ran = fleet.run("c")
    ran.failed(fleece.ExitCode.SOURCE, "after: failed (exit code 3): no luck; point ")
    assert len(fleece.open_store(fleet.folder / "store").catalogue().points) == 2
    _hook(fleet, "before", "sleep 600")
    fleet.last = fleet.last.replace("limit = 60", "limit = 1")
    fleet.run("c").failed(fleece.ExitCode.SOURCE, "before: took longer than 1 s")
    assert len(fleece.open_store(fleet.folder / "store").catalogue().points) == 2
    fleet.last = fleet.last.replace("limit = 1", "limit = 60")
    log.unlink()
    for name in ("before", "after"):
        _hook(fleet, name, "")
    fleet.image["c"].unlink()
    fleet.run("c").failed(fleece.ExitCode.SOURCE, "c.qcow2: No such file")
    assert log.read_text() == "before c mine a b\nafter c failed mine\n"
    fleet.last = 'hooks = { before = ["/nowhere"] }'
    fleet.run("c").failed(fleece.ExitCode.USAGE, "nowhere cannot be run")


def test_a_backup_asks_for_the_rate_again_and_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = (("00:00-12:00", "10M"), ("12:00-00:00", "20M"))
    tables = ", ".join(f'{{ hours = "{hours}", rate = "{rate}" }}' for hours, rate in rates)
    fleet.limits, fleet.last = f"rates = [{tables}]", 'rate = "15M"'
    now = datetime(2026, 11, 30, 11, 59, tzinfo=UTC)
    monkeypatch.setattr(config_module, "by_the_clock", lambda: now)
    asked: list[int | None] = []

    class Kept(Pace):
        def take(self, count: int) -> None:
            nonlocal now
            asked.append(rate_now(self._rate))
            now = now.replace(hour=12)
            super().take(count)

    monkeypatch.setattr(fill_by_pull, "Pace", Kept)
    assert fleet.in_process("c").error is None
    assert asked[0] == 10 * MIB
    now = now.replace(hour=12)
    asked.clear()
    fleet.write("c", MIB)
    assert fleet.in_process("c").error is None
    assert {*asked} == {15 * MIB}


def test_a_disk_can_be_left_out(fleet: Fleet) -> None:
    text = f'source = "image:vda={fleet.image["a"]},vdb={fleet.image["b"]}"\nstore = "main"\n'
    fleet.after = f'[[guest]]\nname = "two"\nleave-out = ["vdb", "vdz"]\n{text}'
    fleet.run("two").succeeded()
    (point,) = fleece.open_store(fleet.folder / "store").catalogue().points
    assert [*point.disks] == ["vda"]
    fleet.after = f'[[guest]]\nname = "two"\nleave-out = ["vda", "vdb"]\n{text}'
    fleet.run("two").failed(fleece.ExitCode.POINT, "every disk is left out")


def test_no_step_is_begun_outside_of_the_windows(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun in one goes on."""
    fleet.more, fleet.limits = "verify = {}", 'windows = ["22:00-06:00"]'
    now = datetime(2026, 11, 30, 5, 59, tzinfo=UTC)
    monkeypatch.setattr(config_module, "by_the_clock", lambda: now)

    def backup(*words: Any) -> Any:
        nonlocal now
        now = now.replace(hour=6, minute=0)
        return taken(*words)

    taken = fleece.backup
    monkeypatch.setattr(fleece, "backup", backup)
    said = [step.said for step in fleet.in_process("a").steps]
    assert said[0].startswith("point ")
    assert said[1:] == ["not begun outside of 22:00-06:00"]
    result = fleet.in_process("a")
    assert (result.error, result.backup) == (None, None)
    assert fleet.in_process("a", any_time=True).backup is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")
def test_all_guests_of_a_libvirt_that_match_are_looked_after(tmp_path: Path) -> None:
    """On or off, whatever their names look like; what is named or left out is not matched."""
    fleet = Fleet(tmp_path)
    with libvirtd() as daemon, contextlib.ExitStack() as stack:
        for name in ("web1", "web2", "42", "test1", "own", "tagged"):
            fleet.add(name)
            image = fleet.image.pop(name)
            guest = daemon.define(name, [GuestDisk("vda", image)])
            stack.callback(guest.remove)
            if name == "web2":
                guest.domain.create()
            if name in ("tagged", "test1"):
                words = ("metadata", name, "urn:fleece", "--key", "fleece", "--config")
                tags = ("--set", "<tags>daily gold</tags>")
                run_checked("virsh", "-c", daemon.uri, *words, *tags)
        fleet.after = f"""[host.here]
connect = "{daemon.uri}"
[[guest]]
match = "libvirt:*"
except = ["test*"]
tag = "gold"
store = "copies"
[[guest]]
match = "libvirt:*"
except = ["test*", "tagged"]
store = "main"
[[guest]]
name = "renamed"
source = "libvirt:own"
store = "copies"
"""
        check = INTACT.run("config", "check", "--config", fleet.file, "--json").succeeded()
        told = {guest["guest"]: (guest["store"], guest["source"]) for guest in check.named("guest")}
        assert told.keys() == {"web1", "web2", "42", "own", "renamed", "tagged"}
        assert told["tagged"][0] == "copies"
        assert told["renamed"] == ("copies", "libvirt:own")
        for name in ("web1", "web2", "42", "own"):
            uuid = daemon.connection.lookupByName(name).UUIDString()
            assert told[name] == ("main", f"libvirt:{uuid}")
        assert _steps(fleet.run().succeeded()) == {name: [("backup", True)] for name in told}
        catalogue = fleece.open_store(fleet.folder / "store").catalogue()
        assert {point.guest for point in catalogue.points} == {"web1", "web2", "42", "own"}
    ran = fleet.run("web1")
    ran.failed(fleece.ExitCode.SOURCE, "libvirt cannot be reached")
    ran = fleet.run("renamed")
    ran.failed(fleece.ExitCode.SOURCE, "1 of 1 guest failed")
