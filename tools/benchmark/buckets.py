"""A store in a bucket: how fast it is read, and how a guest boots from it over a slow link."""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig import filesystems
from tests.rig.disk import ServedDisk
from tests.rig.initramfs import GuestFiles, guest_files
from tests.rig.machine import GuestMachine
from tests.rig.process import run_checked
from tests.rig.s3 import SeaweedFs, environment_at
from tools.benchmark.cases import FLEECE, GUEST, MIB, Bench
from tools.benchmark.slow_link import SlowLink

_LATENCY = 0.05
_FILES = 64


@contextmanager
def _object_store(bench: Bench) -> Iterator[SeaweedFs]:
    """A server, which the environment tells, as it does of a cache."""
    folder = bench.folder / "seaweedfs"
    folder.mkdir()
    server = SeaweedFs(folder)
    before = dict(os.environ)
    os.environ.update(server.environment | {"XDG_CACHE_HOME": str(bench.folder)})
    try:
        yield server
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.kill()
        run_checked("rm", "-r", folder)


def _plain(place: str) -> None:
    words = [sys.executable, "-m", "tools.benchmark.plain_reader", place]
    subprocess.run(words, check=True, capture_output=True)


def _fleece(*words: str | Path) -> None:
    subprocess.run([*FLEECE, *words], check=True, capture_output=True)


def _stores(bench: Bench, server: SeaweedFs, image: Path) -> tuple[Path, str]:
    """A full of an image in a folder, and a copy of it in a bucket."""
    server.bucket("bench")
    folder, place = bench.folder / "near", "s3://bench/store"
    _fleece("init", folder)
    _fleece("init", place, "--like", folder)
    _fleece("backup", f"image:d0={image}", folder, "--guest", GUEST)
    _fleece("copy", folder, place)
    return folder, place


def reading(bench: Bench, runs: int) -> dict[str, float]:
    """MiB/s of a plain client, of verify and of restore, by turns, and the same from a folder.

    The disk cannot be compressed. Each is a command, the plain client too.
    """
    size = bench.setting.size
    image, target = bench.folder / "random.raw", bench.folder / "restored"
    with image.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    with _object_store(bench) as server:
        folder, place = _stores(bench, server, image)
        ways: dict[str, Callable[[], None]] = {"plain": functools.partial(_plain, place)}
        for name, store in (("bucket", place), ("folder", folder)):
            words = "restore", store, "latest", "d0", target, "--force"
            ways[f"verify_{name}"] = functools.partial(_fleece, "verify", store)
            ways[f"restore_{name}"] = functools.partial(_fleece, *words)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(runs + 1):
            for name, way in ways.items():
                start = time.monotonic()
                way()
                found[name].append(size / MIB / (time.monotonic() - start))
    run_checked("rm", "-r", folder, image, target)
    speeds = {name: each[1:] for name, each in found.items()}
    ratios = {
        f"{one}_to_{other}": statistics.median(
            a / b for a, b in zip(speeds[one], speeds[other], strict=True)
        )
        for one, other in (
            ("verify_bucket", "plain"),
            ("restore_bucket", "plain"),
            ("verify_bucket", "verify_folder"),
            ("restore_bucket", "restore_folder"),
        )
    }
    return {name: statistics.median(each) for name, each in speeds.items()} | ratios


def far(bench: Bench, runs: int) -> dict[str, float]:
    """Seconds for a guest to boot from a served point and to read 64 files of 1 MiB.

    From a folder, and from a bucket with 50 ms for each request. The floor is the time from the
    folder, and 50 ms for each request that had to be waited for alone.
    """
    files = guest_files(bench.folder)
    tree = bench.folder / "tree"
    tree.mkdir()
    for number in range(_FILES):
        (tree / f"{number}").write_bytes(os.urandom(MIB))
    image = filesystems.ext(bench.folder / "system.raw", 128 * MIB, tree)
    found: dict[str, list[float]] = {}
    with _object_store(bench) as server:
        folder, place = _stores(bench, server, image)
        for _ in range(runs):
            near = _booted(files, folder, {})
            with SlowLink(server.port, _LATENCY) as link:
                told = environment_at(link.port)
                away = _booted(files, place, told)
                floor = near + link.rounds * _LATENCY
                figures = {"folder": near, "far": away, "floor": floor, "ratio": away / floor}
                figures |= {"requests": link.requests, "rounds": link.rounds}
            for name, value in figures.items():
                found.setdefault(name, []).append(value)
    run_checked("rm", "-r", folder, image, tree)
    return {name: statistics.median(each) for name, each in found.items()}


def _booted(files: GuestFiles, store: str | Path, told: dict[str, str]) -> float:
    """Seconds from the start of `fleece serve` until the guest has read all."""
    start = time.monotonic()
    words = [*FLEECE, "serve", store, "latest", "--writable", "--scratch", "/dev/shm", "--json"]
    serving = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **told})
    try:
        assert serving.stdout is not None
        (export,) = json.loads(serving.stdout.readline())["exports"]
        socket = Path(export["uri"].partition("socket=")[2])
        disk = ServedDisk(socket, "a", "raw", "d0")
        with GuestMachine(files, [disk], append="rig.mode=none") as guest:
            guest.wait_ready()
            with guest.agent() as agent:
                done = agent.sh("cat /a/[0-9]* | wc -c", timeout=600.0)
            assert str(_FILES * MIB) in str(done), done
        return time.monotonic() - start
    finally:
        serving.terminate()
        serving.wait()


LOOKS = {"bucket": reading, "far": far}
