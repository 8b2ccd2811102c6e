"""Every verb of the command line, for people and with --json, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import xxhash

import fleece
from tests.engine.scene import GUEST, INTACT, KIB64, MIB, ROOT, Scene, daemon, fill, small_tmpfs
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.process import run, run_checked

VERBS = ("init", "backup", "clean", "doctor", "list", "info", "verify", "root", "restore")
FAN_OUT = 16


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two disks with a full and an incremental; tests read it and do not write."""
    folder = tmp_path_factory.mktemp("kept")
    first = images.random_image(folder / "d0.qcow2", 4 * MIB, seed=1)
    second = images.random_image(folder / "d1.raw", 3 * MIB + 512, seed=2, fmt="raw")
    with daemon(folder, Disk(first, "d0"), Disk(second, "d1", "raw")) as scene:
        scene.take()
        scene.writer("d0").write(MIB, os.urandom(KIB64 + 1))
        scene.writer("d1").zero(0, MIB, unmap=False)
        scene.take()
        for node in scene.qemu.disks:
            scene.writer(node).flush()
        yield scene


def _root(data: bytes) -> str:
    """The root by the format's page, written down once more, without anything of the engine's."""
    size = len(data)
    leaves = [
        xxhash.xxh3_128_digest(data[at : at + KIB64].ljust(KIB64, b"\0"))
        for at in range(0, size, KIB64)
    ]
    zero, level = xxhash.xxh3_128_digest(bytes(KIB64)), 0
    nodes = leaves or [zero]
    while len(nodes) > 1:
        level += 1
        nodes += [zero] * (-len(nodes) % FAN_OUT)
        tag = b"fleece-node" + bytes([level])
        zero = xxhash.xxh3_128_digest(tag + zero * FAN_OUT)
        nodes = [
            xxhash.xxh3_128_digest(tag + b"".join(nodes[at : at + FAN_OUT]))
            for at in range(0, len(nodes), FAN_OUT)
        ]
    shape = b"xxh3-128".ljust(16, b"\0") + struct.pack("<IIQ", KIB64, FAN_OUT, size)
    return xxhash.xxh3_128_hexdigest(b"fleece-root" + shape + nodes[0])


# ---- help and usage -----------------------------------------------------------------------------


def test_help_and_manual_name_the_number_of_workers() -> None:
    workers = fleece.BackupOptions().workers
    printed = " ".join(INTACT.run("backup", "--help").succeeded().out.split())
    assert f"for all disks together; default: {workers}" in printed
    assert f"``--jobs N`` (default {workers})" in (ROOT / "docs/reference/backup.rst").read_text()


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_says_something_of_every_word(verb: str) -> None:
    ran = INTACT.run(*filter(None, [verb, "--help"])).succeeded()
    assert ran.out.startswith(f"usage: fleece {verb}".rstrip())
    assert ran.err == ""
    for line in re.findall(r"^  (?:-\S+|[A-Za-z]+)\s*(.*)$", ran.out, re.MULTILINE):
        assert line != ""


def test_version() -> None:
    assert INTACT.run("--version").succeeded().out == f"fleece {fleece.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("fly",),
        ("backup", "qmp:x"),
        ("backup", "qmp:x", "s", "--mode", "sometimes"),
        ("backup", "qmp:x", "s", "--level", "0"),
        ("backup", "qmp:x", "s", "--level", "one"),
        ("backup", "qmp:x", "s", "--encrypt"),
        ("backup", "qmp:x", "s", "--hash", "blake3"),
        ("restore", "s", "latest", "d0"),
        ("restore", "s", "latest", "d0", "t", "--format", "vmdk"),
        ("verify", "--against", "x"),
        ("list", "a", "b"),
        ("root", "x", "--fast"),
        ("backup", "qmp:x", "s", "--out=-"),
        ("backup", "qmp:x", "s", "--outp", "-"),
        ("list", "s", "--jso"),
        ("files", "s", "latest", "d0", "ls", "--vol", "1"),
    ],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_a_wrong_command_line_is_a_usage_error(words: tuple[str, ...]) -> None:
    assert INTACT.run(*words).failed(2).out == ""


