"""The whole way once, with a real guest: backup under load, restore, and every proof there is.

A Linux guest (tests/rig) runs under emulation with two ext4 disks, one qcow2 and one raw. A record
writer in it writes all the time. Three points are taken by the command line:

1. full, while the guest writes;
2. incremental, while the guest writes;
3. incremental, while the guest is paused; and a full of the same moment into a bucket of an object
   store (SeaweedFS). QEMU's own tools then copy its disks: the exact judge.

All points are restored. Points 1 and 2 are judged by the records that they hold
(tests/rig/consistency.py), those of point 3 must equal the copies byte by byte, and a guest boots
from it.
Exits with 0 only if everything held.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig import consistency, images
from tests.rig.disk import Disk
from tests.rig.initramfs import GuestFiles, guest_files
from tests.rig.machine import GuestMachine, boot_check
from tests.rig.process import run, run_checked
from tests.rig.s3 import SeaweedFs

MIB = images.MIB
GUEST = "demo"
BUCKET = "s3://demo/guests"
DISKS = (("a", 1024 * MIB, "qcow2"), ("b", 512 * MIB, "raw"))
_START = time.monotonic()


class Failed(Exception):
    """A step did not give what it must."""


@dataclass
class Point:
    """A point that was taken, and what is known about it from outside.

    Attributes:
        name: for people.
        id: fleece's.
        roots: by disk, as the backup printed them.
        acked: the last record that was durable in the guest before the backup began.
        restored: by disk, raw images.
    """

    name: str
    id: str
    roots: dict[str, str]
    acked: int
    restored: dict[str, Path] = field(default_factory=dict)


def say(text: str) -> None:
    """One line of the account, with the seconds since the start."""
    print(f"[{time.monotonic() - _START:6.1f} s] {text}", flush=True)


def mib(count: int) -> str:
    """Bytes for people."""
    return f"{count / MIB:.1f} MiB"


def fleece(*arguments: str | Path) -> dict[str, Any]:
    """Run the command line; gives its result.

    Raises:
        Failed: its exit code is not 0.
    """
    words = [sys.executable, "-m", "fleece", *map(str, arguments), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shown = " ".join(["fleece", *map(str, arguments)])
        raise Failed(f"{shown}: exit code {done.returncode}\n{_last_words(done)}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stdout.splitlines()
    if not lines:
        return done.stderr
    last = json.loads(lines[-1])
    return "\n".join([*last.get("errors", []), str(last.get("error", ""))]) + done.stderr


def backup(machine: GuestMachine, store: str | Path, name: str) -> Point:
    """Take a point of the machine and tell of it."""
    before, start = machine.acked, time.monotonic()
    result = fleece("backup", f"qmp:{machine.qmp_socket}", store, "--guest", GUEST)
    seconds = time.monotonic() - start
    say(
        f"{name}: point {result['point']}, {result['mode']}, {seconds:.2f} s; the guest wrote "
        f"{machine.acked - before} records meanwhile"
    )
    for disk in result["disks"]:
        say(
            f"    {disk['disk']}: {mib(disk['dirty_bytes'])} dirty, {mib(disk['read_bytes'])} "
            f"read, {mib(disk['stored_bytes'])} stored, root {disk['root']}"
        )
    roots = {disk["disk"]: disk["root"] for disk in result["disks"]}
    return Point(name, result["point"], roots, before)


def fill(machine: GuestMachine, script: str) -> None:
    """Let the guest write in bulk, beside its record writer."""
    with machine.agent() as agent:
        result = agent.sh(script, timeout=120.0)
    if result.code != 0:
        raise Failed(f"in the guest: {script}: {result.err}")


@contextmanager
def paused(machine: GuestMachine) -> Iterator[None]:
    """Stop the guest's processors; QEMU flushes its disks then."""
    machine.control.command("stop")
    try:
        yield
    finally:
        machine.control.command("cont")


def take_points(
    files: GuestFiles, disks: Sequence[Disk], folder: Path, store: Path
) -> tuple[list[Point], Point, dict[str, Path]]:
    """Run the guest and back it up.

    Gives the points, that in the bucket, and qemu-img's copies of it, which is the last one, too.
    """
    copies = {disk.device: folder / f"copied-{disk.device}.raw" for disk in disks}
    with GuestMachine(files, disks, append="rig.delay=2000") as machine:
        machine.wait_ready()
        machine.wait_acked(20)
        say(f"a Linux guest runs, with {len(disks)} ext4 disks; its writer is at {machine.acked}")
        fill(machine, "dd if=/dev/urandom of=/a/bulk bs=1M count=32 && cp /a/bulk /b/bulk && sync")
        say("the guest has written 2 x 32 MiB of random data")
        points = [backup(machine, store, "full under load")]

        machine.wait_acked(machine.acked + 100)
        fill(
            machine,
            "dd if=/dev/urandom of=/a/bulk bs=64k count=32 seek=300 conv=notrunc && rm /b/bulk "
            "&& sync && fstrim /b 2> /dev/null; sync",
        )
        points.append(backup(machine, store, "incremental under load"))

        machine.wait_acked(machine.acked + 50)
        with paused(machine):
            points.append(backup(machine, store, "incremental of the paused guest"))
            away = backup(machine, BUCKET, "full of the paused guest, into a bucket")
            for disk in disks:
                words = ["convert", "-U", "-f", disk.fmt, "-O", "raw"]
                run_checked("qemu-img", *words, disk.path, copies[disk.device])
            say("the paused guest's disks are copied by 'qemu-img convert'")
        at = machine.acked
        machine.wait_acked(at + 20)
        say(f"the guest goes on: its writer is at {machine.acked}")
    return points, away, copies


