"""A delta to standard output, a delta from standard input: what arrives is whole, or nothing is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fleece
from fleece.store.names import MARKER
from tests.engine.history import Guest
from tests.engine.scene import INTACT, KIB64, MIB, ROOT, MachineScene, Ran, Scene, daemon
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import LIMIT, run_checked

SIZE = 4 * MIB + 512


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    image = images.random_image(tmp_path / "d0.qcow2", SIZE, seed=1)
    with daemon(tmp_path, Disk(image, "d0")) as made:
        yield made


def _export(scene: Scene, target: Path, *words: object) -> dict[str, object]:
    """Back up to a pipe, caught in a file; gives the result."""
    with target.open("wb") as file:
        piped = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        done = _run(scene.words("--output", "-", *words), stdout=piped.stdin)
        assert piped.stdin is not None
        piped.stdin.close()
        assert piped.wait() == 0
    assert done.returncode == 0, done.stderr
    last: dict[str, object] = json.loads(done.stderr.splitlines()[-1])
    return last


def _run(words: tuple[object, ...], **streams: object) -> subprocess.CompletedProcess[bytes]:
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [sys.executable, "-m", "fleece", *map(str, words)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        check=False,
        timeout=LIMIT,
        **streams,  # type: ignore[call-overload]
    )
    return done


def _import(store: Path, delta: Path, *words: object) -> Ran:
    with delta.open("rb") as file:
        done = _run(("import", store, "--json", *words), stdin=file, stdout=subprocess.PIPE)
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def _ids(store: Path) -> list[str]:
    return [point.id for point in fleece.open_store(store).catalogue().points]


def test_a_stream_is_a_delta_that_the_judges_take_and_that_restores_elsewhere(
    scene: Scene, tmp_path: Path
) -> None:
    delta = tmp_path / "delta"
    said = _export(scene, delta)
    assert said["ok"] is True
    assert said["mode"] == "full"
    run_checked("zstd", "-tq", delta)
    run_checked(
        sys.executable, "-I", ROOT / "tools" / "read_delta.py", tmp_path / "read.raw", delta
    )
    scene.same_as_live("d0", tmp_path / "read.raw")
    taken = _import(scene.place(tmp_path / "other"), delta).succeeded().result
    assert taken["point"] == said["point"]
    scene.check_exact("d0", store=tmp_path / "other")
    assert _ids(scene.store) == []
    scene.nothing_left()


def test_what_is_streamed_and_taken_in_is_what_the_next_backup_builds_on(
    scene: Scene, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    _export(scene, full)
    _import(scene.store, full).succeeded()
    scene.writer().write(MIB, os.urandom(KIB64))
    child = tmp_path / "child"
    said = _export(scene, child)
    assert said["mode"] == "incremental"
    _import(scene.store, child).succeeded()
    scene.writer().write(2 * MIB, os.urandom(KIB64))
    result = scene.take()
    assert (result.mode, result.disks[0].dirty_bytes) == ("incremental", KIB64)
    scene.check_exact()
    scene.verify()
    scene.only_newest_segment()


def test_a_stream_that_the_store_never_sees_loses_nothing(scene: Scene, tmp_path: Path) -> None:
    """What was written before it is in the next delta all the same."""
    scene.take()
    scene.writer().write(0, os.urandom(KIB64))
    _export(scene, tmp_path / "lost")
    scene.writer().write(MIB, os.urandom(KIB64))
    result = scene.take()
    assert (result.mode, result.disks[0].dirty_bytes) == ("incremental", 2 * KIB64)
    scene.check_exact()
    scene.only_newest_segment()


@pytest.mark.parametrize("mode", ["auto", "differential", "full"])
def test_a_stream_keeps_what_its_own_disk_needs_whatever_other_disks_have(
    mode: str, pair: Scene, tmp_path: Path
) -> None:
    pair.take(disks=["d0"])
    pair.writer("d0").write(0, os.urandom(KIB64))
    pair.take(disks=["d0"])
    pair.take(disks=["d1"])
    pair.writer("d0").write(MIB, os.urandom(KIB64))
    for _ in range(2):
        _export(pair, tmp_path / "lost", "--disk", "d0", "--mode", mode)
    pair.writer("d0").write(2 * MIB, os.urandom(KIB64))
    result = pair.take("incremental", disks=["d0"])
    assert result.disks[0].dirty_bytes == 2 * KIB64
    pair.check_exact("d0")
    pair.only_newest_segment("d0")


def test_a_stream_keeps_what_is_needed_where_the_newest_point_does_not_serve(
    tmp_path: Path,
) -> None:
    """A disk that has its old size again: the next backup builds on the point of that size."""
    image = images.random_image(tmp_path / "d0.qcow2", SIZE, seed=1)
    with Machine([Disk(image, "d0")]) as qemu:
        scene = MachineScene(qemu, tmp_path)
        scene.take()
        qemu.control.command("block_resize", {"node-name": "d0", "size": SIZE + MIB})
        said = _export(scene, tmp_path / "larger")
        assert said["mode"] == "rescan"
        _import(scene.store, tmp_path / "larger").succeeded()
        qemu.control.command("block_resize", {"node-name": "d0", "size": SIZE})
        for _ in range(2):
            _export(scene, tmp_path / "lost")
        scene.take("incremental")
        scene.check_exact()


def test_the_first_stream_of_a_disk_keeps_nothing_for_other_disks_points(
    pair: Scene, tmp_path: Path
) -> None:
    pair.take(disks=["d1"])
    for _ in range(3):
        _export(pair, tmp_path / "lost", "--disk", "d0")
    assert len(pair.segments("d0")) == 1


def test_streams_do_not_pile_up_bitmaps_when_no_store_has_a_point(
    scene: Scene, tmp_path: Path
) -> None:
    for _ in range(3):
        _export(scene, tmp_path / "delta")
    assert len(scene.segments()) == 1


def test_the_disks_of_a_point_come_one_by_one(tmp_path: Path) -> None:
    """A store's own delta is a stream like any other."""
    images_of = [images.random_image(tmp_path / f"d{n}.qcow2", MIB, seed=n) for n in (0, 1)]
    disks = [Disk(image, f"d{number}") for number, image in enumerate(images_of)]
    with daemon(tmp_path, *disks) as scene:
        scene.take()
        scene.writer("d1").write(0, os.urandom(KIB64))
        scene.take()
        points = fleece.open_store(scene.store).catalogue().points
        other = scene.place(tmp_path / "other")
        for number, point in enumerate(points):
            first = _import(other, Path(point.disks["d1"].where)).succeeded().result
            assert first["missing"] == ["d0"]
            assert len(fleece.open_store(other).catalogue().of_guest(point.guest)) == number
            second = _import(other, Path(point.disks["d0"].where)).succeeded().result
            assert second["missing"] == []
        scene.check_exact(store=other)
    again = _import(other, Path(points[0].disks["d0"].where)).succeeded().result
    assert again["already"] is True


