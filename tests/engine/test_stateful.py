"""Random histories of guests and of backups, compared with a model at every step.

The model of a disk is its bytes; that of a store, the bytes at each committed point. Whatever
happened before, a backup that succeeds restores to the model, and no old point ever changes.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import fleece
from fleece.events import Event
from tests.engine.scene import GUEST, KIB64, Moment, Scene
from tests.engine.test_six_failures import MOMENTS
from tests.rig import images
from tests.rig.daemon import StorageDaemon
from tests.rig.disk import Disk

NODES = ("d0", "d1")
SEEDS = st.integers(0, 1 << 20)
PLACES = st.builds(lambda n, more: n * KIB64 + more, st.integers(0, 63), st.integers(0, KIB64 - 1))
"""Bytes of a disk, each cluster as often as the others: hypothesis draws from a wide range of
integers mostly small ones."""


class History(RuleBasedStateMachine):
    """One guest with two disks, one store."""

    def __init__(self) -> None:
        super().__init__()
        self._holder = tempfile.TemporaryDirectory(prefix="history-")
        self._folder = Path(self._holder.name)
        self._models: dict[str, bytearray] = {}
        self._points: dict[str, dict[str, bytes]] = {}
        self._taken: dict[str, dict[str, bytes]] = {}
        """The disks at each point that an engine took which was killed then."""
        self._daemon: StorageDaemon | None = None
        self._scene: Scene | None = None

    @property
    def scene(self) -> Scene:
        assert self._scene is not None
        return self._scene

    @initialize(
        sizes=st.tuples(PLACES, PLACES),
        formats=st.sampled_from([("qcow2", "qcow2"), ("qcow2", "raw")]),
        seed=SEEDS,
        fill=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def start(
        self, sizes: tuple[int, int], formats: tuple[str, str], seed: int, fill: float
    ) -> None:
        disks = []
        for node, size, fmt in zip(NODES, sizes, formats, strict=True):
            path = self._folder / node
            images.random_image(path, (size // 512 + 1) * 512, seed=seed, fmt=fmt, fill=fill)
            raw = images.to_raw(path, self._folder / "raw", fmt)
            self._models[node] = bytearray(raw.read_bytes())
            disks.append(Disk(path, node, fmt))
        daemon = StorageDaemon(disks)
        daemon.__enter__()
        self._daemon = daemon
        self._scene = Scene(daemon, self._folder)

    def _range(self, node: str, where: int, length: int, unit: int) -> tuple[int, int]:
        """An offset and a length within a disk, in whole units or up to the disk's end."""
        size = len(self._models[node])
        start = where % size // unit * unit
        return start, min(length, size - start)

    @rule(
        node=st.sampled_from(NODES),
        where=PLACES,
        sectors=st.integers(1, 300),
        seed=SEEDS,
    )
    def write(self, node: str, where: int, sectors: int, seed: int) -> None:
        start, length = self._range(node, where, sectors * 512, 512)
        data = random.Random(seed).randbytes(length)
        self.scene.writer(node).write(start, data)
        self._models[node][start : start + length] = data

    @rule(
        node=st.sampled_from(NODES),
        where=PLACES,
        sectors=st.integers(1, 4000),
        unmap=st.booleans(),
    )
    def write_zeroes(self, node: str, where: int, sectors: int, unmap: bool) -> None:
        start, length = self._range(node, where, sectors * 512, 512)
        self.scene.writer(node).zero(start, length, unmap)
        self._models[node][start : start + length] = bytes(length)

    @rule(
        node=st.sampled_from(NODES),
        where=PLACES,
        clusters=st.integers(1, 30),
    )
    def discard(self, node: str, where: int, clusters: int) -> None:
        """Of whole clusters, which then read as zeros.

        QEMU drops discards while a fleecing job runs, such as a killed engine leaves behind.
        """
        if self.scene.qemu.control.command("query-jobs"):
            return
        start, length = self._range(node, where, clusters * KIB64, KIB64)
        self.scene.writer(node).discard(start, length)
        self._models[node][start : start + length] = bytes(length)

    @rule(mode=st.sampled_from(["auto", "auto", "full", "incremental", "differential", "rescan"]))
    def backup(self, mode: str) -> None:
        try:
            result = self.scene.take(mode)
        except fleece.PointError:
            assert mode in ("incremental", "differential", "rescan")
            self.scene.nothing_left()
            return
        self._remember(result.point)
        self._check_point(result.point)
        self.scene.nothing_left()
        self.scene.only_newest_segment()

    @rule(node=st.sampled_from(NODES))
    def backup_of_one_disk(self, node: str) -> None:
        result = self.scene.take(disks=[node])
        self._remember(result.point, node)
        self._check_point(result.point)

    @rule(node=st.sampled_from(NODES), seed=SEEDS)
    def backup_while_the_guest_writes(self, node: str, seed: int) -> None:
        """Writes after the point are not in it; those of before are."""
        before = self._now()

        def disturb(event: Event) -> None:
            if event.name == "point":
                self.write(node, seed * 37, 1 + seed % 200, seed)
                self.write_zeroes(node, seed * 53, 1 + seed % 900, True)

        result = self.scene.take(listener=disturb)
        self._points[result.point] = self._taken.get(result.point, before)
        self._check_point(result.point)
        self.scene.nothing_left()

    @rule(event=st.sampled_from(["plan", "point", "progress"]))
    def cancelled_backup(self, event: str) -> None:
        cancel = fleece.CancelToken()

        def stop(heard: Event) -> None:
            if heard.name == event:
                cancel.cancel()

        try:
            result = self.scene.take(listener=stop, cancel=cancel)
        except fleece.Interrupted:
            self.scene.nothing_left()
        else:  # nothing was dirty, so no progress was told
            self._remember(result.point)

    @rule(moment=st.sampled_from(MOMENTS))
    def killed_backup(self, moment: Moment) -> None:
        known = set(self._committed())
        ran = self.scene.killed_backup(moment, may_end=True)
        for event in ran.named("point"):
            self._taken[event["point"]] = self._now()
        for point in set(self._committed()) - known:
            self._remember(point)

    @rule(which=SEEDS, depth=SEEDS)
    def merge(self, which: int, depth: int) -> None:
        """Any point, onto any older one of its line."""
        if not (known := self._committed()):
            return
        store = fleece.open_store(self.scene.store)
        catalogue = store.catalogue()
        point = catalogue.find(known[which % len(known)])
        older = catalogue.line(next(iter(point.disks.values())))[1:]
        if not older:
            return
        first = older[depth % len(older)].header.point.id
        fleece.merge(store, point.id, first)
        self._check_point(point.id)

    @rule(last=st.integers(1, 4))
    def prune(self, last: int) -> None:
        if not (known := self._committed()):
            return
        fleece.prune(fleece.open_store(self.scene.store), fleece.KeepRules(last=last))
        left = self._committed()
        assert known[-last:] == left[-last:]
        for point in set(known) - set(left):
            del self._points[point]
        for point in left:
            self._check_point(point)

    @rule()
    def clean_restart(self) -> None:
        self.scene.qemu.restart()

    @rule()
    def killed_qemu(self) -> None:
        for node in NODES:
            self.scene.writer(node).flush()
        self.scene.qemu.kill()
        self.scene.qemu.start()

    def _committed(self) -> list[str]:
        if not (self.scene.store / "fleece-store.json").exists():
            return []
        return [p.id for p in fleece.open_store(self.scene.store).catalogue().of_guest(GUEST)]

    def _now(self, *nodes: str) -> dict[str, bytes]:
        return {node: bytes(self._models[node]) for node in nodes or NODES}

    def _remember(self, point: str, *nodes: str) -> None:
        """A committed point is what the disks were when it was taken, now or before a kill."""
        self._points[point] = self._taken.get(point) or self._now(*nodes)

    def _check_point(self, point: str) -> None:
        for node, model in self._points[point].items():
            restored = self.scene.restore(node, point)
            assert restored.read_bytes() == model, f"point {point} of {node} is not what it was"
            restored.unlink()

    def teardown(self) -> None:
        try:
            if self._daemon is not None:
                self._check_all()
        finally:
            if self._daemon is not None:
                self._daemon.__exit__(None, None, None)
            self._holder.cleanup()

    def _check_all(self) -> None:
        """The last state is backed up too; then every point of the store is what it was."""
        self._remember(self.scene.take().point)  # it may resume an interrupted backup's point
        self._remember(self.scene.take().point)
        self.scene.check_exact()
        assert sorted(self._committed()) == sorted(self._points)
        for point in self._points:
            self._check_point(point)
        for node in NODES:
            model = self._folder / "model"
            model.write_bytes(self._models[node])
            images.compare(self.scene.restore(node), model, "raw", "raw")
        self.scene.verify()
        self.scene.nothing_left()


TestHistory = History.TestCase
TestHistory.settings = settings(
    max_examples=6,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink would take many minutes
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
