"""Engines and libvirtd die at random moments under a guest of libvirt's that writes.

After each death the next backup must succeed, incremental, and leave nothing. In the end every
point must be a state that the disk had, bit for bit.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import fleece
from tests.engine.libvirt_scene import LibvirtScene

_SECTOR = 4096
_PAUSE = 0.02


@dataclass
class Deaths:
    """What happened.

    Attributes:
        runs: that something happened to.
        killed: of them, engines that died of it.
        daemons: deaths of libvirtd.
        resumed: backups that resumed an interrupted one.
        points: committed, each compared with the guest's writes.
        writes: of the guest.
    """

    runs: int = 0
    killed: int = 0
    daemons: int = 0
    resumed: int = 0
    points: int = 0
    writes: int = 0


class Writing:
    """A guest that writes, one sector after the other, while its context lasts."""

    def __init__(self, scene: LibvirtScene, seed: int) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self._scene = scene
        self._chance = random.Random(seed)
        self._first = bytes(scene.held["vda"])
        self._go = threading.Event()
        self._ended = False
        self._still = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """In the context nothing is written, and no write is under way."""
        with self._still:
            yield

    def stop(self) -> None:
        """Write no more."""
        self._ended = True
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._ended:
                with self._still:
                    size = len(self._first) // _SECTOR
                    offset = self._chance.randrange(size) * _SECTOR
                    data = self._chance.randbytes(_SECTOR)
                    self._scene.guest.write("vda", offset, data)
                    self.writes.append((offset, data))
                time.sleep(_PAUSE)
        except BaseException as error:
            self._failure = error

    def check(self, contents: Iterator[bytes]) -> int:
        """Check that contents, oldest first, are states that the disk had; gives how many.

        Raises:
            AssertionError: one is not.
        """
        state, done, count = bytearray(self._first), 0, 0
        for content in contents:
            while content != state:
                assert done < len(self.writes), f"point {count + 1} is no state of the disk"
                offset, data = self.writes[done]
                state[offset : offset + len(data)] = data
                done += 1
            count += 1
        return count


def deaths(scene: LibvirtScene, count: int, seed: int) -> Deaths:
    """Let engines die so many times, and check all points.

    Raises:
        AssertionError: something is not as it must be.
    """
    chance, told = random.Random(seed), Deaths()
    scene.take("full")
    writing = Writing(scene, seed)
    try:
        for _ in range(count):
            death(scene, writing, chance, told)
            ran = scene.backup().succeeded()
            assert ran.result["mode"] == "incremental", ran.out
            told.resumed += ran.result["resumed"]
            scene.nothing_left()
    finally:
        writing.stop()
    told.writes = len(writing.writes)
    told.points = writing.check(points(scene))
    return told


def death(scene: LibvirtScene, writing: Writing, chance: random.Random, told: Deaths) -> None:
    """Begin a backup, and let its engine, or libvirtd, die at some moment of it."""
    running = scene.slow("--jobs", "1")
    told.runs += 1
    if chance.random() < 0.15:
        running.wait_event("point")
        with writing.pausing():
            scene.guest.daemon.kill(chance.choice((signal.SIGKILL, signal.SIGTERM)))
            told.daemons += 1
            running.signal(signal.SIGCONT)
            running.wait()
            scene.guest.daemon.start()
            scene.guest.again()
        return
    if (event := chance.choice((None, "plan", "point", "progress", "progress"))) is not None:
        running.wait_event(event)
    time.sleep(chance.uniform(0.0, 0.5))
    number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
    running.signal(number)
    told.killed += running.wait().code == -signal.SIGKILL


def points(scene: LibvirtScene) -> Iterator[bytes]:
    """What the disk holds in each point, oldest first."""
    store = fleece.open_store(scene.store)
    for number, point in enumerate(store.catalogue().of_guest(scene.guest.name)):
        target = scene.folder / f"checked-{number}"
        fleece.restore(store, point.id, "vda", str(target))
        yield target.read_bytes()
        target.unlink()
