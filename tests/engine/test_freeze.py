"""The guest's file systems are held still for the moment of the point, and never longer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import fleece
from fleece.events import Event, Leftover, PointTaken, Warned
from tests.engine.scene import GUEST, Moment, Mutation, Scene
from tests.rig import consistency, images
from tests.rig.agent import SILENCE, Answer, HangUp, ScriptedAgent
from tests.rig.disk import Disk
from tests.rig.initramfs import GuestFiles
from tests.rig.machine import GuestMachine
from tests.rig.process import LIMIT

MIB = images.MIB
FREEZE, THAW, STATUS = (f"guest-fsfreeze-{what}" for what in ("freeze", "thaw", "status"))
DEVICES = ("vd-d0", "vd-d1")
TAKEN = Moment("the point is taken", "fleece.source.qemu.monitor", "Monitor.transaction")


# ---- a real guest ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """A point of the writing guest, and what it had been told to be durable before it."""

    point: str
    acked: int


@dataclass(frozen=True)
class Points:
    """A store with a point of a frozen guest and one of a guest that was not."""

    store: Path
    frozen: Taken
    loose: Taken
    progress: int

    def restore(self, folder: Path, taken: Taken) -> list[Path]:
        """Both disks, raw."""
        folder.mkdir()
        targets = [folder / device for device in DEVICES]
        for device, target in zip(DEVICES, targets, strict=True):
            fleece.restore(fleece.open_store(self.store), taken.point, device, str(target))
        return targets


@pytest.fixture(scope="module")
def points(files: GuestFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Points]:
    """Two points of a real guest, between them an engine killed while the guest was frozen."""
    folder = tmp_path_factory.mktemp("frozen")
    disks = [
        Disk(images.make_disk(folder / "d0.qcow2", 64 * MIB, fs="ext4"), "d0"),
        Disk(images.make_disk(folder / "d1.raw", 64 * MIB, "raw", fs="ext4"), "d1", "raw"),
    ]
    with GuestMachine(files, disks, append="rig.nslots=64 rig.delay=1000") as machine:
        scene = Scene(machine, folder)
        machine.wait_ready()
        machine.wait_acked(20)
        machine.agent().close()
        agent = "--guest-agent", machine.agent_socket
        acked = machine.acked
        frozen = scene.backup(*agent, "--require-freeze").succeeded()
        assert frozen.result["frozen"] is True
        scene.nothing_left()
        machine.wait_acked(machine.acked + 20)

        scene.killed_backup(TAKEN, *agent)
        with machine.agent() as asked:
            assert asked.command(STATUS) == "frozen"
        cleaned = scene.engine.run(
            "clean", scene.source, "--scratch", scene.scratch, "--json"
        ).succeeded()
        assert "freeze of the guest" in [event["kind"] for event in cleaned.named("removed")]
        before = machine.acked
        machine.wait_acked(before + 20)

        acked_loose = machine.acked
        loose = scene.backup().succeeded()
        assert loose.result["frozen"] is False
        scene.nothing_left()
        yield Points(
            scene.store,
            Taken(frozen.result["point"], acked),
            Taken(loose.result["point"], acked_loose),
            machine.acked - before,
        )


def test_a_frozen_guest_needs_no_journal_replay(points: Points, tmp_path: Path) -> None:
    restored = points.restore(tmp_path / "restored", points.frozen)
    report = consistency.check(restored, frozen=True, acked=points.frozen.acked)
    assert report.problems == []
    assert [image.needs_recovery for image in report.images] == [False, False]


def test_without_a_freeze_the_journal_is_replayed(points: Points, tmp_path: Path) -> None:
    restored = points.restore(tmp_path / "restored", points.loose)
    report = consistency.check(restored, acked=points.loose.acked)
    assert report.problems == []
    assert [image.needs_recovery for image in report.images] == [True, True]


def test_a_guest_that_a_killed_engine_left_frozen_goes_on(points: Points) -> None:
    assert points.progress >= 20


# ---- an agent that fails ---------------------------------------------------------------------


@dataclass
class Guest:
    """A scene and the agent of its guest."""

    scene: Scene
    agent: ScriptedAgent
    heard: list[Event] = field(default_factory=list)
    cancel: fleece.CancelToken = field(default_factory=fleece.CancelToken)
    answer_limit: float = LIMIT
    freeze_limit: float = LIMIT
    thaw_limit: float = LIMIT

    @property
    def reach(self) -> fleece.GuestAgent:
        """The agent, waited for as long as it takes, but where a test says less."""
        limits = self.answer_limit, self.freeze_limit, self.thaw_limit
        return fleece.GuestAgent(str(self.agent.path), False, *limits)

    def hangs(self) -> bool:
        """Whether its file systems are frozen."""
        return self.agent.frozen

    def take(self, required: bool = False) -> tuple[fleece.BackupResult, list[Event]]:
        """Back up; gives the result and what was heard."""
        heard: list[Event] = []
        options = fleece.BackupOptions(guest=GUEST)
        agent = replace(self.reach, required=required)
        scene = self.scene
        try:
            with fleece.QemuSource(
                str(scene.qemu.qmp_socket), scene.scratch, agent=agent, cancel=self.cancel
            ) as source:
                store = scene.opened()
                return fleece.backup(source, store, options, heard.append, self.cancel), heard
        finally:
            self.heard = heard


@pytest.fixture
def guest(scene: Scene, request: pytest.FixtureRequest) -> Iterator[Guest]:
    agent = ScriptedAgent(scene.qemu.folder / getattr(request, "param", "agent.sock"))
    yield Guest(scene, agent)
    agent.close()


def _warnings(heard: list[Event]) -> list[str]:
    return [event.what for event in heard if isinstance(event, Warned)]


def _on(command: str, do: Callable[[ScriptedAgent], Answer | None]) -> Callable[..., Answer | None]:
    return lambda agent, asked: do(agent) if asked == command else None


def _refuse(agent: ScriptedAgent) -> Answer:
    return {"error": {"class": "GenericError", "desc": "no\nhook \x1b[31m today"}}


def _hang_up(agent: ScriptedAgent) -> Answer:
    raise HangUp


def _die(agent: ScriptedAgent) -> Answer:
    agent.frozen = True
    agent.silent = True
    raise HangUp


def _freeze_late(agent: ScriptedAgent) -> Answer:
    """Once the other side has asked for something else, because it waits no longer."""
    agent.until_asked()
    return agent.obey(FREEZE)


def test_it_freezes_takes_the_point_and_thaws(guest: Guest) -> None:
    guest.agent.litter = b'{"return": 17}\n\xff{"return": 12345678901}\n{"return": {}}\n'
    result, heard = guest.take(required=True)
    assert result.frozen
    assert _warnings(heard) == []
    assert guest.agent.asked == [STATUS, FREEZE, STATUS, THAW, STATUS]
    assert not guest.hangs()
    guest.scene.check_exact()
    guest.scene.nothing_left()


def test_it_is_frozen_at_the_point_and_thawed_before_anything_is_read(guest: Guest) -> None:
    """By the order of what QEMU and the agent see: the transaction lies within the freeze."""
    jobs: list[int] = []

    def note(agent: ScriptedAgent, command: str) -> None:
        if command in (FREEZE, THAW):
            jobs.append(len(guest.scene.qemu.control.command("query-jobs")))

    guest.agent.behaviour = note
    _, heard = guest.take()
    assert jobs == [0, 1]
    assert isinstance(heard[1], PointTaken)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (_on(FREEZE, _refuse), r"refused guest-fsfreeze-freeze: no hook \x1b[31m today"),
        (_on(FREEZE, _hang_up), "connection to the guest agent was lost"),
        (_on(FREEZE, lambda agent: {"return": 0}), "froze no file system"),
        (_on(FREEZE, lambda agent: {"what": 1}), "answer to guest-fsfreeze-freeze is not valid"),
        (_on(FREEZE, lambda agent: SILENCE), "did not answer guest-fsfreeze-freeze"),
        (_on(FREEZE, _freeze_late), "did not answer guest-fsfreeze-freeze"),
        (lambda agent, command: _refuse(agent), "refused guest-fsfreeze-freeze"),
    ],
    ids=["error", "hangs up", "freezes nothing", "nonsense", "silence", "late", "refuses all"],
)
def test_a_freeze_that_fails(
    guest: Guest, behaviour: Callable[..., Answer | None], words: str
) -> None:
    guest.agent.behaviour = behaviour
    if "did not answer" in words:
        guest.freeze_limit = 0.5
    result, heard = guest.take()
    assert not result.frozen
    (warning,) = _warnings(heard)
    assert words in warning
    assert THAW in guest.agent.asked
    assert not guest.hangs()
    with pytest.raises(fleece.PointError, match="could not be frozen") as refused:
        guest.take(required=True)
    assert words in str(refused.value)
    assert not guest.hangs()
    guest.scene.check_exact()
    guest.scene.nothing_left()
    assert guest.scene.points() == 1


def test_an_agent_that_never_answers(guest: Guest) -> None:
    guest.agent.silent = True
    guest.answer_limit = guest.thaw_limit = 0.3
    result, heard = guest.take()
    assert not result.frozen
    assert "the guest agent does not answer" in _warnings(heard)[0]
    assert guest.agent.asked == []
    with pytest.raises(fleece.PointError, match="--require-freeze"):
        guest.take(required=True)
    guest.scene.nothing_left()
    assert guest.scene.points() == 1


def test_no_agent_at_all(guest: Guest) -> None:
    words = "--guest-agent", guest.scene.folder / "nothing"
    ran = guest.scene.backup(*words).succeeded()
    assert ran.result["frozen"] is False
    assert "the guest agent cannot be reached" in ran.named("warning")[0]["what"]
    guest.scene.backup(*words, "--require-freeze").failed(4, "could not be frozen")
    guest.scene.backup("--require-freeze").failed(2, "--guest-agent")
    guest.scene.nothing_left()


_IN_MID_COPY = Moment("copying", "fleece.delta.writer", "DeltaWriter.data", "after", 2)


def test_an_interrupted_point_is_not_frozen_enough(guest: Guest) -> None:
    """Nobody knows whether it was frozen: one that must be frozen is taken again."""
    guest.scene.killed_backup(_IN_MID_COPY)
    result, heard = guest.take(required=True)
    assert (result.frozen, result.resumed) == (True, False)
    (warning,) = _warnings(heard)
    assert "whether the guest was frozen for it is not known" in warning
    guest.scene.check_exact()
    guest.scene.nothing_left()


def test_an_interrupted_point_does_not_stand_for_one_that_cannot_be_frozen(guest: Guest) -> None:
    guest.scene.killed_backup(_IN_MID_COPY)
    words = "--guest-agent", guest.scene.folder / "nothing", "--require-freeze"
    guest.scene.backup(*words).failed(4, "could not be frozen")
    assert guest.scene.points() == 0
    guest.scene.nothing_left()


def test_if_no_freeze_is_required_an_interrupted_point_is_resumed_and_told(guest: Guest) -> None:
    guest.scene.killed_backup(_IN_MID_COPY)
    result, heard = guest.take()
    assert (result.frozen, result.resumed) == (False, True)
    (warning,) = _warnings(heard)
    assert f"whether the guest was frozen for point {result.point} is not known" in warning
    assert guest.agent.asked == [STATUS]
    guest.scene.check_exact()
    guest.scene.nothing_left()


def test_the_connection_is_lost_between_freeze_and_thaw(guest: Guest) -> None:
    times = iter(range(9))
    guest.agent.behaviour = _on(THAW, lambda agent: _hang_up(agent) if next(times) < 2 else None)
    result, heard = guest.take()
    assert result.frozen
    assert _warnings(heard) == []
    assert not guest.hangs()
    guest.scene.nothing_left()


def test_a_guest_that_thaws_by_itself_was_not_frozen(guest: Guest) -> None:
    def lapse(agent: ScriptedAgent, command: str) -> Answer | None:
        if command == FREEZE:
            return {"return": 1}
        return None

    guest.agent.behaviour = lapse
    result, heard = guest.take()
    assert not result.frozen
    assert "was thawed before the point" in _warnings(heard)[0]
    with pytest.raises(fleece.PointError, match="was thawed before the point"):
        guest.take(required=True)
    guest.scene.nothing_left()


def test_an_agent_that_dies_while_the_guest_is_frozen(guest: Guest) -> None:
    """The point is stored, the run says that the guest may hang, the next one thaws it."""
    guest.agent.behaviour = _on(THAW, _die)
    guest.answer_limit = guest.thaw_limit = 3.0
    with pytest.raises(fleece.SourceError, match=r"is stored, but .* may still be frozen"):
        guest.take()
    assert any("could not be thawed" in text for text in _warnings(guest.heard))
    assert guest.scene.points() == 1
    assert guest.hangs()
    guest.scene.backup().failed(3, "could not be thawed")

    guest.agent.silent = False
    guest.agent.behaviour = lambda agent, command: None
    ran = guest.scene.backup().succeeded()
    assert "freeze of the guest" in [event["kind"] for event in ran.named("leftover")]
    assert not guest.hangs()
    guest.scene.check_exact()
    guest.scene.nothing_left()


def test_an_agent_that_comes_back_during_the_backup(guest: Guest) -> None:
    guest.agent.behaviour = _on(THAW, _die)
    guest.answer_limit = guest.thaw_limit = 3.0

    def revive() -> None:
        guest.agent.behaviour = lambda agent, command: None
        guest.agent.silent = False

    heard: list[Event] = []

    def hear(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Warned):
            revive()

    options = fleece.BackupOptions(guest=GUEST)
    scene = guest.scene
    socket = str(scene.qemu.qmp_socket)
    with fleece.QemuSource(socket, scene.scratch, agent=guest.reach) as source:
        assert fleece.backup(source, guest.scene.opened(), options, hear).frozen
    assert not guest.hangs()
    guest.scene.nothing_left()


def test_a_point_that_qemu_refuses_thaws_all_the_same(guest: Guest) -> None:
    scene = guest.scene
    guest.take()
    (segment,) = scene.segments()

    def spoil(agent: ScriptedAgent, command: str) -> None:
        if command == FREEZE:
            arguments = {"node": "d0", "name": segment}
            scene.qemu.control.command("block-dirty-bitmap-remove", arguments)

    guest.agent.behaviour = spoil
    with pytest.raises(fleece.PointError, match="QEMU refused the point"):
        guest.take()
    assert not guest.hangs()
    scene.nothing_left()


def test_a_point_that_another_job_came_between_is_taken_again(guest: Guest) -> None:
    """A job of another's begins just before the transaction; what the first freeze said is past."""
    scene = guest.scene
    ask = scene.qemu.control.command
    times: list[str] = []

    def interfere(agent: ScriptedAgent, command: str) -> Answer | None:
        if command != FREEZE:
            return None
        times.append(command)
        if len(times) > 1:
            return _refuse(agent)
        scratch = images.make_disk(scene.folder / "foreign.qcow2", 8 * MIB)
        file = {"driver": "file", "filename": str(scratch)}
        ask("blockdev-add", {"driver": "qcow2", "node-name": "t", "file": file, "backing": None})
        ask("blockdev-backup", {"job-id": "j", "device": "d0", "target": "t", "sync": "none"})
        return None

    guest.agent.behaviour = interfere
    result, heard = guest.take()
    assert len(times) == 2
    assert not result.frozen
    assert "refused guest-fsfreeze-freeze" in _warnings(heard)[0]
    assert not guest.hangs()
    ask("block-job-cancel", {"device": "j"})
    scene.check_exact()