@pytest.mark.parametrize(
    "words",
    [
        ("boot-test", "s", "latest", "--console-text="),
        ("backup", "qmp:x", ""),
        ("backup", "qmp:x", "s", "--guest", ""),
        ("backup", "qmp:x", "s", "--scratch", ""),
        ("backup", "qmp:x", "s", "--guest-agent", ""),
        ("backup", "qmp:x", "s", "--disk", "vda", "--disk", ""),
        ("verify", "s", ""),
        ("merge", "s", "latest", "--from", ""),
        ("files", "s", "latest", "vda", "cp", "/a", "", "d"),
        ("files", "s", "latest", "vda", "cp", "/a", ""),
        ("files", "s", "latest", "vda", "ls", "--volume", "", "/"),
        ("list", "s", "--key-file", ""),
    ],
    ids=" ".join,
)
def test_an_empty_word_means_nothing(words: tuple[str, ...]) -> None:
    assert INTACT.run(*words).failed(2, "is empty").out == ""


def test_a_wrong_command_line_with_json_is_a_result(tmp_path: Path) -> None:
    ran = INTACT.run("fly", "--json").failed(2, "fly")
    assert ran.result["ok"] is False
    INTACT.run("backup", "--json", "qmp:x", tmp_path, "--level", "99").failed(2, "--level")


def test_a_wrong_command_line_that_may_stream_keeps_its_output_free(tmp_path: Path) -> None:
    for words in (("--out=-",), ("--output", "-", "--fly"), ("--output=-", "--level", "x")):
        ran = INTACT.run("backup", "--json", "qmp:x", tmp_path, *words)
        assert (ran.code, ran.out) == (2, "")
        assert json.loads(ran.err)["exit_code"] == 2


def test_a_dash_is_the_output_only_where_the_verb_takes_it_so(kept: Scene) -> None:
    ran = INTACT.run("verify", kept.store, "latest", "--guest", "-", "--json").failed(5)
    assert ran.result["ok"] is False
    target = kept.folder / "new"
    words = ("restore", kept.store, "latest", "d0", target, "--guest", "-", "--json")
    assert INTACT.run(*words).failed(5).result["ok"] is False


def test_json_may_be_asked_for_before_an_inner_verb_and_behind_it(kept: Scene) -> None:
    words = (kept.store, "latest", "d0", "ls", "-l")
    for ran in (INTACT.run("files", "--json", *words), INTACT.run("files", *words, "--json")):
        assert ran.failed(2, "PATH").result["ok"] is False


# ---- init ---------------------------------------------------------------------------------------


def test_init_makes_a_store_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    said = INTACT.run("init", store, "--json").succeeded().result
    assert {name: said[name] for name in ("store", "hash", "encrypted", "key", "mode")} == {
        "store": str(store),
        "hash": "xxh3-128",
        "encrypted": False,
        "key": None,
        "mode": "0600",
    }
    before = [(path.name, path.read_bytes()) for path in store.iterdir()]
    INTACT.run("init", store, "--mode", "0640").failed(5, str(store), "is a store already")
    assert [(path.name, path.read_bytes()) for path in store.iterdir()] == before
    assert "points" in INTACT.run("list", store, "--json").succeeded().result