def test_two_disks_do_not_go_into_one_stream(tmp_path: Path) -> None:
    images_of = [images.random_image(tmp_path / f"d{n}.qcow2", MIB, seed=n) for n in (0, 1)]
    with daemon(tmp_path, *(Disk(image, f"d{n}") for n, image in enumerate(images_of))) as scene:
        with (tmp_path / "out").open("wb") as file:
            done = _run(scene.words("--output", "-"), stdout=file)
        assert done.returncode == fleece.ExitCode.USAGE
        assert b"a stream takes one disk" in done.stderr
        assert (tmp_path / "out").read_bytes() == b""
        assert _export(scene, tmp_path / "one", "--disk", "d1")["ok"] is True
        scene.nothing_left()


def test_a_reader_that_goes_away_fails_the_backup_and_leaves_nothing(scene: Scene) -> None:
    piped = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    piped.wait()
    done = _run(scene.words("--output", "-"), stdout=piped.stdin)
    assert done.returncode == fleece.ExitCode.STORE
    assert b"the output takes no more (Broken pipe)" in done.stderr
    scene.nothing_left()
    assert scene.segments() == []


def test_a_socket_takes_all_of_a_disk(tmp_path: Path) -> None:
    """It cannot be opened again, as a pipe is, so that no write blocks."""
    guest = Guest(tmp_path / "store")
    disk = os.urandom(3 * MIB + KIB64)
    guest.holding({"vda": disk})
    mine, theirs = socket.socketpair()
    with mine, theirs, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(lambda: b"".join(iter(lambda: mine.recv(MIB), b"")))
        done = _run(("restore", guest.store, "latest", "vda", "-"), stdout=theirs)
        theirs.close()
        assert taken.result() == disk
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cut", [0, 1, 700, -200, -1])
def test_a_cut_stream_is_refused_and_leaves_nothing(scene: Scene, tmp_path: Path, cut: int) -> None:
    delta, store = tmp_path / "delta", scene.place(tmp_path / "other")
    _export(scene, delta)
    delta.write_bytes(delta.read_bytes()[:cut])
    _import(store, delta).failed(fleece.ExitCode.STORE)
    assert [item.name for item in store.iterdir()] == [MARKER]