def restore(store: str | Path, points: Sequence[Point], folder: Path) -> None:
    """Restore every disk of every point to a raw image, and have its root computed again."""
    for number, point in enumerate(points, 1):
        for disk, expected in point.roots.items():
            target = folder / f"restored-{number}-{disk}.raw"
            start = time.monotonic()
            fleece("restore", store, point.id, disk, target, "--guest", GUEST)
            seconds = time.monotonic() - start
            point.restored[disk] = target
            say(f"restored {point.name}, {disk}: {target.name}, {seconds:.2f} s")
            check_root(target, "raw", expected)


def check_root(image: Path, fmt: str, expected: str) -> None:
    """`fleece root` of an image must print a root.

    Raises:
        Failed: it printed another one.
    """
    found = fleece("root", image, "--format", fmt)["root"]
    if found != expected:
        raise Failed(f"{image.name} has root {found}, the backup said {expected}")
    say(f"    fleece root {image.name}: {found}, as the backup said")


def judge_exactly(store: Path, point: Point, copies: Mapping[str, Path], folder: Path) -> None:
    """Compare the paused guest's point with the copies that QEMU's tools made.

    Raises:
        Failed, AssertionError: they differ.
    """
    for disk, copy in copies.items():
        qcow2 = folder / f"restored-{disk}.qcow2"
        fleece("restore", store, point.id, disk, qcow2, "--guest", GUEST)
        check_root(copy, "raw", point.roots[disk])
        for image, fmt in ((point.restored[disk], "raw"), (qcow2, "qcow2")):
            images.compare(copy, image, "raw", fmt)
            say(f"    qemu-img compare {copy.name} {image.name}: identical")


def judge_bucket(point: Point, copies: Mapping[str, Path], folder: Path) -> None:
    """Restore the point that is in the bucket, and compare it with the same copies.

    Raises:
        Failed, AssertionError: they differ.
    """
    folder.mkdir()
    restore(BUCKET, [point], folder)
    for disk, image in point.restored.items():
        images.compare(copies[disk], image, "raw", "raw")
        say(f"    qemu-img compare {copies[disk].name} {image.name} from {BUCKET}: identical")
        image.unlink()


def judge_records(points: Sequence[Point]) -> None:
    """Every point must show one moment of all the guest's disks.

    Raises:
        Failed: one does not.
    """
    for point in points:
        report = consistency.check(list(point.restored.values()), acked=point.acked)
        if not report.ok:
            raise Failed(f"{point.name} is no single moment:\n" + "\n".join(report.problems))
        found = [f"{image.path.name} {image.last}" for image in report.images]
        say(f"{point.name}: one moment of all disks, at least record {point.acked}")
        say(f"    found the last records {'; '.join(found)}")


def break_something(what: str | None, when: str, file: Path) -> None:
    """Flip one bit in the middle of a file, if that is what the user wants broken."""
    if what != when:
        return
    place = file.stat().st_size // 2
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ 1]))
    say(f"BROKEN on purpose: one bit of {file.name} at byte {place}")


@contextmanager
def object_store(folder: Path) -> Iterator[None]:
    """Run an object store, which the environment tells, with a new store in it."""
    place = folder / "seaweedfs"
    place.mkdir()
    server = SeaweedFs(place)
    try:
        os.environ.update(server.environment | {"XDG_CACHE_HOME": str(place)})
        fleece("init", BUCKET, "--create-bucket")
        say(f"SeaweedFS runs; {BUCKET} is a store in it")
        yield
    finally:
        server.kill()


def demo(folder: Path, broken: str | None) -> None:
    """Run all steps.

    Raises:
        Failed, AssertionError: one did not hold.
    """
    files = guest_files(folder / "guest")
    disks = [
        Disk(images.make_disk(folder / f"{name}.{fmt}", size, fmt, "ext4"), name, fmt)
        for name, size, fmt in DISKS
    ]
    store = folder / "store"
    fleece("init", store)
    with object_store(folder):
        points, away, copies = take_points(files, disks, folder, store)
        judge_bucket(away, copies, folder / "bucket")
    break_something(broken, "delta", max(store.rglob("*vd-a*.fleece"), key=_size))
    checked = fleece("verify", store)
    say(f"fleece verify: {checked['deltas']} deltas, {mib(checked['read_bytes'])}, all sound")
    restore(store, points, folder)
    break_something(broken, "image", points[-1].restored["vd-b"])
    judge_exactly(store, points[-1], copies, folder)
    judge_records(points)
    last = points[-1].restored
    boot_check(files, [Disk(path, name, "raw") for name, path in last.items()])
    say("a guest booted from the restored images and mounted both")


def _size(path: Path) -> int:
    return path.stat().st_size


def main() -> int:
    """Parse the command line, run the demo, tell how it ended."""
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dir", type=Path, help="where to work; default: /var/tmp (4 GiB)")
    parser.add_argument("--keep", action="store_true", help="leave the images and the store")
    parser.add_argument(
        "--break",
        dest="broken",
        choices=("delta", "image"),
        help="flip one bit in a delta or in a restored image: the demo must fail then",
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fleece-demo-", dir=options.dir or "/var/tmp"))
    try:
        demo(folder, options.broken)
    except (Failed, AssertionError) as error:
        say(f"FAILED: {error}")
        return 1
    finally:
        if options.keep:
            say(f"everything is in {folder}")
        else:
            run("rm", "-rf", folder)
    say("everything held")
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