def test_init_does_as_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(32))
    words = ("--encrypt", "--hash", "blake3", "--mode", "0750", "--key-file", tmp_path / "key")
    said = INTACT.run("init", tmp_path / "store", *words, "--json").succeeded().result
    assert (said["hash"], said["encrypted"]) == ("blake3-keyed", True)
    assert (said["key"], said["mode"]) == ("key_file", "0640")
    assert "encrypted" in INTACT.run("init", tmp_path / "other", *words).succeeded().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--encrypt",), "encryption needs a key"),
        (("--key-file", "KEY"), "a key has no effect"),
        (("--mode", "rw"), "permissions in octal digits"),
        (("--mode", "0o640"), "permissions in octal digits"),
        (("--mode", "0666"), "cannot have the mode 0666"),
        (("--like", "OTHER", "--hash", "blake3"), "like another"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_init_that_makes_no_sense_makes_nothing(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(bytes(32))
    fleece.init(tmp_path / "like")
    real = {"KEY": tmp_path / "key", "OTHER": tmp_path / "like"}
    ran = INTACT.run("init", tmp_path / "store", *(real.get(word, word) for word in words))
    ran.failed(2, message)
    assert not (tmp_path / "store").exists()


def test_init_where_there_is_no_room_leaves_nothing() -> None:
    with small_tmpfs(1) as place:
        fill(place)
        ran = INTACT.run("init", place / "a" / "store")
        ran.failed(5, "No space left", "make room")
        assert [path.name for path in place.iterdir()] == ["fill"]


def test_only_init_makes_a_store(scene: Scene, tmp_path: Path) -> None:
    """An empty folder may be where a file system is not mounted."""
    (tmp_path / "empty").mkdir()
    for place, message in (
        (tmp_path / "none", "no store here"),
        (tmp_path / "empty", "not a fleece store"),
    ):
        for words in (
            ("backup", scene.source, place, "--scratch", scene.scratch),
            ("backup", scene.source, place, "--scratch", scene.scratch, "--output", "-"),
            ("audit", scene.source, place, "--scratch", scene.scratch),
            ("list", place),
            ("restore", place, "latest", "d0", tmp_path / "raw"),
        ):
            INTACT.run(*words).failed(5, message, "fleece init", "mounted?")
        with (tmp_path / "input").open("w+b") as nothing:
            ran = subprocess.run(
                [sys.executable, "-m", "fleece", "import", place],
                stdin=nothing,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert ran.returncode == 5
        assert "fleece init" in ran.stderr
    assert not (tmp_path / "none").exists()
    assert not [*(tmp_path / "empty").iterdir()]
    assert scene.segments() == []


# ---- backup, list, info, clean, doctor ----------------------------------------------------------


def test_backup_tells_what_it_did(pair: Scene) -> None:
    full = pair.backup().succeeded()
    assert [event["event"] for event in full.events if event["event"] != "progress"] == [
        "plan",
        "plan",
        "point",
        "committed",
        "result",
    ]
    result = full.result
    assert (result["ok"], result["mode"], result["guest"]) == (True, "full", GUEST)
    assert re.fullmatch(r"[0-9a-f]{10}", result["point"])
    assert full.named("point")[0]["point"] == full.named("committed")[0]["point"] == result["point"]
    for disk, size in zip(result["disks"], (8 * MIB, 4 * MIB + 512), strict=True):
        assert set(disk) == {
            "disk",
            "size",
            "root",
            "mode",
            "dirty_bytes",
            "read_bytes",
            "stored_bytes",
            "delta",
            "audited_bytes",
            "resumed_bytes",
        }
        assert disk["size"] == disk["dirty_bytes"] == size
        assert disk["stored_bytes"] == Path(disk["delta"]).stat().st_size
        assert disk["root"] == _root(pair.restore(disk["disk"]).read_bytes())
    told = full.named("progress")[0]
    assert told["known"] <= told["done"] <= told["total"] == 12 * MIB + 512


def test_backup_for_people(scene: Scene) -> None:
    words = ("backup", scene.source, scene.place(), "--guest", GUEST, "--scratch", scene.scratch)
    ran = scene.engine.run(*words).succeeded()
    (root,) = re.findall(r"root ([0-9a-f]{32})", ran.out)
    assert re.search(r"point [0-9a-f]{10} of g is committed\n", ran.out)
    assert "d0: full: the store has no point of this disk yet" in ran.err
    assert root == INTACT.run("root", scene.restore()).out.strip()
    again = scene.engine.run(*words, "--mode", "differential", "--level", "19").succeeded()
    assert "d0: differential" in again.err


def test_list_has_a_line_for_each_point_and_disk(kept: Scene) -> None:
    lines = INTACT.run("list", kept.store, "--json").succeeded().named("point")
    assert [(line["sequence"], line["disk"], line["mode"]) for line in lines] == [
        (1, "d0", "full"),
        (1, "d1", "full"),
        (2, "d0", "incremental"),
        (2, "d1", "incremental"),
    ]
    assert all(line["complete"] and line["guest"] == GUEST for line in lines)
    assert lines[2]["parent"] == lines[0]["point"]
    assert [line["size"] for line in lines[:2]] == [4 * MIB, 3 * MIB + 512]
    assert all(Path(line["path"]).stat().st_size == line["stored_bytes"] for line in lines)
    shown = INTACT.run("list", kept.store, "--long").succeeded().out
    assert all(line["root"] in shown for line in lines)
    assert len(shown.splitlines()) == 1 + 4 + 1


def test_list_has_a_line_for_each_point(kept: Scene) -> None:
    titles, *rows, closing = INTACT.run("list", kept.store).succeeded().out.splitlines()
    assert titles.split() == ["GUEST", "POINT", "TIME", "MODE", "SIZE", "STORED", "DISKS"]
    assert [(row.split()[0], "d0, d1" in row) for row in rows] == [(GUEST, True)] * 2
    assert ["full" in row for row in rows] == [True, False]
    assert closing.startswith("2 points, ")
    only = INTACT.run("list", kept.store, "--guest", GUEST).succeeded().out
    assert only.splitlines() == [titles, *rows, closing]
    INTACT.run("list", kept.store, "--guest", "slip").failed(5, "no point of guest slip")
    INTACT.run("list", kept.store, "--long", "--json").failed(2, "has no effect with --json")


def test_info_shows_what_a_delta_says_of_itself(kept: Scene) -> None:
    lines = INTACT.run("list", kept.store, "--json").named("point")
    result = INTACT.run("info", lines[3]["path"], "--json").succeeded().result
    for name in ("guest", "disk", "point", "sequence", "time", "mode", "size", "root"):
        assert result[name] == lines[3][name]
    assert result["parent"] == {
        "point": lines[1]["point"],
        "root": lines[1]["root"],
        "size": 3 * MIB + 512,
    }
    assert result["disks"] == ["d0", "d1"]
    assert (result["data_bytes"], result["zero_bytes"]) == (0, MIB)
    assert result["producer"]["fleece"] == fleece.__version__
    shown = INTACT.run("info", lines[3]["path"]).succeeded().out
    assert result["root"] in shown
    INTACT.run("info", kept.folder / "d0.qcow2", "--json").failed(5, "not a fleece delta")
    INTACT.run("info", kept.folder / "none", "--json").failed(5, "No such file")


def test_doctor_shows_disks_and_bitmaps(kept: Scene) -> None:
    ran = INTACT.run("doctor", kept.source, "--json").succeeded()
    disks = {disk["disk"]: disk for disk in ran.named("disk")}
    assert disks["d0"]["persistent_bitmaps"]
    assert not disks["d1"]["persistent_bitmaps"]
    assert all(disk["pull"] and disk["obstacle"] is None for disk in disks.values())
    assert [bitmap["name"] for bitmap in ran.named("bitmap") if bitmap["disk"] == "d0"] == (
        kept.segments("d0")
    )
    assert ran.result["disks"] == 2
    assert {ability["name"]: ability["present"] for ability in ran.named("ability")}["transaction"]
    assert "can be pulled" in INTACT.run("doctor", kept.source).succeeded().out


def test_clean_finds_nothing_where_nothing_is(kept: Scene) -> None:
    words = ("clean", kept.source, "--scratch", kept.scratch)
    assert INTACT.run(*words, "--json").succeeded().result["removed"] == 0
    assert INTACT.run(*words).succeeded().out == "nothing was left behind\n"


# ---- verify -------------------------------------------------------------------------------------


def test_verify_names_points_and_errors(kept: Scene) -> None:
    points = [line["point"] for line in INTACT.run("list", kept.store, "--json").named("point")]
    ran = INTACT.run("verify", kept.store, "--json").succeeded()
    assert ran.result["points"] == list(dict.fromkeys(points))
    assert ran.result["errors"] == []
    assert len(ran.named("checked")) == ran.result["deltas"] == 4
    newest = INTACT.run("verify", kept.store, "latest", "--json").succeeded().result
    assert newest["points"] == [points[-1]]
    assert newest["deltas"] == 4
    oldest = INTACT.run("verify", kept.store, points[0][:6], "--json").succeeded().result
    assert oldest["deltas"] == 2
    assert "no damage in 2 points: 4 deltas" in INTACT.run("verify", kept.store).succeeded().out


def test_verify_of_a_guest_that_is_not_there_proves_nothing(kept: Scene) -> None:
    INTACT.run("verify", kept.store, "--guest", GUEST).succeeded()
    ran = INTACT.run("verify", kept.store, "--guest", "slip", "--json")
    ran.failed(fleece.ExitCode.STORE, "no point of guest slip")


def test_verify_against_an_image(kept: Scene, tmp_path: Path) -> None:
    image = kept.restore("d0")
    words = ("verify", kept.store, "latest", "--disk", "d0", "--against")
    ran = INTACT.run(*words, image, "--json").succeeded()
    assert ran.result["errors"] == []
    assert ran.result["root"] == _root(image.read_bytes())
    with image.open("r+b") as file:
        for offset in (0, MIB + 5, 2 * MIB, 2 * MIB + KIB64, 4 * MIB - 1):
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 255]))
    ran = INTACT.run(*words, image, "--json").failed(6, "differ")
    assert [(line["start"], line["end"]) for line in ran.named("differs")] == [
        (0, KIB64),
        (MIB, MIB + KIB64),
        (2 * MIB, 2 * MIB + 2 * KIB64),
        (4 * MIB - KIB64, 4 * MIB),
    ]
    assert ran.result["root"] == _root(image.read_bytes())
    shown = INTACT.run(*words, image)
    assert f"differs: bytes {MIB} to {MIB + KIB64 - 1}\n" in shown.failed(6).out
    os.truncate(image, 4 * MIB - KIB64)
    INTACT.run(*words, image, "--json").failed(6, "bytes")
    image.unlink()
    INTACT.run(*words, image, "--json").failed(3, "No such file")
    INTACT.run("verify", kept.store, "latest", "--against", tmp_path, "--json").failed(2, "--disk")
    INTACT.run("verify", kept.store, "--against", tmp_path, "--json").failed(2, "POINT")


