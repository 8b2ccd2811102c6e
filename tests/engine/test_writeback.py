"""What is written is on its way to the disk long before it is made durable.

Else a store or a target on a disk waits in the end for all of it. Which calls the engine makes is
asked of strace: when the system writes by itself depends on its memory.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.writeback import STEP
from tests.engine.scene import INTACT, MIB, ROOT, Ran, Scene, daemon
from tests.rig import images
from tests.rig.disk import Disk

STEPS = 2
"""How often the writing out of a file of `SIZE` is started, at least."""
SIZE = STEPS * STEP + 4 * MIB


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    image = images.random_image(tmp_path / "d0.qcow2", SIZE, seed=1, fill=1.0)
    with daemon(tmp_path, Disk(image, "d0")) as made:
        yield made


@pytest.fixture
def kept(scene: Scene) -> Scene:
    """With a full point in the store."""
    scene.take("full")
    return scene


def _traced(folder: Path, *words: object, fault: str | None = None) -> Ran:
    """Run a program of this Python, its output in a file; strace writes what it did to files.

    Args:
        folder: of the files: `out` and `trace`.
        words: of the program.
        fault: an errno with which the system refuses to start the writing out.
    """
    calls = ["-e", "trace=sync_file_range,fsync,fdatasync,syncfs"]
    if fault is not None:
        calls += ["-e", f"inject=sync_file_range:error={fault}"]
    trace = ["strace", "-f", "-y", "-o", str(folder / "trace"), *calls]
    with (folder / "out").open("wb") as out:
        done = subprocess.run(
            [*trace, sys.executable, *map(str, words)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    return Ran(done.returncode, "", done.stderr)


def _started(trace: Path, name: str) -> int:
    """How often the writing out of a file was started before its content was made durable."""
    count = 0
    for line in trace.read_text().splitlines():
        called = re.search(r" (\w+)\(\d+<([^>]*)>", line)
        if called is None:
            continue
        if called[1] == "sync_file_range" and re.search(name, called[2]):
            count += 1
        elif called[1] != "sync_file_range" and count:
            return count
    pytest.fail(f"{name}: started {count} times, made durable never\n{trace.read_text()}")


@pytest.mark.parametrize("stream", [False, True])
def test_a_delta_is_written_out_while_it_grows(scene: Scene, tmp_path: Path, stream: bool) -> None:
    words = scene.words(*(("--output", "-") if stream else ()))
    _traced(tmp_path, "-m", "fleece", *words).succeeded()
    assert _started(tmp_path / "trace", r"/out$" if stream else r"\.fleece$") >= STEPS
    scene.nothing_left()


@pytest.mark.parametrize("way", [(), ("--format", "qcow2"), ("--as-chain",)])
def test_a_new_image_is_written_out_while_it_grows(
    kept: Scene, tmp_path: Path, way: tuple[str, ...]
) -> None:
    """An image of qemu-nbd's too: the file has its pages, whoever wrote them."""
    words = ("restore", kept.store, "latest", "d0", tmp_path / "new", *way)
    _traced(tmp_path, "-m", "fleece", *words).succeeded()
    assert _started(tmp_path / "trace", r"/\.fleece-\w+\.partial") >= STEPS


def test_an_image_in_place_is_written_out_meanwhile(kept: Scene, tmp_path: Path) -> None:
    target = tmp_path / "old"
    with target.open("wb") as file:
        file.truncate(SIZE)
    words = ("restore", kept.store, "latest", "d0", target, "--in-place", "--format", "raw")
    _traced(tmp_path, "-m", "fleece", *words).succeeded()
    assert _started(tmp_path / "trace", r"/old$") >= STEPS
    kept.same_as_live("d0", target)


def test_a_stream_of_a_disk_is_written_out_meanwhile(kept: Scene, tmp_path: Path) -> None:
    words = ("restore", kept.store, "latest", "d0", "-")
    _traced(tmp_path, "-m", "fleece", *words).succeeded()
    assert _started(tmp_path / "trace", r"/out$") >= STEPS
    kept.same_as_live("d0", tmp_path / "out")


def test_what_is_salvaged_is_written_out_meanwhile(kept: Scene, tmp_path: Path) -> None:
    (delta,) = kept.store.rglob("*.fleece")
    _traced(tmp_path, "-m", "fleece", "salvage", delta, "-o", tmp_path / "new").succeeded()
    assert _started(tmp_path / "trace", r"/\.fleece-\w+\.partial$") >= STEPS


_COPY = """
import sys
from pathlib import Path
from fleece.files.target import Folder
with Folder.open(Path(sys.argv[1]), force=False) as folder:
    with folder.file("new", None, None) as file:
        for at in range(0, int(sys.argv[2]), 1 << 20):
            file.write(at, bytes(1 << 20))
    folder.sync()
"""


def test_a_file_that_is_copied_out_is_written_out_meanwhile(tmp_path: Path) -> None:
    _traced(tmp_path, "-c", _COPY, tmp_path, SIZE).succeeded()
    assert _started(tmp_path / "trace", r"/\.fleece-\w+\.partial$") >= STEPS


@pytest.mark.parametrize("name", ["ENOSYS", "EINVAL", "EOPNOTSUPP"])
def test_a_system_that_cannot_start_it_writes_when_it_sees_fit(
    scene: Scene, tmp_path: Path, name: str
) -> None:
    _traced(tmp_path, "-m", "fleece", *scene.words(), fault=name).succeeded()
    assert "INJECTED" in (tmp_path / "trace").read_text()
    scene.check_exact()


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_a_disk_that_fails_meanwhile_ends_a_backup(scene: Scene, tmp_path: Path, name: str) -> None:
    ran = _traced(tmp_path, "-m", "fleece", *scene.words(), fault=name)
    assert ran.code == fleece.ExitCode.STORE, ran.err
    assert os.strerror(getattr(errno, name)) in (tmp_path / "out").read_text().splitlines()[-1]
    assert not [*scene.store.rglob("*.fleece")]
    scene.nothing_left()
    scene.take("full")
    scene.check_exact()


@pytest.mark.parametrize("way", ["raw", "qcow2"])
def test_a_disk_that_fails_meanwhile_ends_a_restore(kept: Scene, tmp_path: Path, way: str) -> None:
    words = ("restore", kept.store, "latest", "d0", tmp_path / "new", "--format", way)
    before = sorted(item.name for item in tmp_path.iterdir())
    _traced(tmp_path, "-m", "fleece", *words, fault="EIO").failed(
        fleece.ExitCode.TARGET, "Input/output error"
    )
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([*before, "out", "trace"])
    INTACT.run(*words).succeeded()
