"""Every target of a restore holds the disk, and nothing else, and is proven by its root."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fleece
from tests.engine.scene import INTACT, KIB64, MIB, ROOT, Scene, daemon, small_tmpfs, wait_until
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.process import run, run_checked

SIZE = 6 * MIB
GARBAGE = b"\xa5"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A chain of three: data, zeros over data, data over a hole."""
    folder = tmp_path_factory.mktemp("kept")
    image = images.random_image(folder / "d0.qcow2", SIZE, seed=1)
    with daemon(folder, Disk(image, "d0")) as scene:
        scene.take()
        scene.writer().zero(MIB, MIB, unmap=False)
        scene.take()
        scene.writer().write(MIB + KIB64, os.urandom(2 * KIB64))
        scene.writer().zero(4 * MIB, KIB64, unmap=True)
        scene.take()
        scene.writer().flush()
        yield scene


def _restore(scene: Scene, target: object, *words: object) -> dict[str, object]:
    words = ("restore", scene.store, "latest", "d0", target, "--json", *words)
    return INTACT.run(*words).succeeded().result


def _garbage(path: Path, size: int = SIZE) -> Path:
    path.write_bytes(GARBAGE * size)
    return path


@contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    """A block device whose bytes are a file's."""
    done = run("losetup", "--show", "-f", path)
    if done.returncode != 0:
        pytest.skip(f"no loop devices here: {done.stderr}")
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        run_checked("losetup", "-d", device)


@contextmanager
def nbd_server(path: Path, socket: Path, *words: str) -> Iterator[str]:
    """A qemu-nbd that serves a raw image on a socket, ready; gives its URI."""
    command = ["qemu-nbd", "-t", "-k", str(socket), "-f", "raw", *words, str(path)]
    with subprocess.Popen(command) as server:
        try:
            uri = f"nbd+unix:///?socket={socket}"
            wait_until(lambda: run("nbdinfo", "--size", uri).returncode == 0, "qemu-nbd")
            yield uri
        finally:
            server.terminate()


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_target_in_place_that_fills_up_is_called_half_written(kept: Scene, fmt: str) -> None:
    with small_tmpfs(1) as small:
        target = small / "target"
        run_checked("qemu-img", "create", "-q", "-f", fmt, target, str(SIZE))
        words = ("restore", kept.store, "latest", "d0", target, "--in-place", "--format", fmt)
        ran = INTACT.run(*words)
    ran.failed(7, f"{target}: ", "No space left", f"; {target} may be written in part")


@pytest.mark.parametrize("word", ["--in-place", "--force"])
def test_a_block_device_with_garbage_on_it(kept: Scene, tmp_path: Path, word: str) -> None:
    with loop_device(_garbage(tmp_path / "backing", SIZE + MIB)) as device:
        _restore(kept, device, word)
    raw = (tmp_path / "backing").read_bytes()
    assert raw[SIZE:] == GARBAGE * MIB, "written past the disk's end"
    (tmp_path / "disk").write_bytes(raw[:SIZE])
    kept.same_as_live("d0", tmp_path / "disk")


def test_a_block_device_that_is_mounted_is_refused(kept: Scene, tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(SIZE))
    run_checked("mkfs.ext4", "-q", backing)
    before = backing.read_bytes()
    with loop_device(backing) as device:
        (tmp_path / "mnt").mkdir()
        if run("mount", "-o", "ro,noload", device, tmp_path / "mnt").returncode != 0:
            pytest.skip("cannot mount here")
        try:
            ran = INTACT.run("restore", kept.store, "latest", "d0", device, "--force")
            ran.failed(fleece.ExitCode.TARGET, "busy", "unmount it")
        finally:
            run_checked("umount", tmp_path / "mnt")
    assert backing.read_bytes() == before


@pytest.mark.parametrize("word", ["--in-place", "--force"])
def test_an_nbd_export_with_garbage_in_it(kept: Scene, tmp_path: Path, word: str) -> None:
    with nbd_server(_garbage(tmp_path / "raw"), tmp_path / "s") as uri:
        _restore(kept, uri, word)
    kept.same_as_live("d0", tmp_path / "raw")


