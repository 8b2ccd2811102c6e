"""A long life of one guest and a store in a bucket, and of two copies of the store.

More than the soak that it builds on: the server dies and comes back, in mid-backup or between two,
with or without the engine; requests fail now and then; points are copied into a folder and on into
another bucket, by engines that are killed at it. `tools/soak --s3` lets it run for hours.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import fleece
from tests.engine.cloud import Cloud, clouded
from tests.engine.matrix import Nursery
from tests.engine.scene import GUEST, INTACT, Engine, Ran, Scene
from tests.engine.soak import Soak
from tests.rig.disk import Disk
from tests.rig.s3 import SeaweedFs
from tests.rig.s3_script import Asked, Cut, Deed, Lose, Say, ScriptedS3

PASSING = (
    Lose(),
    Say(503, "SlowDown", "reduce your request rate"),
    Say(403, "RequestLimitExceeded", "request limit exceeded"),
    Cut(1),
    Say(409, "ConditionalRequestConflict", "try again"),
    Say(500, "InternalError"),
    Say(400, "RequestTimeout"),
)
"""What may befall a request and does not last."""

_REQUESTS = ("GET-GetObject", "PUT-PutObject", "POST-DeleteObject", "GET-ListBucket")


class Weather:
    """A script: while it is bad, each tenth request fails in some way that passes.

    Args:
        seed: of when, and how.

    Attributes:
        bad: whether it is.
    """

    def __init__(self, seed: int) -> None:
        self.bad = False
        self._chance = random.Random(seed)

    def __call__(self, _: Asked) -> Deed:
        return self._chance.choice(PASSING) if self.bad and self._chance.random() < 0.1 else None


class Stormy(Cloud):
    """A scene whose store is in a bucket that is reached through weather.

    Attributes:
        server: the one behind it.
        weather: it.
    """

    server: SeaweedFs
    weather: Weather


@contextmanager
def stormy(
    server: SeaweedFs, folder: Path, *disks: Disk, engine: Engine = INTACT
) -> Iterator[Stormy]:
    """Such a scene; the environment tells the way through the weather."""
    weather = Weather(len(str(folder)))
    with ScriptedS3(server.port, weather) as script, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{script.port}")
        with clouded(server, folder, *disks, engine=engine) as cloud:
            made = Stormy(cloud.qemu, folder, engine)
            made.bucket, made.server, made.weather = cloud.bucket, server, weather
            yield made


class CloudSoak(Soak):
    """One guest, one store in a bucket, a copy in a folder, and a copy of that in a bucket.

    Attributes:
        done: beside what a soak counts, `server` counts its deaths, `copied` the points that
            arrived.
    """

    rewriting = _REQUESTS

    def __init__(self, scene: Scene, nursery: Nursery, base: dict[str, bytes], seed: int) -> None:
        super().__init__(scene, nursery, base, seed)
        assert isinstance(scene, Stormy)
        self._cloud = scene
        self._near = str(scene.folder / "near")
        self._far = scene.address.replace("/first", "/far")
        for place in (self._near, self._far):
            fleece.init(place, like=scene.address)

    def _events(self) -> dict[Callable[[], None], int]:
        others = super()._events()
        del others[self.store_fails]
        return others | {
            self.server_dies_in_mid_backup: 2,
            self.server_and_engine_die: 1,
            self.requests_fail: 3,
            self.points_are_copied: 3,
            self.server_dies_in_mid_copy: 1,
        }

    def stop(self) -> None:
        """End the guest; check every point that is left, and the copies."""
        super().stop()
        self.points_are_copied()

    # What happens

    def server_dies_in_mid_backup(self) -> None:
        """The engine waits until it is back; before it has met the server, not for long."""
        ran = self._while_server_dies(self._words())
        if ran.code:
            ran.failed(5)
        self._backup("incremental")

    def server_and_engine_die(self) -> None:
        """The engine first."""
        self._fault_in_copy("SIGKILL")
        self._cloud.server.kill()
        self._cloud.server.restart()
        self.done["server"] += 1
        self._backup("incremental")

    def requests_fail(self) -> None:
        """Now and then one; the backup goes on."""
        self._cloud.weather.bad = True
        ran = self._nursery.run(self._words())
        self._cloud.weather.bad = False
        ran.succeeded()
        self.done["fault"] += 1
        self._backup("incremental")

    def points_are_copied(self) -> None:
        """Into the folder and on into the other bucket; each is often killed at it first."""
        for source, target in ((self.scene.address, self._near), (self._near, self._far)):
            command = ("copy", source, target, "--json")
            steps = _REQUESTS if target == self._far else ("rename", "fsync", "write")
            self._killed_first(command, steps)
            self._copied(self._nursery.run(command).succeeded(), source, target)
        if self._chance.random() < 0.5:
            keep = ("--keep-last", self._chance.randint(1, 6), "--guest", GUEST, "--json")
            self._nursery.run(("prune", self._near, *keep)).succeeded()

    def server_dies_in_mid_copy(self) -> None:
        """The copy goes on, or fails; the next one sends the rest."""
        self._nursery.run(("copy", self.scene.address, self._near, "--json")).succeeded()
        command = ("copy", self._near, self._far, "--json")
        ran = self._while_server_dies(command)
        if ran.code:
            ran.failed(5)
        self._copied(self._nursery.run(command).succeeded(), self._near, self._far)

    # How

    def _while_server_dies(self, command: tuple[object, ...]) -> Ran:
        """Run a command, and kill the server after a moment; it comes back.

        This thread starts it: a child dies with the thread that it is of.
        """
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self._nursery.run, command)
            time.sleep(self._chance.uniform(0.0, 1.5))
            self._cloud.server.kill()
            self._cloud.server.restart()
            ran = running.result()
        self.done["fault"] += 1
        self.done["server"] += 1
        return ran

    def _copied(self, ran: Ran, source: str, target: str) -> None:
        """What the source has, the target has, and all of it is sound."""
        here, there = (_roots(place) for place in (source, target))
        assert here.items() <= there.items(), ran.out
        self._nursery.run(("verify", target, "--json")).succeeded()
        self.done["copied"] += len(ran.named("arrived"))


def _roots(store: str) -> dict[str, dict[str, str]]:
    """Of each disk of each point of a store."""
    return {
        point.id: {name: entry.root for name, entry in point.disks.items()}
        for point in fleece.open_store(store).catalogue().of_guest(GUEST)
    }