def test_a_stream_with_one_bit_wrong_is_refused(scene: Scene, tmp_path: Path) -> None:
    delta, store = tmp_path / "delta", scene.place(tmp_path / "other")
    _export(scene, delta)
    raw = bytearray(delta.read_bytes())
    raw[len(raw) // 2] ^= 4
    delta.write_bytes(raw)
    _import(store, delta).failed(fleece.ExitCode.STORE, "does not match its hash")
    assert _ids(store) == []


def test_a_delta_whose_parent_is_not_there_is_refused(scene: Scene, tmp_path: Path) -> None:
    scene.take()
    scene.writer().write(0, os.urandom(KIB64))
    child = tmp_path / "child"
    _export(scene, child)
    _import(tmp_path / "new", child).failed(fleece.ExitCode.STORE, "no store here", "fleece init")
    fleece.init(tmp_path / "other")
    _import(tmp_path / "other", child).failed(fleece.ExitCode.STORE, "is not in the store")
    assert not (tmp_path / "new").exists()
    assert [item.name for item in (tmp_path / "other").rglob("*.fleece")] == []


def test_an_import_does_not_write_over_what_is_there(scene: Scene, tmp_path: Path) -> None:
    scene.take()
    (entry,) = fleece.open_store(scene.store).catalogue().entries
    good = tmp_path / "good"
    good.write_bytes(Path(entry.where).read_bytes())
    Path(entry.where).write_bytes(good.read_bytes()[:-1])
    _import(scene.store, good).failed(fleece.ExitCode.STORE, "move it away first")
    Path(entry.where).unlink()
    _import(scene.store, good).succeeded()
    scene.check_exact()


def test_something_else_is_no_store_to_import_into(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    _import(tmp_path, Path(os.devnull)).failed(fleece.ExitCode.STORE, "is not a fleece store")
    assert [item.name for item in tmp_path.iterdir()] == ["photo.jpg"]


def test_what_a_killed_import_left_is_removed_by_the_next(scene: Scene, tmp_path: Path) -> None:
    delta, store = tmp_path / "delta", scene.place(tmp_path / "other")
    _export(scene, delta)
    (store / ".import-0123456789abcdef").write_bytes(b"half a delta")
    _import(store, delta).succeeded()
    assert [item.name for item in store.iterdir() if item.name.startswith(".import")] == []


KEYS = {
    "keyed": ("--hash", "blake3"),
    "encrypted": ("--encrypt",),
    "both": ("--hash", "blake3", "--encrypt"),
}


@pytest.mark.parametrize("words", KEYS.values(), ids=KEYS)
def test_everything_works_with_the_key_and_nothing_without(
    scene: Scene, tmp_path: Path, words: tuple[str, ...]
) -> None:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    with_key = ("--key-file", key)
    scene.init(*words, *with_key)
    scene.backup(*with_key).succeeded()
    scene.writer().write(MIB, os.urandom(KIB64))
    assert scene.backup(*with_key).succeeded().result["mode"] == "incremental"
    scene.backup("--mode", "differential", *with_key).succeeded()
    scene.writer().write(0, bytes(KIB64))
    scene.backup("--mode", "rescan", *with_key).succeeded()
    INTACT.run("verify", scene.store, *with_key).succeeded()
    assert len(INTACT.run("list", scene.store, *with_key).succeeded().out.splitlines()) == 1 + 4 + 1
    target = tmp_path / "restored.raw"
    INTACT.run("restore", scene.store, "latest", "d0", target, *with_key).succeeded()
    scene.same_as_live("d0", target)
    INTACT.run("verify", scene.store, "latest", "--against", target, *with_key).succeeded()
    INTACT.run("diff", scene.store, "latest", "latest", *with_key).succeeded()
    INTACT.run("map", scene.store, "latest", "d0", *with_key).succeeded()
    served = fleece.open_store(scene.store, fleece.Secret.of_key_file(key))
    with fleece.serve(served, "latest") as serving:
        run_checked("nbdcopy", serving.disks[0].uri, tmp_path / "served.raw")
    scene.same_as_live("d0", tmp_path / "served.raw")
    INTACT.run("merge", scene.store, "latest", *with_key).succeeded()
    INTACT.run("prune", scene.store, "--keep-last", 2, *with_key).succeeded()
    INTACT.run("verify", scene.store, *with_key).succeeded()
    INTACT.run("verify", scene.store, "latest", "--against", target, *with_key).succeeded()
    delta = max(scene.store.rglob("*.fleece"))
    INTACT.run("info", delta, *with_key).succeeded()
    run_checked("zstd", "-tq", delta)
    for verb in (
        ("list", scene.store),
        ("merge", scene.store, "latest"),
        ("prune", scene.store, "--keep-last", 1),
        ("verify", scene.store),
        ("info", delta),
        ("restore", scene.store, "latest", "d0", tmp_path / "no.raw"),
        scene.words(),
    ):
        INTACT.run(*verb).failed(fleece.ExitCode.USAGE, "is protected by a key")
    assert not (tmp_path / "no.raw").exists()
    scene.nothing_left()


def test_a_wrong_passphrase_never_begins_a_new_chain(scene: Scene, tmp_path: Path) -> None:
    for name, text in (("right", "open sesame\n"), ("wrong", "open barley\n")):
        (tmp_path / name).write_text(text)
    scene.init("--encrypt", "--passphrase-file", tmp_path / "right")
    scene.backup("--passphrase-file", tmp_path / "right").succeeded()
    ran = scene.backup("--passphrase-file", tmp_path / "wrong")
    ran.failed(fleece.ExitCode.USAGE, "not the key that it was made with")
    assert len([*scene.store.rglob("*.fleece")]) == 1
    assert len([item for item in scene.store.iterdir() if item.is_dir()]) == 1


@pytest.mark.parametrize("like", ["the store", "the delta"])
def test_an_encrypted_stream_goes_into_a_store_that_is_like_its_own(
    scene: Scene, tmp_path: Path, like: str
) -> None:
    key, delta, other = tmp_path / "key", tmp_path / "delta", tmp_path / "other"
    key.write_bytes(os.urandom(32))
    with_key = ("--key-file", key)
    scene.init("--encrypt", *with_key)
    _export(scene, delta, *with_key)
    scene.init("--like", delta if like == "the delta" else scene.store, *with_key, store=other)
    _import(other, delta).failed(fleece.ExitCode.USAGE, "is protected by a key")
    _import(other, delta, *with_key).succeeded()
    INTACT.run("verify", other, *with_key).succeeded()


def test_an_encrypted_stream_does_not_go_into_a_store_of_another_key(
    scene: Scene, tmp_path: Path
) -> None:
    """The same secret makes another key for each store."""
    key, delta = tmp_path / "key", tmp_path / "delta"
    key.write_bytes(os.urandom(32))
    scene.init("--encrypt", "--key-file", key)
    _export(scene, delta, "--key-file", key)
    scene.init("--encrypt", "--key-file", key, store=tmp_path / "other")
    ran = _import(tmp_path / "other", delta, "--key-file", key)
    ran.failed(fleece.ExitCode.STORE, "not protected as its store is", "init --like")
    plain = scene.place(tmp_path / "plain")
    _import(plain, delta).failed(fleece.ExitCode.STORE, "by a key that is not its store")
    _import(plain, delta, "--key-file", key).failed(fleece.ExitCode.USAGE, "this store has none")
    for store in (tmp_path / "other", plain):
        assert [item.name for item in store.iterdir()] == [MARKER]


def test_more_than_one_key_is_refused(scene: Scene, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    for verb in ("list", "init"):
        ran = INTACT.run(verb, scene.store, "--key-file", key, "--passphrase-file", key)
        ran.failed(fleece.ExitCode.USAGE, "more than one key")
    assert not scene.store.exists()
