"""A long life of one guest and one store: random faults, and what administrators do between them.

More than the kill matrix that it builds on: QEMU itself ends or dies, with a backup going on or
not; points are merged and pruned, by engines that may be killed at it; deltas are damaged, which
must be noticed, and mended again. `tools/soak` lets it run for hours.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from tests.engine.matrix import NODES, Matrix, Nursery, control_steps
from tests.engine.scene import GUEST, Ran, Scene

ERRORS = ("EIO", "ENOSPC", "EDQUOT")
STORE_STEPS = ("mkdir-point", "write", "fsync", "rename")
"""Steps at which a store may fail."""


class Soak(Matrix):
    """One guest, one store.

    Attributes:
        done: how often each thing happened; `backup` counts the successful ones, `pushed` those
            of them that QEMU pushed, `fault` all faults, `checked` the points that were compared
            with the guest's writes.
        rewriting: steps of merge and prune.
    """

    rewriting: tuple[str, ...] = ("rename", "fsync", "unlink", "write", "rmdir")

    def __init__(self, scene: Scene, nursery: Nursery, base: dict[str, bytes], seed: int) -> None:
        super().__init__(scene, nursery, base, seed)
        self.done: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._steps: list[str] = []
        self._model = self._first_model()
        self._checked: set[str] = set()
        self._roots: dict[str, dict[str, str]] = {}

    def start(self) -> None:
        """The first backup; then the guest begins to write."""
        super().start()
        self._steps = control_steps(self.steps())

    def happen(self) -> str:
        """One random thing happens, then a backup succeeds; gives its name."""
        self.way = self._chance.choices(((), ("--transport", "push")), (3, 1))[0]
        events = self._events()
        event = self._chance.choices([*events], [*events.values()])[0]
        event()
        self.done[event.__name__] += 1
        self._look()
        return event.__name__

    def _events(self) -> dict[Callable[[], None], int]:
        """What may happen, and how often."""
        return {
            self.engine_dies: 8,
            self.engine_is_stopped: 2,
            self.monitor_is_lost: 2,
            self.store_fails: 3,
            self.qemu_restarts: 2,
            self.qemu_dies: 1,
            self.restart_in_mid_backup: 2,
            self.qemu_dies_in_mid_backup: 1,
            self.all_is_read: 1,
            self.bitmaps_are_audited: 1,
            self.points_are_merged: 2,
            self.store_is_pruned: 1,
            self.delta_is_damaged: 1,
        }

    def stop(self) -> None:
        """End the guest; check every point that is left, and the last state."""
        super().stop()
        self._look()
        self.done["checked"] += len(self._points())

    # What happens

    def engine_dies(self) -> None:
        """At a step of the control plane, or at a moment of the copy."""
        if self._chance.random() < 0.5:
            self._fault("SIGKILL", self._chance.choice(self._steps))
        else:
            self._fault_in_copy("SIGKILL")
        self._backup("incremental")

    def engine_is_stopped(self) -> None:
        """By a signal."""
        self._fault_in_copy(self._chance.choice(("SIGTERM", "SIGINT")))
        self.scene.nothing_left()
        self._backup("incremental")

    def monitor_is_lost(self) -> None:
        """At any step."""
        self._fault("monitor", self._chance.choice(self._steps))
        self._backup("incremental")

    def store_fails(self) -> None:
        """At any step that writes into it."""
        steps = [step for step in self._steps if step.split()[1] in STORE_STEPS]
        self._fault(self._chance.choice(ERRORS), self._chance.choice(steps))
        self._backup("incremental")

    def qemu_restarts(self) -> None:
        """In order: the bitmaps of the qcow2 disk come back, the raw disk has none."""
        self._end_qemu(kill=False)
        self._backup("incremental", "rescan")

    def qemu_dies(self) -> None:
        """So no bitmap can be believed."""
        self._end_qemu(kill=True)
        self._backup("rescan", "rescan")

    def restart_in_mid_backup(self) -> None:
        """The engine is killed first; its point goes with QEMU."""
        self._fault_in_copy("SIGKILL")
        self.qemu_restarts()

    def qemu_dies_in_mid_backup(self) -> None:
        """The same with a SIGKILL."""
        self._fault_in_copy("SIGKILL")
        self.qemu_dies()

    def all_is_read(self) -> None:
        """Though nothing is wrong."""
        mode = self._chance.choice(("full", "rescan"))
        self._backup(mode, words=("--mode", mode))

    def bitmaps_are_audited(self) -> None:
        """All of what they say is clean; what is pushed cannot be."""
        self.way = ()
        self._backup("incremental", words=("--audit", "1"))

    def points_are_merged(self) -> None:
        """Any point onto an older one of its line, perhaps by an engine that is killed."""
        catalogue = self._catalogue()
        point = self._chance.choice(self._points())
        line = catalogue.line(point.disk(NODES[0]))
        first = self._chance.choice(line).header.point.id
        if first != point.id:
            self._rewrite("merge", self.scene.address, point.id, "--from", first)

    def store_is_pruned(self, keep: int | None = None) -> None:
        """After all points were compared: some go, all but the last `keep` if that is said."""
        self._check_new()
        last = self._chance.randint(2, 12) if keep is None else keep
        self._rewrite("prune", self.scene.address, "--keep-last", last)
        left = {point.id for point in self._points()}
        self._roots = {point: roots for point, roots in self._roots.items() if point in left}

    def delta_is_damaged(self) -> None:
        """At one bit, which verify must notice; then it is mended."""
        entry = self._chance.choice(self._catalogue().entries)
        position = self._chance.randrange(entry.stored_bytes)
        mask = 1 << self._chance.randrange(8)
        self.scene.damage(entry.where, position, mask)
        ran = self._nursery.run(("verify", self.scene.address, "--json"))
        assert ran.code == 5, f"bit {mask} of byte {position} of {entry.where} is wrong: {ran}"
        self.scene.damage(entry.where, position, mask)
        self._nursery.run(("verify", self.scene.address, "--json")).succeeded()
        self.done["fault"] += 1

    # How it is checked

    def _fault(self, fault: str, step: str) -> Ran:
        self.done["fault"] += 1
        return self.only_hit(fault, step)

    def _fault_in_copy(self, fault: str) -> Ran:
        self.done["fault"] += 1
        slow = self._chance.choice((0.0, 0.01, 0.02))
        return self.only_hit(fault, after=self._chance.uniform(0.0, 0.3), slow=slow)

    def _backup(self, *modes: str, words: tuple[object, ...] = ()) -> None:
        """One that must succeed, in these modes of the disks (one: of both), and leave nothing."""
        ran = self._nursery.run(self._words(*words)).succeeded()
        found = {disk["disk"]: disk["mode"] for disk in ran.result["disks"]}
        wanted = dict(zip(NODES, modes if len(modes) > 1 else modes * 2, strict=True))
        assert found == wanted, ran.out
        self.done["backup"] += 1
        self.done["resumed"] += bool(ran.result["resumed"])
        self.done["pushed"] += ran.result["transport"] == "push"
        self.scene.nothing_left()
        self.scene.only_newest_segment()

    def _end_qemu(self, *, kill: bool) -> None:
        """End QEMU while the guest pauses, and start it again."""
        assert self.guest is not None
        self.guest.stop()
        for node in NODES:
            self.scene.writer(node).flush()
        if kill:
            self.scene.qemu.kill()
            self.scene.qemu.start()
        else:
            self.scene.qemu.restart()
        self.guest.go_on()
        self.done["fault"] += 1

    def _rewrite(self, *words: object) -> None:
        """Merge or prune; often by an engine that is killed at it first."""
        command = (*words, "--guest", GUEST, "--json")
        self._killed_first(command, self.rewriting)
        self._look()
        self._nursery.run(command).succeeded()

    def _killed_first(self, command: tuple[object, ...], steps: Sequence[str]) -> None:
        """Often run a command that dies at one of some steps."""
        if self._chance.random() < 0.7:
            name = self._chance.choice(steps)
            step = f"{self._chance.choice(('before', 'after'))} {name} {self._chance.randint(1, 8)}"
            ran = self._nursery.run(command, "SIGKILL", step=step)
            assert ran.code in (0, -9), ran
            self.done["fault"] += ran.code == -9

    def _look(self) -> None:
        """Whatever happened, a point that was seen once keeps its roots; new ones are noted."""
        now = {
            point.id: {name: entry.root for name, entry in point.disks.items()}
            for point in self._points()
        }
        for point, roots in self._roots.items():
            if point in now:
                assert now[point] == roots, f"point {point} has changed"
        self._roots |= now

    def _check_new(self) -> None:
        """Compare the points that were not compared yet with the guest's writes."""
        assert self.guest is not None
        new = [point for point in self._points() if point.id not in self._checked]
        self._check_states(self._model, new, [*self.guest.writes])
        self._checked |= {point.id for point in new}
        self.done["checked"] += len(new)