def test_an_nbd_export_is_written_in_parallel_and_zeros_are_punched(
    kept: Scene, tmp_path: Path
) -> None:
    """nbdkit's log says who asked for what; the file says what became of the garbage."""
    raw, socket, log = tmp_path / "raw", tmp_path / "s", tmp_path / "log"
    _garbage(raw)
    words = ["nbdkit", "-f", "-U", str(socket), "--filter=log", "file", str(raw), f"logfile={log}"]
    with subprocess.Popen(words) as server:
        wait_until(socket.exists, "nbdkit")
        try:
            _restore(kept, f"nbd+unix:///?socket={socket}", "--force")
        finally:
            server.terminate()
    kept.same_as_live("d0", raw)
    said = log.read_text().splitlines()
    writers = {re.search(r"connection=(\d+)", line) for line in said if " Write " in line}
    assert len({found[1] for found in writers if found}) > 1
    zeroed = [line for line in said if " Zero id=" in line]
    assert zeroed
    assert all("trim=1" in line for line in zeroed)
    assert MIB < raw.stat().st_blocks * 512 < SIZE - MIB


def test_a_server_that_knows_no_zeroing(kept: Scene, tmp_path: Path) -> None:
    """Zeros are written out then."""
    _garbage(tmp_path / "raw")
    socket = tmp_path / "s"
    words = ["nbdkit", "-f", "-U", str(socket), "--filter=nozero", "file", str(tmp_path / "raw")]
    with subprocess.Popen(words) as server:
        wait_until(socket.exists, "nbdkit")
        try:
            _restore(kept, f"nbd+unix:///?socket={socket}", "--force")
        finally:
            server.terminate()
    kept.same_as_live("d0", tmp_path / "raw")


def test_an_export_that_takes_no_writes_is_refused(kept: Scene, tmp_path: Path) -> None:
    with nbd_server(_garbage(tmp_path / "raw"), tmp_path / "s", "-r") as uri:
        ran = INTACT.run("restore", kept.store, "latest", "d0", uri, "--in-place")
        ran.failed(fleece.ExitCode.TARGET, "takes no writes")


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_in_place_over_garbage(kept: Scene, tmp_path: Path, fmt: str) -> None:
    target = _garbage(tmp_path / "target.raw")
    if fmt == "qcow2":
        run_checked("qemu-img", "convert", "-O", "qcow2", target, tmp_path / "target.qcow2")
        target = tmp_path / "target.qcow2"
    _restore(kept, target, "--in-place", "--format", fmt)
    assert images.virtual_size(target) == SIZE
    run_checked("qemu-img", "convert", "-f", fmt, "-O", "raw", target, tmp_path / "out")
    kept.same_as_live("d0", tmp_path / "out")