# ---- root ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 512, KIB64, KIB64 + 512, 17 * KIB64, 20 * MIB + 1536])
def test_root_is_the_hash_that_the_format_defines(size: int, tmp_path: Path) -> None:
    raw = images.random_image(tmp_path / "raw", size, seed=size, fmt="raw")
    wanted = _root(raw.read_bytes())
    assert INTACT.run("root", raw, "--format", "raw").succeeded().out == f"{wanted}\n"
    result = INTACT.run("root", raw, "--json", "--format", "raw").succeeded().result
    assert (result["root"], result["size"]) == (wanted, size)


def test_root_is_the_same_of_any_kind_of_image(tmp_path: Path) -> None:
    raw = images.random_image(tmp_path / "raw", 5 * MIB + 512, seed=1, fmt="raw")
    wanted = _root(raw.read_bytes())
    qcow2 = tmp_path / "qcow2"
    run_checked("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, qcow2)
    assert INTACT.run("root", raw).succeeded().out.strip() == wanted
    assert INTACT.run("root", qcow2).succeeded().out.strip() == wanted
    with _nbdkit(raw) as uri:
        assert INTACT.run("root", uri).succeeded().out.strip() == wanted
        result = INTACT.run("root", uri, "--json").succeeded().result
        assert (result["root"], result["image"]) == (wanted, uri)
    digest = hashlib.sha256(raw.read_bytes()).digest()
    with _loop_device(raw) as device:
        assert INTACT.run("root", device).succeeded().out.strip() == wanted
    assert hashlib.sha256(raw.read_bytes()).digest() == digest


@contextmanager
def _nbdkit(image: Path) -> Iterator[str]:
    """An NBD server of another make."""
    path = Path(f"/tmp/rig-{os.getpid()}-nbdkit.sock")
    command = ["nbdkit", "--foreground", "--exit-with-parent", "-U", str(path), "file", str(image)]
    process = subprocess.Popen(command)
    try:
        while not _listens(path):
            assert process.poll() is None
        yield f"nbd+unix:///?socket={path}"
    finally:
        process.terminate()
        process.wait()
        path.unlink(missing_ok=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def _loop_device(image: Path) -> Iterator[str]:
    done = run("losetup", "--find", "--show", "--read-only", image)
    if done.returncode != 0:
        pytest.skip(f"no loop device can be had: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        run_checked("losetup", "--detach", device)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("none", "No such file"),
        (".", "neither a file nor a block device"),
        ("/dev/null", "neither a file nor a block device"),
        ("nbd+unix:///?socket=/nonexistent", "NBD"),
        ("nbd://", "NBD"),
    ],
)
def test_root_of_what_is_no_image(image: str, text: str, tmp_path: Path) -> None:
    image = image if "/" in image else str(tmp_path / image)
    INTACT.run("root", image, "--json").failed(3, text)


def test_root_of_a_damaged_image(tmp_path: Path) -> None:
    qcow2 = images.random_image(tmp_path / "qcow2", MIB, seed=1)
    os.truncate(qcow2, 100)
    INTACT.run("root", qcow2, "--json", "--format", "qcow2").failed(3, str(qcow2))
    INTACT.run("root", qcow2, "--json", "--format", "nonsense").failed(3, str(qcow2))


# ---- restore ------------------------------------------------------------------------------------


def test_restore_proves_what_it_wrote(kept: Scene, tmp_path: Path) -> None:
    before = sorted(kept.folder.iterdir())
    for name, fmt in (("out", "raw"), ("out.qcow2", "qcow2")):
        target = tmp_path / name
        result = INTACT.run("restore", kept.store, "latest", "d1", target, "--json").succeeded()
        fields = result.result
        assert fields["target"] == str(target)
        assert (fields["disk"], fields["size"], fields["deltas"]) == ("d1", 3 * MIB + 512, 2)
        assert fields["root"] == INTACT.run("root", target, "--format", fmt).out.strip()
        run_checked("qemu-img", "compare", "-U", "-f", fmt, target, kept.folder / "d1.raw")
    images.check(tmp_path / "out.qcow2")
    kept.same_as_live("d1", tmp_path / "out")
    # A leaf of zeros is a hole in the restored image; a qcow2 has its tables besides.
    assert (tmp_path / "out").stat().st_blocks * 512 <= 2 * MIB + KIB64
    assert (tmp_path / "out.qcow2").stat().st_blocks * 512 <= 2 * MIB + 16 * KIB64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.qcow2"]
    assert sorted(kept.folder.iterdir()) == before
    shown = INTACT.run("restore", kept.store, "latest", "d1", tmp_path / "third").succeeded()
    assert fields["root"] in shown.out


def test_restore_refuses_a_target_that_exists(kept: Scene, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("precious")
    words = ("restore", kept.store, "latest", "d0", target, "--json")
    INTACT.run(*words).failed(7, "exists already", "--force")
    assert target.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    INTACT.run(*words, "--force").succeeded()
    kept.same_as_live("d0", target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_restore_refuses_a_target_that_cannot_be(kept: Scene, tmp_path: Path) -> None:
    words = ("restore", kept.store, "latest", "d0")
    INTACT.run(*words, tmp_path / "none" / "out", "--json").failed(7, "folder does not exist")
    INTACT.run(*words, tmp_path, "--json", "--force").failed(7, "not a regular file")
    INTACT.run(*words, "/proc/out", "--json").failed(7, "/proc")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    INTACT.run(*words, tmp_path / "link", "--json").failed(7, "exists already")
    long = "n" * 256
    for target in (tmp_path / long, tmp_path / long / "out"):
        for more in ((), ("--force",), ("--as-chain",), ("--partial",)):
            INTACT.run(*words, target, *more, "--json").failed(7, "File name too long", long)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_restore_to_a_full_file_system_leaves_no_file(kept: Scene, fmt: str) -> None:
    with small_tmpfs(1) as small:
        words = (small / "out", "--format", fmt, "--json")
        ran = INTACT.run("restore", kept.store, "latest", "d0", *words)
        ran.failed(7, f"{small}/out: ", "No space left")
        assert [*small.iterdir()] == []


def test_a_failed_restore_with_force_keeps_the_old_target(kept: Scene) -> None:
    with small_tmpfs(1) as small:
        (small / "out").write_text("precious")
        words = ("restore", kept.store, "latest", "d0", small / "out", "--force", "--json")
        INTACT.run(*words).failed(7, "No space left")
        assert (small / "out").read_text() == "precious"
        assert [path.name for path in small.iterdir()] == ["out"]
