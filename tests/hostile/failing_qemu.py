"""One system call of a verb that talks to a QEMU fails once (`tests.hostile.failing_calls`).

Store and QEMU live on: a trial is looked at, and then an honest backup is taken, which must be
exact and leave nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fleece
from tests.engine.scene import GUEST, INTACT, KIB64, MIB, Engine, Scene, daemon
from tests.hostile.failing_calls import ERRORS, Ended, Fault, Nursery, Trial, Verb, Wrong, judge
from tests.rig import images
from tests.rig.disk import Disk

_MANY = 10
"""Points of which the store keeps the newest: a chain that grows makes ever more calls."""

_PLACE = ("--guest", GUEST, "--scratch", "{scratch}")
VERBS = (
    Verb("backup", ("backup", "{source}", "{store}", *_PLACE)),
    Verb("push", ("backup", "{source}", "{store}", *_PLACE, "--transport", "push")),
    Verb("audit", ("audit", "{source}", "{store}", *_PLACE)),
    Verb("bitmap", ("bitmap", "{source}", "{store}", "--guest", GUEST)),
    Verb("clean", ("clean", "{source}", "--scratch", "{scratch}")),
    Verb("doctor", ("doctor", "{source}", "--scratch", "{scratch}")),
)
_LOOKS = ("bitmap", "doctor")
"""Verbs that change nothing: no backup need follow them."""

_DIES = Fault("sync", 1, 0)
"""What leaves something to clean: a backup that is killed before its delta is durable."""


class Living:
    """A QEMU and its store, and engines that meet failures."""

    def __init__(self, scene: Scene, engine: Engine) -> None:
        self._scene = scene
        self._nursery = Nursery(scene.folder, engine)
        self._places = {"source": scene.source, "scratch": scene.scratch, "store": scene.place()}
        self._backup = VERBS[0]
        self._ran(self._backup)

    def close(self) -> None:
        """End the process that makes engines."""
        self._nursery.close()

    def trials(self, verb: Verb) -> list[Trial]:
        """Each call of a verb with each error."""
        self._prepare(verb)
        counts = self._ran(verb).counts
        return [
            Trial(verb, Fault(kind, nth, error))
            for kind, errors in ERRORS.items()
            for nth in range(1, counts[kind] + 1)
            for error in errors
        ]

    def check(self, trial: Trial) -> bool:
        """Try one; whether the verb succeeded all the same.

        Raises:
            Wrong: what it did must not be.
        """
        self._prepare(trial.verb)
        before = self._points()
        ended = self._run(trial.verb, trial.fault)
        judge(ended)
        after = self._points()
        made = len(after) - len(before)
        if after[: len(before)] != before or made not in _may_make(trial, ended):
            raise Wrong(f"of {len(before)} points there are {len(after)}\n{ended.said}")
        if made:
            self._exact(ended)
        if trial.verb.words[0] in _LOOKS:
            self._nothing_left(ended)
        else:
            self._next(ended)
        return ended.code == 0

    def _next(self, ended: Ended) -> None:
        """An honest backup is right and leaves nothing."""
        self._write()
        honest = self._run(self._backup)
        if "an interrupted backup took this point" in honest.said:
            honest = self._run(self._backup)
        if honest.code != 0:
            raise Wrong(f"the next backup fails: {honest.said}\nafter: {ended.said}")
        self._exact(ended)
        self._nothing_left(ended)
        if len(self._points()) > _MANY:
            words = ("prune", self._scene.store, "--keep-last", "2")
            if (done := self._nursery.run(words)).code != 0:
                raise Wrong(f"the store cannot be pruned: {done.said}\nafter: {ended.said}")

    def _nothing_left(self, ended: Ended) -> None:
        try:
            self._scene.nothing_left()
        except (AssertionError, pytest.fail.Exception) as error:
            raise Wrong(f"something is left: {error}\nafter: {ended.said}") from error

    def _exact(self, ended: Ended) -> None:
        try:
            self._scene.check_exact()
        except AssertionError as error:
            raise Wrong(f"the point is not the disk: {error}\nafter: {ended.said}") from error

    def _prepare(self, verb: Verb) -> None:
        self._write()
        if verb.name == "clean":
            self._run(self._backup, _DIES)

    def _write(self) -> None:
        place = int.from_bytes(os.urandom(1)) % 64
        self._scene.writer().write(place * KIB64, os.urandom(KIB64))

    def _points(self) -> list[str]:
        catalogue = fleece.open_store(self._scene.store).catalogue()
        if catalogue.damaged:
            raise Wrong(f"the store is damaged: {catalogue.damaged}")
        return [point.id for point in catalogue.points]

    def _ran(self, verb: Verb) -> Ended:
        ended = self._run(verb)
        if ended.code != 0:
            raise RuntimeError(f"{verb} fails by itself: {ended}")
        return ended

    def _run(self, verb: Verb, fault: Fault | None = None) -> Ended:
        return self._nursery.run([word.format(**self._places) for word in verb.words], fault)


def _may_make(trial: Trial, ended: Ended) -> tuple[int, ...]:
    """How many points a run may have made. One whose name is not durable may be there or not."""
    if trial.verb.words[0] != "backup":
        return (0,)
    if ended.code == 0:
        return (1,)
    return (0, 1) if trial.fault.kind == "sync" else (0,)


@contextmanager
def living(folder: Path, engine: Engine = INTACT) -> Iterator[Living]:
    """Trials on a QEMU with a disk of 8 MiB, in an empty folder."""
    image = images.random_image(folder / "d0.qcow2", 8 * MIB, seed=1)
    with daemon(folder, Disk(image, "d0")) as scene:
        made = Living(scene, engine)
        try:
            yield made
        finally:
            made.close()
