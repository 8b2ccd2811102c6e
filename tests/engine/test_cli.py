"""The command line: every verb, its machine output, its exit codes, its refusals."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import xxhash

import fleece
from tests.engine.scene import GUEST, INTACT, KIB64, MIB, Scene, flip, small_tmpfs
from tests.rig import images
from tests.rig.process import run, run_checked

VERBS = ("backup", "list", "info", "verify", "root", "restore", "clean", "doctor")


def naive_root(content: bytes) -> str:
    """The root by the format's page alone, with nothing of fleece."""
    digest = xxhash.xxh3_128_digest
    size = len(content)
    level = [digest(content[at : at + KIB64].ljust(KIB64, b"\0")) for at in range(0, size, KIB64)]
    zero, number = digest(bytes(KIB64)), 0
    while len(level) > 1:
        number += 1
        level += [zero] * (-len(level) % 16)
        tag = b"fleece-node" + bytes([number])
        level = [digest(tag + b"".join(level[at : at + 16])) for at in range(0, len(level), 16)]
        zero = digest(tag + zero * 16)
    shape = KIB64.to_bytes(4, "little") + (16).to_bytes(4, "little") + size.to_bytes(8, "little")
    return digest(b"fleece-root" + b"xxh3-128".ljust(16, b"\0") + shape + level[0]).hex()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    ran = INTACT.run(verb, "--help").succeeded()
    assert "--json" in ran.out
    assert f"fleece {verb}" in ran.out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nonsense",),
        ("backup", "qmp:x"),
        ("backup", "what", "store"),
        ("backup", "qmp:x", "store", "--level", "20"),
        ("verify", "store", "--disk", "d0"),
    ],
)
def test_a_command_that_makes_no_sense_is_a_usage_error(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    fleece.FolderStore.open_or_create(tmp_path / "store")
    placed = [tmp_path / "store" if word == "store" else word for word in words]
    INTACT.run(*placed).failed(2)
    INTACT.run(*placed, "--json").failed(2)


def test_the_results_of_all_verbs_have_what_is_documented(scene: Scene) -> None:
    done = scene.backup().succeeded().result
    assert set(done) == {"event", "ok", "point", "guest", "mode", "disks"}
    (disk,) = done["disks"]
    assert set(disk) == {"disk", "size", "root", "mode", "dirty_bytes", "read_bytes",
                         "stored_bytes", "delta"}  # fmt: skip
    assert (done["mode"], disk["disk"], disk["size"]) == ("full", "d0", 8 * MIB)
    assert Path(disk["delta"]).stat().st_size == disk["stored_bytes"]

    scene.writer().write(0, b"x")
    second = scene.backup().succeeded().result
    assert second["mode"] == "incremental"
    assert second["disks"][0]["dirty_bytes"] == second["disks"][0]["read_bytes"] == KIB64

    listed = INTACT.run("list", scene.store, "--json").succeeded()
    lines = listed.named("point")
    assert [line["point"] for line in lines] == [done["point"], second["point"]]
    assert lines[1]["parent"] == done["point"]
    assert lines[1]["root"] == second["disks"][0]["root"]
    assert listed.result["points"] == 2

    info = INTACT.run("info", disk["delta"], "--json").succeeded().result
    assert (info["root"], info["mode"], info["guest"]) == (disk["root"], "full", GUEST)

    verified = INTACT.run("verify", scene.store, "--json").succeeded().result
    assert verified["points"] == [done["point"], second["point"]]
    assert verified["errors"] == []

    target = scene.folder / "restored.raw"
    restored = INTACT.run("restore", scene.store, "latest", "d0", target, "--json").succeeded()
    assert restored.result["root"] == second["disks"][0]["root"]
    root = INTACT.run("root", target, "--json").succeeded().result
    assert root["root"] == second["disks"][0]["root"]
    against = INTACT.run("verify", scene.store, "latest", "--against", target, "--json")
    assert against.succeeded().result["root"] == root["root"]

    doctor = INTACT.run("doctor", scene.source, "--json").succeeded()
    assert doctor.named("disk")[0]["pull"] is True
    assert doctor.named("bitmap")[0]["state"] == "recording"
    assert INTACT.run("clean", scene.source, "--json").succeeded().result["removed"] == 0


def test_for_people_the_result_is_text_and_a_pipe_gets_no_progress_bar(scene: Scene) -> None:
    words = ("backup", scene.source, scene.store, "--scratch", scene.scratch)
    ran = INTACT.run(*words).succeeded()
    assert "is committed" in ran.out.splitlines()[-1]
    assert "the store has no point of this disk yet" in ran.err
    assert "%" not in ran.err
    assert GUEST not in {p.guest for p in fleece.FolderStore(scene.store).catalogue().points}


def test_the_root_is_the_same_however_the_disk_comes(tmp_path: Path) -> None:
    content = os.urandom(3 * MIB) + bytes(5 * MIB) + os.urandom(KIB64 + 512)
    raw, qcow2 = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(content)
    run_checked("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    expected = naive_root(content)
    for image in (raw, qcow2):
        assert INTACT.run("root", image).succeeded().out.strip() == expected
    socket = tmp_path / "s"
    server = subprocess.Popen(["qemu-nbd", "-t", "-r", "-f", "raw", "-k", socket, raw])
    try:
        while not socket.exists():
            assert server.poll() is None
        uri = f"nbd+unix:///?socket={socket}"
        assert INTACT.run("root", uri).succeeded().out.strip() == expected
    finally:
        server.terminate()
        server.wait()


def test_the_root_of_a_block_device_is_that_of_its_bytes(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    content = os.urandom(MIB) + bytes(MIB)
    raw.write_bytes(content)
    made = run("losetup", "--find", "--show", raw)
    if made.returncode != 0:
        pytest.skip("no loop devices here")
    try:
        device = made.stdout.strip()
        assert INTACT.run("root", device).succeeded().out.strip() == naive_root(content)
    finally:
        run_checked("losetup", "--detach", made.stdout.strip())


def test_an_odd_raw_file_has_a_root_of_its_own_size(tmp_path: Path) -> None:
    raw = tmp_path / "odd.raw"
    content = os.urandom(KIB64 + 77)
    raw.write_bytes(content)
    assert INTACT.run("root", raw, "--format", "raw").succeeded().out.strip() == naive_root(content)


def test_against_names_the_ranges_that_differ(scene: Scene) -> None:
    scene.backup().succeeded()
    target = scene.restore()
    flip(target, 3 * MIB + 5)
    flip(target, 3 * MIB + KIB64)
    flip(target, 8 * MIB - 1)
    words = ("verify", scene.store, "latest", "--against", target, "--format", "raw")
    ran = INTACT.run(*words, "--json").failed(6, "differ")
    found = [(event["start"], event["end"]) for event in ran.named("differs")]
    assert found == [(3 * MIB, 3 * MIB + 2 * KIB64), (8 * MIB - KIB64, 8 * MIB)]
    INTACT.run(*words).failed(6)


def test_an_image_of_another_size_is_not_the_disk(scene: Scene) -> None:
    scene.backup().succeeded()
    target = scene.restore()
    os.truncate(target, 4 * MIB)
    words = ("verify", scene.store, "latest", "--against", target, "--format", "raw")
    INTACT.run(*words).failed(6, "bytes")


def test_a_restored_qcow2_is_whole_for_qemu_img(scene: Scene) -> None:
    scene.backup().succeeded()
    target = scene.folder / "restored.qcow2"
    INTACT.run("restore", scene.store, "latest", "d0", target).succeeded()
    images.check(target, "qcow2")
    images.compare(target, scene.restore(), a_fmt="qcow2", b_fmt="raw")
    info = json.loads(run_checked("qemu-img", "info", "--output=json", target))
    assert info["format"] == "qcow2"


def test_a_restored_raw_file_is_sparse_where_the_disk_is_zero(scene: Scene) -> None:
    scene.writer().zero(0, 8 * MIB, unmap=True)
    scene.backup().succeeded()
    assert scene.restore().stat().st_blocks == 0


def test_a_target_that_exists_is_kept_without_force(scene: Scene) -> None:
    scene.backup().succeeded()
    target = scene.folder / "mine"
    target.write_text("precious")
    words = ("restore", scene.store, "latest", "d0", target)
    INTACT.run(*words).failed(7, "exists already", "--force")
    assert target.read_text() == "precious"
    INTACT.run(*words, "--force").succeeded()
    assert target.stat().st_size == 8 * MIB


def test_a_target_without_a_folder_is_refused(scene: Scene) -> None:
    scene.backup().succeeded()
    INTACT.run("restore", scene.store, "latest", "d0", scene.folder / "no" / "x").failed(7)


def test_a_target_that_does_not_fit_leaves_no_file(scene: Scene) -> None:
    scene.backup().succeeded()
    for name in ("x.raw", "x.qcow2"):
        with small_tmpfs(2) as folder:
            ran = INTACT.run("restore", scene.store, "latest", "d0", folder / name)
            ran.failed(7, "No space left")
            assert [*folder.iterdir()] == []


@pytest.mark.parametrize("words", [("nothere",), ("latest", "--guest", "nobody")])
def test_a_point_that_is_not_there_is_a_store_error(scene: Scene, words: tuple[str, ...]) -> None:
    scene.backup().succeeded()
    INTACT.run("verify", scene.store, *words).failed(5, "no such point")


def test_a_disk_that_the_point_lacks_is_named_with_those_it_has(scene: Scene) -> None:
    scene.backup().succeeded()
    INTACT.run("restore", scene.store, "latest", "dx", scene.folder / "x").failed(2, "dx", "d0")


def test_a_damaged_file_makes_the_listing_fail_after_it_showed_the_rest(scene: Scene) -> None:
    scene.backup().succeeded()
    done = scene.backup().succeeded().result
    path = Path(done["disks"][0]["delta"])
    os.truncate(path, path.stat().st_size - 1)
    ran = INTACT.run("list", scene.store, "--json").failed(5, "damaged")
    assert len(ran.named("point")) == 1
    assert len(ran.named("damaged")) == 1
    INTACT.run("info", path).failed(5, "incomplete or cut")