def test_in_place_writes_only_what_differs(kept: Scene, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    _restore(kept, target)
    with target.open("r+b") as file:
        file.seek(3 * MIB + 5)
        file.write(b"changed")
        file.seek(MIB)  # zeros there
        file.write(b"changed")
    assert _restore(kept, target, "--in-place")["written_bytes"] == KIB64
    kept.same_as_live("d0", target)
    assert _restore(kept, target, "--in-place")["written_bytes"] == 0


def test_in_place_goes_back_to_an_older_point(kept: Scene, tmp_path: Path) -> None:
    oldest, _, newest = fleece.open_store(kept.store).catalogue().points
    target, other = tmp_path / "target.raw", tmp_path / "other.raw"
    store = fleece.open_store(kept.store)
    fleece.restore(store, newest.id, "d0", str(target))
    fleece.restore(
        store, oldest.id, "d0", str(target), options=fleece.RestoreOptions(in_place=True)
    )
    fleece.restore(store, oldest.id, "d0", str(other))
    assert target.read_bytes() == other.read_bytes()


def test_what_is_there_is_not_written_without_a_word(kept: Scene, tmp_path: Path) -> None:
    target = _garbage(tmp_path / "target.raw", 512)
    ran = INTACT.run("restore", kept.store, "latest", "d0", target)
    ran.failed(fleece.ExitCode.TARGET, "exists already")
    with nbd_server(target, tmp_path / "s") as uri:
        ran = INTACT.run("restore", kept.store, "latest", "d0", uri)
        ran.failed(fleece.ExitCode.TARGET, "exists already", "--in-place")
        ran = INTACT.run("restore", kept.store, "latest", "d0", uri, "--force")
        ran.failed(fleece.ExitCode.TARGET, f"has 512 bytes, and the disk has {SIZE}")
    ran = INTACT.run("restore", kept.store, "latest", "d0", target, "--in-place", "--format", "raw")
    ran.failed(fleece.ExitCode.TARGET, "has 512 bytes", "qemu-img resize")
    assert target.read_bytes() == GARBAGE * 512


def test_in_place_does_not_believe_a_header_that_the_guest_wrote(
    kept: Scene, tmp_path: Path
) -> None:
    """The guest wrote a qcow2 header into its raw disk that names another file of the host."""
    target, victim = tmp_path / "disk.raw", tmp_path / "victim"
    victim.write_bytes(b"precious" * (SIZE // 8))
    before = victim.read_bytes()
    options = f"cluster_size=512,data_file={victim},data_file_raw=on"
    run_checked("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, target, str(SIZE))
    victim.write_bytes(before)
    with target.open("r+b") as file:
        file.truncate(SIZE)
    ran = INTACT.run("restore", kept.store, "latest", "d0", target, "--in-place")
    ran.failed(fleece.ExitCode.TARGET, "looks like qcow2", "--format raw")
    assert victim.read_bytes() == before
    _restore(kept, target, "--in-place", "--format", "raw")
    kept.same_as_live("d0", target)
    assert victim.read_bytes() == before


def test_an_image_that_a_guest_uses_is_not_written(kept: Scene) -> None:
    live = kept.qemu.disks["d0"].path
    ran = INTACT.run("restore", kept.store, "latest", "d0", live, "--in-place")
    ran.failed(fleece.ExitCode.TARGET, "in use", f"process {kept.qemu.pid}")
    kept.check_exact()


def test_standard_output_takes_the_whole_disk(kept: Scene, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fleece", "restore", kept.store, "latest", "d0", "-", "--json"]
    command = [str(word) for word in words]
    with (tmp_path / "out").open("wb") as file:
        piped = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        done = subprocess.run(command, cwd=ROOT, stdout=piped.stdin, stderr=subprocess.PIPE)
        assert piped.stdin is not None
        piped.stdin.close()
        piped.wait()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1])["ok"] is True
    kept.same_as_live("d0", tmp_path / "out")


def test_standard_output_that_closes_early_is_an_error(kept: Scene) -> None:
    words = [sys.executable, "-m", "fleece", "restore", str(kept.store), "latest", "d0", "-"]
    piped = subprocess.Popen(["head", "-c", "10"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    done = subprocess.run(words, cwd=ROOT, stdout=piped.stdin, stderr=subprocess.PIPE)
    assert piped.stdin is not None
    piped.stdin.close()
    piped.wait()
    assert done.returncode == fleece.ExitCode.TARGET
    assert b"the output takes no more" in done.stderr


def test_a_device_as_standard_output_that_loses_what_it_took_is_an_error(kept: Scene) -> None:
    """The device takes all into the page cache; only its fsync tells that it cannot keep it."""
    command = [sys.executable, "-m", "fleece", "restore", str(kept.store), "latest", "d0", "-"]
    with small_tmpfs(1) as small:
        with (small / "backing").open("wb") as file:
            file.truncate(SIZE)
        with loop_device(small / "backing") as device, device.open("wb") as stream:
            done = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.PIPE)
    assert done.returncode == fleece.ExitCode.TARGET, done.stderr
    assert b"the output cannot be made durable" in done.stderr


def test_a_device_as_standard_output_holds_the_disk(kept: Scene, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fleece", "restore", str(kept.store), "latest", "d0", "-"]
    backing = _garbage(tmp_path / "backing")
    with loop_device(backing) as device, device.open("wb") as stream:
        subprocess.run(command, cwd=ROOT, stdout=stream, check=True)
    kept.same_as_live("d0", backing)


@pytest.mark.parametrize("verb", ["restore", "backup"])
def test_a_file_as_standard_output_that_is_not_durable_is_an_error(
    kept: Scene, tmp_path: Path, verb: str
) -> None:
    words: tuple[object, ...] = ("restore", kept.store, "latest", "d0", "-", "--json")
    if verb == "backup":
        words = kept.words("--output", "-", store=tmp_path / "other")
    out = tmp_path / "out"
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(out)]
    trace += ["-e", "trace=fsync", "-e", "inject=fsync:error=EIO"]
    command = [*trace, sys.executable, "-m", "fleece", *map(str, words)]
    with out.open("wb") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.PIPE)
    said = json.loads(done.stderr.splitlines()[-1])
    assert "the output cannot be made durable (Input/output error)" in said["error"]
    family = fleece.ExitCode.TARGET if verb == "restore" else fleece.ExitCode.STORE
    assert said["exit_code"] == done.returncode == family
    kept.nothing_left()


@pytest.mark.parametrize("name", ["EPERM", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_hard_links_keeps_what_was_restored(
    kept: Scene, tmp_path: Path, name: str
) -> None:
    """ENOSYS is the answer of a FUSE file system that knows no link."""
    target = tmp_path / "out"
    calls = ["-e", "trace=link,linkat", "-e", f"inject=link,linkat:error={name}"]
    trace = ["strace", "-f", "-qq", "-o", str(tmp_path / "trace"), *calls]
    words = ["restore", str(kept.store), "latest", "d0", str(target)]
    subprocess.run([*trace, sys.executable, "-m", "fleece", *words], cwd=ROOT, check=True)
    assert "INJECTED" in (tmp_path / "trace").read_text()
    kept.same_as_live("d0", target)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "trace"]


def test_a_backing_chain_needs_no_fleece_any_more(kept: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "chain"
    _restore(kept, folder, "--as-chain")
    files = sorted(folder.iterdir())
    points = fleece.open_store(kept.store).catalogue().points
    assert [file.stem.rpartition("-")[2] for file in files] == [point.id for point in points]
    moved = folder.rename(tmp_path / "moved")
    for file, point in zip(sorted(moved.iterdir()), points, strict=True):
        images.check(file)
        whole = tmp_path / f"{point.id}.raw"
        fleece.restore(fleece.open_store(kept.store), point.id, "d0", str(whole))
        images.compare(file, whole)
    newest = sorted(moved.iterdir())[-1]
    info = json.loads(run_checked("qemu-img", "info", "--output=json", "--backing-chain", newest))
    assert len(info) == len(points)
    assert all("/" not in part.get("backing-filename", "") for part in info)


def test_a_backing_chain_is_thin(kept: Scene, tmp_path: Path) -> None:
    """Each image but the oldest holds no more than its delta."""
    _restore(kept, tmp_path / "chain", "--as-chain")
    newest = max((tmp_path / "chain").iterdir())
    assert newest.stat().st_size < MIB


def test_a_backing_chain_does_not_go_where_something_is(kept: Scene, tmp_path: Path) -> None:
    (tmp_path / "chain").mkdir()
    words = ("restore", kept.store, "latest", "d0", tmp_path / "chain", "--as-chain")
    INTACT.run(*words).failed(fleece.ExitCode.TARGET, "exists already")
    assert [*(tmp_path / "chain").iterdir()] == []


def test_words_that_contradict_each_other(kept: Scene, tmp_path: Path) -> None:
    start = ("restore", kept.store, "latest", "d0")
    for words in (
        ("-", "--force"),
        ("-", "--in-place"),
        ("-", "--format", "qcow2"),
        (tmp_path / "x", "--as-chain", "--force"),
        (tmp_path / "x", "--partial", "--in-place"),
    ):
        INTACT.run(*start, *words).failed(fleece.ExitCode.USAGE)
    assert [*tmp_path.iterdir()] == []