def test_a_guest_that_somebody_left_frozen_is_thawed_first(guest: Guest) -> None:
    guest.agent.frozen = True
    result, heard = guest.take()
    assert result.frozen
    assert guest.agent.asked[:3] == [STATUS, THAW, STATUS]
    assert Leftover("freeze of the guest", str(guest.agent.path)) in heard
    assert not guest.hangs()


@pytest.mark.parametrize(
    "guest", ["agent.sock", os.fsdecode(b"\xff.sock")], ids=["text", "bytes"], indirect=True
)
def test_a_killed_engine_leaves_a_note_that_the_next_run_follows(guest: Guest) -> None:
    """Also a run that is given no agent."""
    guest.scene.killed_backup(TAKEN, "--guest-agent", guest.agent.path)
    assert guest.hangs()
    ran = guest.scene.backup().succeeded()
    assert "freeze of the guest" in [event["kind"] for event in ran.named("leftover")]
    assert not guest.hangs()
    guest.scene.nothing_left()


_THAW = "self._thaw(session, asked_in_vain=refused)"


@pytest.mark.parametrize(
    "fault",
    [
        Mutation(
            "a freeze that is not answered is not followed by a thaw",
            (("source/qemu/agent.py", 'session.send("guest-fsfreeze-thaw")', "pass"),
             ("source/qemu/agent.py", _THAW, "pass")),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_these_checks_can_fail(fault: Mutation, guest: Guest) -> None:
    guest.agent.behaviour = _on(FREEZE, lambda agent: agent.obey(FREEZE) and SILENCE)
    guest.scene.engine = fault.engine(guest.scene.folder)
    code = (
        "import fleece, sys, pathlib; "
        "a = fleece.GuestAgent(sys.argv[4], answer_limit=.3, freeze_limit=.5, thaw_limit=1.5); "
        "s = fleece.QemuSource(sys.argv[1], pathlib.Path(sys.argv[2]), agent=a); "
        "fleece.backup(s, fleece.init(sys.argv[3]))"
    )
    scene = guest.scene
    words = scene.qemu.qmp_socket, scene.scratch, scene.store, guest.agent.path
    running = scene.engine.script(code, *words)
    running.wait()
    assert guest.hangs()


def _silent_and_interrupted(guest: Guest) -> Callable[[ScriptedAgent], Answer]:
    """The run is interrupted while it waits for an answer that never comes."""

    def do(agent: ScriptedAgent) -> Answer:
        guest.cancel.cancel()
        return SILENCE

    return do


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("command", ["sync", STATUS, FREEZE])
def test_a_signal_ends_the_wait_for_the_agent(command: str, required: bool, guest: Guest) -> None:
    guest.agent.behaviour = _on(command, _silent_and_interrupted(guest))
    if command == "sync":
        guest.agent.silent = True
        threading.Timer(0.5, guest.cancel.cancel).start()
    with pytest.raises(fleece.Interrupted):
        guest.take(required)
    assert (THAW in guest.agent.asked) == (command == FREEZE)
    assert not guest.hangs()
    guest.scene.nothing_left()


def test_after_a_signal_a_thaw_is_tried_for_some_seconds_and_a_failure_told(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleece.source.qemu.agent._INTERRUPTED_LIMIT", 0.5)
    guest.agent.behaviour = _on(THAW, _silent_and_interrupted(guest))
    guest.answer_limit = 0.5
    with pytest.raises(fleece.SourceError, match="may still be frozen"):
        guest.take()
    guest.agent.behaviour = lambda agent, command: None
    guest.cancel, guest.answer_limit = fleece.CancelToken(), LIMIT
    guest.take()
    assert not guest.hangs()
    guest.scene.check_exact()
    guest.scene.nothing_left()


def test_nothing_waits_for_an_agent_that_dribbles(guest: Guest) -> None:
    """An answer without end is cut off by its length and by the time."""
    stop = threading.Event()

    def dribble(agent: ScriptedAgent) -> Answer:
        stop.wait(0.05)
        return {"return": "x" * (1 << 17)}

    guest.agent.behaviour = _on(FREEZE, dribble)
    result, heard = guest.take()
    assert not result.frozen
    assert "has no end" in _warnings(heard)[0]
