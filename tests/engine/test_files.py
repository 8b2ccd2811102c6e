"""`fleece files`: what comes out of real file systems is what went into them, and no more."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import fleece
from fleece.cancel import CancelToken
from fleece.errors import StoreError
from fleece.events import Copied, Event, Problem
from fleece.files.session import Session
from tests.engine.history import Guest
from tests.engine.scene import INTACT, ROOT, Ran, daemon, flip
from tests.engine.test_serve import children
from tests.rig import filesystems as made
from tests.rig.disk import Disk
from tests.rig.process import RigError, run_checked
from tests.unit.kit import LEAF, OpenChain

MIB = 1 << 20
UNIX = ("ext4", "ext3", "ext2", "xfs")
ALL = (*UNIX, "ntfs", "fat")
LAST_SIZE = 2_080_768
LAST = random.Random(7).randbytes(LAST_SIZE)


@dataclass(frozen=True)
class Backed:
    """A point of disks with file systems, and the folder that they are copies of."""

    store: Path
    tree: Path

    def files(self, disk: str, *words: object) -> Ran:
        """Run `fleece files STORE latest DISK WORDS`."""
        return INTACT.run("files", self.store, "latest", disk, *words)

    def volumes(self, disk: str) -> list[dict[str, object]]:
        """What `ls` says of a disk's volumes."""
        return self.files(disk, "ls", "--json").succeeded().named("volume")


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where nothing can be mounted."""
    if not made.loop_devices_work(tmp_path_factory.mktemp("probe")):
        pytest.skip("file systems cannot be mounted here: no root, or no loop devices")


def _fill_xfs(tree: Path, folder: Path) -> None:
    run_checked("cp", "-a", "--sparse=always", f"{tree}/.", folder)
    # Space that is given to a file before it is written reads as zeros, whatever was there.
    _fill_with_old_data(folder)
    words = ("-c", "falloc 0 3m", "-c", "pwrite -S 0x42 1m 4k", "-c", "truncate 3m")
    run_checked("xfs_io", "-f", *words, folder / "unwritten")


def _fill_with_old_data(folder: Path) -> None:
    """Write to all of the free space of a file system, and free it again."""
    with suppress(OSError), (folder / "old").open("wb", buffering=0) as file:
        while True:
            file.write(b"A" * MIB)
    run_checked("sync", "-f", folder)
    (folder / "old").unlink()
    run_checked("sync", "-f", folder)


def _fill_ntfs(tree: Path, folder: Path) -> None:
    run_checked("cp", "-r", "--preserve=timestamps", f"{tree}/.", folder)
    _fill_with_old_data(folder)
    (folder / "unwritten").write_bytes(b"B" * 5000)
    (folder / "packed").mkdir()
    compressed = (0x800).to_bytes(4, "little")  # FILE_ATTRIBUTE_COMPRESSED, for what comes in it
    os.setxattr(folder / "packed", "system.ntfs_attrib", compressed)
    (folder / "packed/text").write_bytes(b"compress me, " * 40_000)
    for number in range(200):
        (folder / f"many/gone-{number:04}").write_bytes(b"")
    for number in range(200):
        (folder / f"many/gone-{number:04}").unlink()


@pytest.fixture(scope="module")
def backed(mounts: None, tmp_path_factory: pytest.TempPathFactory) -> Backed:
    """One point of a disk of each file system, and of two with partitions."""
    folder = tmp_path_factory.mktemp("files")
    plain, tree = folder / "plain", folder / "tree"
    plain.mkdir()
    made.sample_tree(plain)
    shutil.copytree(plain, tree)
    made.unix_things(tree)
    images = {
        "ext4": made.ext(folder / "ext4", 12 * MIB, tree, 4, "-b", "4096"),
        "ext3": made.ext(folder / "ext3", 12 * MIB, tree, 3, "-b", "1024"),
        "ext2": made.ext(folder / "ext2", 12 * MIB, tree, 2, "-b", "2048"),
        "xfs": made.xfs(folder / "xfs", 32 * MIB, lambda into: _fill_xfs(tree, into)),
        "ntfs": made.ntfs(folder / "ntfs", 16 * MIB, lambda into: _fill_ntfs(plain, into)),
        "fat": made.fat(folder / "fat", 12 * MIB, plain),
    }
    # Space that a file is given without being written to reads as zeros here, too.
    run_checked("ntfsfallocate", "-l", "1000000", images["ntfs"], "unwritten")
    images["gpt"] = _gpt(folder, images)
    images["mbr"] = _mbr(folder, images)
    disks = [Disk(image, name, "raw") for name, image in images.items()]
    with daemon(folder, *disks) as scene:
        scene.take()
        store = scene.store
    return Backed(store, tree)


def _gpt(folder: Path, images: dict[str, Path]) -> Path:
    """ext4, then an ext2 in use to the last sector, LVM, and LUKS."""
    disk = folder / "gpt"
    luks = folder / "luks"
    luks.write_bytes(b"LUKS\xba\xbe\x00\x02" + bytes(MIB - 8))
    full = _full_to_the_end(folder)
    places = made.partitioned(
        disk,
        "gpt",
        [
            made.Slot(12 * MIB, "boot part", image=images["ext4"]),
            made.Slot(2 * MIB, "full", image=full),
            made.Slot(32 * MIB, "pv", "type=lvm"),
            made.Slot(MIB, "secret", image=luks),
        ],
    )
    _lvm(disk, places[2], images["ext3"])
    return disk


def _lvm(disk: Path, place: tuple[int, int], image: Path) -> None:
    """A group with a volume in two pieces, between which another one is."""
    with made.loop_device(disk, *place) as device:
        lvm = made.Lvm(device)
        lvm("pvcreate", "-y", device)
        lvm("vgcreate", "-y", "-s", str(lvm.EXTENT) + "b", "group", device)
        new = ("-y", "-an", "-Zn", "-Wn")
        lvm("lvcreate", *new, "-L", "5m", "-n", "root", "group")
        lvm("lvcreate", *new, "-L", "4m", "-n", "between", "group")
        lvm("lvextend", "-y", "-L", "12m", "group/root")
        data, first = image.read_bytes(), place[0] + lvm.start()
        extents = lvm.extents("group/root")
        assert extents != [*range(extents[0], extents[0] + 12)]
        for number, extent in enumerate(extents):
            part = data[number * lvm.EXTENT : (number + 1) * lvm.EXTENT]
            made.write_at(disk, first + extent * lvm.EXTENT, part)


def _mbr(folder: Path, images: dict[str, Path]) -> Path:
    """A primary FAT, and an NTFS and an ext2 in an extended partition."""
    disk = folder / "mbr"
    made.blank(disk, 56 * MIB)
    script = "label: dos\nsize=24576, type=c\ntype=5\nsize=32768, type=7\nsize=24576, type=83\n"
    subprocess.run(["sfdisk", "-q", str(disk)], input=script, text=True, check=True)
    table = json.loads(run_checked("sfdisk", "-J", disk))["partitiontable"]["partitions"]
    for number, name in ((0, "fat"), (2, "ntfs"), (3, "ext2")):
        made.write_at(disk, table[number]["start"] * 512, images[name].read_bytes())
    return disk


def _full_to_the_end(folder: Path) -> Path:
    """An ext2 of which every block is in use, the last ones by the file `last`."""
    tree = folder / "full.tree"
    tree.mkdir()
    for size in range(LAST_SIZE, LAST_SIZE - 64 * 1024, -1024):
        (tree / "last").write_bytes(LAST[:size])
        with suppress(RigError):
            image = made.ext(folder / "full", 2 * MIB, tree, 2, "-b", "1024", "-N", "16", "-m", "0")
            assert "Free blocks:              0" in run_checked("dumpe2fs", "-h", image)
            return image
    raise AssertionError("no size is the right one")


# ---- what is listed --------------------------------------------------------------------------


def test_a_disk_without_a_table_is_one_volume(backed: Backed) -> None:
    for kind in ALL:
        with fleece.open_files(fleece.open_store(backed.store), "latest", kind) as files:
            (volume,) = files.volumes
            assert (volume.number, volume.type, volume.start) == (1, kind, 0)
            assert volume.label.lower() == "label"
            assert files.volume() == files.volume("1") == volume


def test_a_gpt_with_lvm_and_luks(backed: Backed) -> None:
    told = {int(str(volume["number"])): volume for volume in backed.volumes("gpt")}
    assert [told[n]["type"] for n in (1, 2, 3, 4)] == ["ext4", "ext2", "lvm2", "luks"]
    assert (told[1]["name"], told[1]["start"], told[1]["size"]) == ("boot part", MIB, 12 * MIB)
    assert told[2]["size"] == 2 * MIB
    assert "encrypted (LUKS)" in str(told[4]["obstacle"])
    logical = {volume["name"]: volume for n, volume in told.items() if n > 4}
    assert logical.keys() == {"group/root", "group/between"}
    assert (logical["group/root"]["type"], logical["group/root"]["size"]) == ("ext3", 12 * MIB)
    assert logical["group/between"]["obstacle"] == "has no file system that is known here"
    backed.files("gpt", "ls", "/", "--json").failed(2, "more than one volume", "--volume")
    backed.files("gpt", "ls", "/", "--volume", "4").failed(5, "volume 4 (luks)", "encrypted")
    backed.files("gpt", "ls", "/", "--volume", "nix").failed(2, "no volume is called nix")


def test_an_mbr_with_an_extended_partition(backed: Backed) -> None:
    told = [(volume["number"], volume["type"]) for volume in backed.volumes("mbr")]
    assert told == [(1, "fat"), (5, "ntfs"), (6, "ext2")]


@pytest.mark.parametrize("kind", UNIX)
def test_ls_tells_of_every_file_what_the_original_says(backed: Backed, kind: str) -> None:
    ran = backed.files(kind, "ls", "-r", "/", "--json").succeeded()
    told = {entry["path"]: entry for entry in ran.named("entry")}
    names = backed.tree.rglob("*")
    wanted = {f"/{name.relative_to(backed.tree)}": os.lstat(name) for name in names}
    extra = {"/lost+found"} if kind != "xfs" else {"/unwritten"}
    assert told.keys() == wanted.keys() | extra
    assert ran.result["entries"] == len(told)
    for path, found in wanted.items():
        entry = told[path]
        assert entry["mode"] == stat.S_IMODE(found.st_mode), path
        assert (entry["uid"], entry["gid"]) == (found.st_uid, found.st_gid)
        if entry["type"] != "folder":
            assert entry["size"] == found.st_size, path
        # mke2fs -d copies whole seconds.
        unit = 1 if kind == "xfs" else 10**9
        assert entry["mtime"] // unit == found.st_mtime_ns // unit, path
        link = os.readlink(backed.tree / path[1:]) if stat.S_ISLNK(found.st_mode) else None
        assert entry["target"] == link
    assert told["/pipe"]["type"] == "pipe"


def test_ls_for_people_escapes_what_a_terminal_would_obey(backed: Backed) -> None:
    shown = backed.files("ext4", "ls", "-l", "/").succeeded().out
    assert "/new\\x0aline\n" in shown
    assert "/bad\\xff\n" in shown
    assert "-rwsr-xr-x         0/0            1 2001-09-09 01:46:40 /one\n" in shown
    assert "/short -> one\n" in shown
    plain = backed.files("ext4", "ls", "/a").succeeded().out
    assert plain == "/a/b\n"
    assert backed.files("ext4", "ls", "/a/b/c/deep", "/empty").succeeded().out.count("\n") == 2
    drawn = backed.files("ext4", "ls").succeeded().out
    assert " ext4 " in drawn
    assert " label " in drawn


def test_a_path_that_leads_nowhere(backed: Backed) -> None:
    backed.files("ext4", "ls", "/a/x/y", "--json").failed(2, "/a has no x")
    backed.files("ext4", "ls", "-l").failed(2, "PATH")
    backed.files("vdz", "ls").failed(2, "has no disk vdz")
    with _looking((backed.store.parent / "ext4").read_bytes()) as (files, volume):
        for path, text in (
            ("/short/x", "/short is a link to one"),
            ("/a/../one", "cannot contain"),
        ):
            with pytest.raises(fleece.UsageError, match=text):
                files.find(volume, path)
        with pytest.raises(fleece.UsageError, match="/ has no A"):
            files.find(volume, "/A")
    with _looking((backed.store.parent / "ntfs").read_bytes()) as (files, volume):
        assert files.find(volume, "/A/B/c/DEEP").path == "/a/b/c/deep"


# ---- what is copied --------------------------------------------------------------------------


def _copied(backed: Backed, disk: str, into: Path, *words: object) -> Ran:
    into.mkdir()
    return backed.files(disk, "cp", "/", into, *words, "--json").succeeded()


def _differences(one: Path, other: Path) -> set[str]:
    """What diff says; it follows no links."""
    words = ["diff", "-r", "--no-dereference", str(one), str(other)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, errors="replace")
    return set(done.stdout.splitlines())


@pytest.mark.parametrize("kind", UNIX)
def test_all_of_a_file_system_is_what_it_is_a_copy_of(
    backed: Backed, kind: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = _copied(backed, kind, out)
    extra = ["lost+found"] if kind != "xfs" else ["unwritten"]
    expected = {f"Only in {out}: {name}" for name in extra}
    assert _differences(out, backed.tree) == expected | {f"Only in {backed.tree}: pipe"}
    wanted = made.hashes(backed.tree)
    found = made.hashes(out)
    assert {name: found[name] for name in wanted} == wanted
    assert ran.result["skipped"] == 1
    assert [event["what"] for event in ran.named("warning")] == ["/pipe is a pipe; skipped"]
    assert ran.result["files"] == len(found)
    # Set-id bits are not copied; holes stay holes.
    assert stat.S_IMODE((out / "one").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "middle").stat().st_mode) == 0o600
    assert (out / "holes").stat().st_blocks * 512 < 100_000
    assert (out / "a").stat().st_mtime_ns // 10**9 == (
        backed.tree / "a"
    ).stat().st_mtime_ns // 10**9
    assert not list(tmp_path.rglob("*.partial"))


def test_space_that_was_never_written_is_zeros(backed: Backed, tmp_path: Path) -> None:
    """dissect.xfs alone gives what was there before."""
    _copied(backed, "xfs", tmp_path / "out")
    expected = bytearray(3 * MIB)
    expected[MIB : MIB + 4096] = b"\x42" * 4096
    assert (tmp_path / "out/unwritten").read_bytes() == expected


@pytest.mark.parametrize("kind", ["ntfs", "fat"])
def test_all_of_a_file_system_of_windows(backed: Backed, kind: str, tmp_path: Path) -> None:
    _copied(backed, kind, tmp_path / "out")
    found = made.hashes(tmp_path / "out")
    strange = {"./hard", "./new\nline", "./bad\udcff"}
    wanted = {
        name: value for name, value in made.hashes(backed.tree).items() if name not in strange
    }
    if kind == "ntfs":
        wanted["./packed/text"] = "f" * 64
        text = (tmp_path / "out/packed/text").read_bytes()
        assert text == b"compress me, " * 40_000
        wanted["./packed/text"] = found["./packed/text"]
        wanted["./unwritten"] = found["./unwritten"]
        unwritten = (tmp_path / "out/unwritten").read_bytes()
        assert unwritten == (b"B" * 5000).ljust(1_000_000, b"\0")
    assert found == wanted
    written = (tmp_path / "out/large").stat().st_mtime_ns // 2 // 10**9
    assert abs(written - (backed.tree / "large").stat().st_mtime_ns // 2 // 10**9) < 3600


def test_files_out_of_partitions_and_logical_volumes(backed: Backed, tmp_path: Path) -> None:
    wanted = made.hashes(backed.tree)
    for number, (disk, volume) in enumerate(
        [("gpt", "boot part"), ("gpt", "group/root"), ("mbr", "6")]
    ):
        _copied(backed, disk, tmp_path / str(number), "--volume", volume)
        assert made.hashes(tmp_path / str(number)) == wanted
    out = tmp_path / "full"
    _copied(backed, "gpt", out, "--volume", "full")
    last = (out / "last").read_bytes()
    assert last == LAST[: len(last)]
    assert len(last) > LAST_SIZE - 64 * 1024


def test_cp_follows_the_rules_of_cp(backed: Backed, tmp_path: Path) -> None:
    def cp(*words: object) -> Ran:
        return backed.files("ext4", "cp", *words, "--json")

    cp("/a/b", tmp_path / "new").succeeded()
    assert (tmp_path / "new/c/deep").read_text() == "deep"
    cp("/a/b", tmp_path).succeeded()
    assert (tmp_path / "b/c/deep").read_text() == "deep"
    cp("/one", "/small", "/short", tmp_path).succeeded()
    assert os.readlink(tmp_path / "short") == "one"
    cp("/one", "/small", tmp_path / "none").failed(2, "several paths")
    cp("/one", tmp_path / "none/x").failed(7, "folder does not exist")
    cp("/one", tmp_path / ("n" * 256)).failed(7, "File name too long")
    cp("/one", tmp_path / ("n" * 256) / "x").failed(7, "File name too long")
    cp("/none", tmp_path / "x").failed(2, "/ has no none")
    ran = cp("/small", tmp_path / "other", "--force").succeeded()
    assert ran.result["bytes"] == 100
    assert ran.named("copied") == [
        {"event": "copied", "path": "/small", "type": "file", "size": 100}
    ]


def _twins(folder: Path) -> Path:
    """A store of a disk on which names are alike."""
    for place, name in (("a", "name"), ("b", "name"), ("c", "NAME"), ("d", "other")):
        (folder / "tree" / place / "inner").mkdir(parents=True)
        (folder / "tree" / place / name).write_text(place)
        (folder / "tree" / place / "inner" / name).write_text(place)
    guest = Guest(folder / "store")
    image = made.ext(folder / "image", 2 * MIB, folder / "tree")
    guest.holding({"vda": image.read_bytes()})
    return guest.store


def _copied_twins(store: Path, out: Path, *paths: str) -> Ran:
    return INTACT.run("files", store, "latest", "vda", "cp", *paths, out, "--force", "--json")


def test_a_file_that_was_made_just_now_is_not_replaced(tmp_path: Path) -> None:
    store, out = _twins(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "name").write_text("old")
    ran = _copied_twins(store, out, "/a/name", "/b/name", "/c/NAME", "/d/other")
    ran.failed(5, "1 of what was asked for could not be copied")
    (problem,) = ran.named("problem")
    assert problem["where"] == str(out / "name")
    assert "has got this name just now" in problem["what"]
    assert (ran.result["files"], ran.result["failed"]) == (3, 1)
    found = {item.name: item.read_text() for item in out.iterdir()}
    assert found == {"name": "a", "NAME": "c", "other": "d"}
    _copied_twins(store, out, "/b/name").succeeded()
    assert (out / "name").read_text() == "b"


def test_folders_of_one_name_are_joined_and_no_file_of_them_is_lost(tmp_path: Path) -> None:
    store, out = _twins(tmp_path), tmp_path / "out"
    out.mkdir()
    ran = _copied_twins(store, out, "/a/inner", "/b/inner", "/d/inner").failed(5, "1 of what")
    assert ran.named("problem")[0]["where"] == str(out / "inner/name")
    found = {item.name: item.read_text() for item in (out / "inner").iterdir()}
    assert found == {"name": "a", "other": "d"}


def test_names_that_the_target_takes_for_one_are_told_apart(mounts: None, tmp_path: Path) -> None:
    store = _twins(tmp_path)
    with made.ignoring_case(tmp_path / "ntfs", 16 * MIB) as out:
        (out / "name").write_text("old")
        ran = _copied_twins(store, out, "/c/NAME", "/a/name", "/d/other").failed(5, "1 of what")
        assert ran.named("problem")[0]["where"] == str(out / "name")
        assert sorted(item.read_text() for item in out.iterdir()) == ["c", "d"]


def test_a_file_system_without_hard_links_takes_files(backed: Backed, tmp_path: Path) -> None:
    """ENOSYS is the answer of a FUSE file system that knows no link."""
    (tmp_path / "out").mkdir()
    calls = ["-e", "trace=link,linkat", "-e", "inject=link,linkat:error=ENOSYS"]
    trace = ["strace", "-f", "-qq", "-o", str(tmp_path / "trace"), *calls]
    words = ["files", str(backed.store), "latest", "ext4", "cp", "/one", str(tmp_path / "out")]
    subprocess.run([*trace, sys.executable, "-m", "fleece", *words], cwd=ROOT, check=True)
    assert "INJECTED" in (tmp_path / "trace").read_text()
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["one"]
    assert (tmp_path / "out" / "one").read_text() == "x"


def test_nothing_that_exists_is_overwritten(backed: Backed, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("precious")
    (tmp_path / "short").write_text("precious")
    (tmp_path / "small").mkdir()
    words = ("cp", "/one", tmp_path, "--json")
    backed.files("ext4", *words).failed(7, "one: exists already", "--force")
    assert (tmp_path / "one").read_text() == "precious"
    backed.files("ext4", *words, "--force").succeeded()
    assert (tmp_path / "one").read_text() == "x"
    backed.files("ext4", "cp", "/short", tmp_path).failed(7, "exists already")
    backed.files("ext4", "cp", "/short", tmp_path, "--force").succeeded()
    assert os.readlink(tmp_path / "short") == "one"
    backed.files("ext4", "cp", "/small", tmp_path, "--force").failed(7, "is a folder")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["one", "short", "small"]


def test_one_file_to_standard_output(backed: Backed) -> None:
    words = ["files", str(backed.store), "latest", "ext4", "cp", "/holes", "-"]
    command = [sys.executable, "-m", "fleece", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == (backed.tree / "holes").read_bytes()
    backed.files("ext4", "cp", "/a", "-").failed(2, "is a folder, not a file")
    backed.files("ext4", "cp", "/one", "/small", "-").failed(2, "takes one file")


# ---- what the library alone gets wrong -------------------------------------------------------


@contextmanager
def _looking(
    data: bytes, volume: str | None = None
) -> Iterator[tuple[fleece.PointFiles, fleece.Volume]]:
    """The files of a disk in memory, and one of its volumes."""
    with closing(Session(CancelToken())) as session:
        session.open(_Memory(data))
        files = fleece.PointFiles(session, "p", "m")
        yield files, files.volume(volume)


def test_the_last_short_name_of_a_folder_and_the_last_inode_are_seen(tmp_path: Path) -> None:
    """82 entries of 12 bytes and one of 16 fill a block of 1 KiB, and 96 inodes are in use."""
    folder = tmp_path / "tree/full"
    folder.mkdir(parents=True)
    names = {*(f"n{number:03}" for number in range(82)), "fives"}
    for name in names:
        (folder / name).touch()
    (tmp_path / "tree/last").touch()
    image = made.ext(tmp_path / "image", MIB, tmp_path / "tree", 2, "-b", "1024", "-N", "96")
    assert "Free inodes:              0" in run_checked("dumpe2fs", "-h", image)
    with _looking(image.read_bytes()) as (files, volume):
        full = files.find(volume, "/full")
        assert full.size == 1024
        assert {entry.name for entry in files.children(full)} == names
        assert max(entry.id for entry in files.walk(files.find(volume, "/"))) == 96


def test_lvm_metadata_that_wraps_around_is_read(backed: Backed) -> None:
    """The text begins 100 bytes before the end of its area and goes on behind the header."""
    data = bytearray((backed.store.parent / "gpt").read_bytes())
    header = data.index(b" LVM2 x[5A%r0N*>", data.index(b"LABELONE")) - 4
    size, offset, length = struct.unpack_from("<QQQ", data, header + 32)
    text = data[header + offset : header + offset + length]
    assert text.startswith(b"group {")
    end = header + size
    data[header + 512 : end] = bytes(size - 512)
    data[end - 100 : end] = text[:100]
    data[header + 512 : header + 412 + length] = text[100:]
    struct.pack_into("<Q", data, header + 40, size - 100)
    with _looking(bytes(data), "group/root") as (files, volume):
        assert files.find(volume, "/large").size == 1_500_000


def test_a_striped_logical_volume_is_refused(backed: Backed) -> None:
    """By the word of its metadata; the library would read the stripes one after the other."""
    data = (backed.store.parent / "gpt").read_bytes()
    assert data.count(b"stripe_count = 1") >= 2
    with (
        pytest.raises(fleece.FilesError, match="that is striped cannot be read"),
        _looking(data.replace(b"stripe_count = 1", b"stripe_count = 2"), "group/root"),
    ):
        pass


def test_clusters_that_go_backwards_are_not_taken_for_a_run(backed: Backed) -> None:
    """A FAT16 file of clusters n+1, n, n+2 instead of n, n+1, n+2, and its data likewise."""
    data = bytearray((backed.store.parent / "fat").read_bytes())
    content = (backed.tree / "middle").read_bytes()
    sector, each = int.from_bytes(data[11:13], "little"), data[13]
    first_fat = int.from_bytes(data[14:16], "little") * sector
    place, size = data.index(content[:512]), sector * each
    assert 2 * size < len(content) <= 3 * size
    entry = data.index(b"MIDDLE     ")
    cluster = int.from_bytes(data[entry + 26 : entry + 28], "little")

    def next_of(number: int, after: int) -> None:
        at = first_fat + 2 * number
        data[at : at + 2] = after.to_bytes(2, "little")

    one, two = data[place : place + size], data[place + size : place + 2 * size]
    data[place : place + 2 * size] = two + one
    data[entry + 26 : entry + 28] = (cluster + 1).to_bytes(2, "little")
    next_of(cluster + 1, cluster)
    next_of(cluster, cluster + 2)
    with _looking(bytes(data)) as (files, volume):
        found = b"".join(part for _, part in files.pieces(files.find(volume, "/middle")))
    assert found == content


# ---- deep chains and damage ------------------------------------------------------------------


@pytest.fixture
def deep(mounts: None, tmp_path: Path) -> tuple[Guest, list[dict[str, str]]]:
    """A disk with an ext4 that changes from point to point, and its files' hashes at each."""
    (tmp_path / "tree").mkdir()
    image = made.ext(tmp_path / "image", 4 * MIB, tmp_path / "tree", 4, "-b", "1024")
    guest, states = Guest(tmp_path / "store"), []
    chance = random.Random(3)
    for number in range(12):
        with made.mounted(image) as folder:
            (folder / f"new-{number}").write_bytes(chance.randbytes(50_000))
            with (folder / "grows").open("ab") as file:
                file.write(chance.randbytes(20_000))
            if number > 3:
                (folder / f"new-{number - 3}").unlink()
            states.append(made.hashes(folder))
        if number == 0:
            guest.holding({"vda": image.read_bytes()})
        else:
            guest.become(vda=image.read_bytes())
    return guest, states


def test_files_out_of_every_point_of_a_deep_chain(
    deep: tuple[Guest, list[dict[str, str]]], tmp_path: Path
) -> None:
    guest, states = deep
    for number in (0, 5, 11):
        out = tmp_path / f"out-{number}"
        out.mkdir()
        words = ("files", guest.store, guest.points[number], "vda", "cp", "/", out)
        INTACT.run(*words).succeeded()
        assert made.hashes(out) == states[number]


def _harm(guest: Guest, place: int) -> None:
    """Change a byte of the record that holds this byte of the newest point."""
    with OpenChain([*reversed(guest.paths["vda"])]) as chain:
        leaf = place // LEAF * LEAF
        picture = chain.map(leaf, leaf + LEAF)
        (row,) = picture.records
        owner = int(picture.owner[0])
        size = chain.deltas[owner].read_at(int(row["position"]), 8)
    frame = int(row["position"]) + 8 + int.from_bytes(size[4:8], "little")
    flip(guest.paths["vda"][-1 - owner], frame + int(row["frame_length"]) - 1)


@pytest.fixture
def harmed(tmp_path: Path) -> tuple[Guest, bytes]:
    """An ext4 with the files `hurt` and `sound`; a byte in the middle of `hurt` is damaged."""
    (tmp_path / "tree/folder").mkdir(parents=True)
    hurt = random.Random(1).randbytes(200_000)
    (tmp_path / "tree/folder/hurt").write_bytes(hurt)
    (tmp_path / "tree/folder/sound").write_bytes(hurt[::-1])
    image = made.ext(tmp_path / "image", 2 * MIB, tmp_path / "tree", 4, "-b", "1024")
    data = image.read_bytes()
    guest = Guest(tmp_path / "store")
    guest.holding({"vda": data})
    _harm(guest, data.index(hurt[100_000:100_512]))
    return guest, hurt


def test_damage_fails_the_file_that_meets_it_and_no_other(
    harmed: tuple[Guest, bytes], tmp_path: Path
) -> None:
    guest, hurt = harmed
    (tmp_path / "out").mkdir()
    words = ("files", guest.store, "latest", "vda")
    ran = INTACT.run(*words, "cp", "/folder", tmp_path / "out", "--json")
    ran.failed(5, "1 of what was asked for could not be copied")
    (problem,) = ran.named("problem")
    assert "/folder/hurt" in problem["what"]
    assert (ran.result["failed"], ran.result["files"]) == (1, 1)
    assert [item.name for item in (tmp_path / "out/folder").iterdir()] == ["sound"]
    assert (tmp_path / "out/folder/sound").read_bytes() == hurt[::-1]
    command = [sys.executable, "-m", "fleece", *map(str, words), "cp", "/folder/hurt", "-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 5
    assert hurt.startswith(done.stdout)
    INTACT.run(*words, "ls", "-r", "/").succeeded()


def test_damage_that_the_library_passes_over_is_an_error(tmp_path: Path) -> None:
    """It takes a partition table that cannot be read for none."""
    (tmp_path / "tree").mkdir()
    image = made.ext(tmp_path / "image", MIB, tmp_path / "tree")
    made.partitioned(tmp_path / "disk", "gpt", [made.Slot(MIB, image=image)])
    data = (tmp_path / "disk").read_bytes()
    guest = Guest(tmp_path / "store")
    guest.holding({"vda": data})
    words = ("files", guest.store, "latest", "vda", "ls")
    INTACT.run(*words, "/").succeeded()
    _harm(guest, 0)
    INTACT.run(*words, "--json").failed(5, "the partition table", "does not match its hash")


@pytest.mark.parametrize("what", ["names", "inodes"])
def test_damage_under_a_folder_is_told_and_the_rest_is_listed(what: str, tmp_path: Path) -> None:
    for name, count in (("a", 9), ("z", 700)):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / f"tree/{name}/{name}-{number}").touch()
    image = made.ext(tmp_path / "image", 2 * MIB, tmp_path / "tree", 4, "-b", "1024", "-N", "1024")
    data = image.read_bytes()
    told = run_checked("debugfs", "-R", "ls -p /z", image)
    newest = max(int(found) for found in re.findall(r"^/(\d+)/100", told, re.MULTILINE))
    place = data.index(b"z-7")
    if what == "inodes":
        told = run_checked("debugfs", "-R", f"imap <{newest}>", image)
        block, offset = re.findall(r"block (\d+), offset (0x[0-9a-f]+)", told)[0]
        place = int(block) * 1024 + int(offset, 16)
    guest = Guest(tmp_path / "store")
    guest.holding({"vda": data})
    _harm(guest, place)
    ran = INTACT.run("files", guest.store, "latest", "vda", "ls", "-r", "/", "--json")
    ran.failed(5, "problems")
    problems = [event["what"] for event in ran.named("problem")]
    assert problems
    assert all("does not match its hash" in problem for problem in problems)
    seen = {entry["path"] for entry in ran.named("entry")}
    assert {"/a", "/z"} <= seen
    found = len([path for path in seen if path.startswith("/z/")])
    # The reader asks for 64 KiB at a time: that many inodes are not told.
    assert found == 0 if what == "names" else 700 - 256 <= found < 700


# ---- what a hostile guest can put on its disk ------------------------------------------------


def _hostile(folder: Path, *commands: str, edit: tuple[bytes, bytes] | None = None) -> bytes:
    """An ext4 with `file`, changed by debugfs, then one word of it by another."""
    (folder / "tree/inner").mkdir(parents=True)
    (folder / "tree/file").write_bytes(b"harmless")
    (folder / "tree/name-to-change").write_bytes(b"harm")
    options = ("-b", "1024", "-O", "^metadata_csum")
    image = made.ext(folder / "image", MIB, folder / "tree", 4, *options)
    made.debugfs(image, *commands)
    data = image.read_bytes()
    if edit is not None:
        assert len(edit[0]) == len(edit[1])
        assert data.count(edit[0]) == 1
        data = data.replace(*edit)
    return data


def _cp_all(data: bytes, out: Path, *, force: bool = False) -> list[str]:
    """Copy all of it; gives the problems."""
    out.mkdir(exist_ok=True)
    heard: list[Event] = []
    with _looking(data) as (files, volume):
        result = fleece.copy_files(files, volume, ["/"], out, force=force, listener=heard.append)
    problems = [event.what for event in heard if isinstance(event, Problem)]
    assert result.failed == len(problems)
    return problems


def _ls_all(data: bytes) -> tuple[set[str], list[Event]]:
    heard: list[Event] = []
    with _looking(data) as (files, volume):
        walk = files.walk(files.find(volume, "/"), heard.append)
        return {entry.path for entry in walk}, heard


def _all_below(folder: Path) -> set[str]:
    return {str(item.relative_to(folder)) for item in folder.rglob("*")}


@pytest.mark.parametrize("name", [b"../../escaped!", b"..\0e-to-change"])
def test_a_name_with_slashes_or_nul_is_refused(name: bytes, tmp_path: Path) -> None:
    data = _hostile(tmp_path, edit=(b"name-to-change", name))
    before = _all_below(tmp_path)
    (problem,) = _cp_all(data, tmp_path / "out")
    assert "not a valid file name" in problem
    assert _all_below(tmp_path / "out") == {"file", "inner", "lost+found"}
    assert _all_below(tmp_path) - before == {"out", "out/file", "out/inner", "out/lost+found"}
    told, problems = _ls_all(data)
    assert told == {"/file", "/inner", "/lost+found"}
    assert len(problems) == 1


def test_a_hostile_name_is_told_by_the_command_line(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "store")
    guest.holding({"vda": _hostile(tmp_path, edit=(b"name-to-change", b"../eee\x1b[2J\x1b[1m"))})
    words = ("files", guest.store, "latest", "vda")
    ran = INTACT.run(*words, "ls", "/").failed(5, "1 problem in the file system")
    assert "../eee\\x1b[2J\\x1b[1m: this is not a valid file name" in ran.err
    assert "\x1b" not in ran.out + ran.err
    ran = INTACT.run(*words, "cp", "/", tmp_path, "--json").failed(5, "could not be copied")
    assert (ran.result["failed"], ran.result["files"]) == (1, 1)


def test_a_link_and_then_a_folder_of_its_name_lead_nowhere(tmp_path: Path) -> None:
    """`evil` is a link out of the target; `evil/passwd` must not be written through it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    data = _hostile(
        tmp_path,
        f"symlink evil {outside}",
        "write /etc/hostname inner/passwd",
        "link inner evi2",
        edit=(b"evi2", b"evil"),
    )
    (problem,) = _cp_all(data, tmp_path / "out", force=True)
    assert "twice" in problem
    assert os.readlink(tmp_path / "out/evil") == str(outside)
    assert [*outside.iterdir()] == []


@pytest.mark.parametrize("force", [False, True])
def test_a_link_that_is_in_the_target_is_not_followed(force: bool, tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    for folder in (outside, out):
        folder.mkdir()
    (outside / "file").write_text("precious")
    data = _hostile(tmp_path, "write /etc/hostname inner/passwd")
    (out / "inner").symlink_to(outside)
    with pytest.raises(fleece.TargetError, match="inner: exists and is not a folder"):
        _cp_all(data, out, force=force)
    (out / "inner").unlink()
    (out / "file").unlink(missing_ok=True)
    (out / "file").symlink_to(outside / "file")
    if force:
        assert _cp_all(data, out, force=True) == []
        assert (out / "file").read_text() == "harmless"
    else:
        with pytest.raises(fleece.TargetError, match="file: exists already"):
            _cp_all(data, out)
    assert (outside / "file").read_text() == "precious"
    assert _all_below(outside) == {"file"}


def test_a_folder_that_lies_in_itself_ends(tmp_path: Path) -> None:
    data = _hostile(tmp_path, "link <2> inner/loop")
    (problem,) = _cp_all(data, tmp_path / "out")
    assert "lies in itself" in problem
    told, problems = _ls_all(data)
    assert len(told) < 20
    assert len(problems) == 1


@pytest.mark.parametrize("size", ["0x7fffffffffffffff", "0x100000000000000"])
def test_an_absurd_size_is_an_error(size: str, tmp_path: Path) -> None:
    data = _hostile(tmp_path, f"set_inode_field file size {size}")
    (problem,) = _cp_all(data, tmp_path / "out")
    assert "bytes: damaged" in problem
    assert not (tmp_path / "out/file").exists()
    with _looking(data) as (files, volume), pytest.raises(fleece.FilesError, match="damaged"):
        fleece.copy_stream(files, files.find(volume, "/file"), io.BytesIO())


def test_a_file_whose_data_is_outside_of_the_volume_is_an_error(tmp_path: Path) -> None:
    data = _hostile(tmp_path, "set_inode_field file block[5] 0x7fffff00")
    (problem,) = _cp_all(data, tmp_path / "out")
    assert "outside of its volume" in problem
    assert not (tmp_path / "out/file").exists()


def test_a_time_that_no_file_can_have_is_no_crash(backed: Backed, tmp_path: Path) -> None:
    """NTFS: a time in the year 30828 of its own, written over that of one file."""
    data = bytearray((backed.store.parent / "ntfs").read_bytes())
    written = (backed.tree / "large").stat().st_mtime_ns // 100 + 116_444_736_000_000_000
    places = [m.start() for m in re.finditer(re.escape(written.to_bytes(8, "little")), data)]
    assert places
    for place in places:
        data[place : place + 8] = (2**63 - 1).to_bytes(8, "little")
    with _looking(bytes(data)) as (files, volume):
        assert files.find(volume, "/large").mtime is not None
        result = fleece.copy_files(files, volume, ["/large"], tmp_path)
    assert result.files == 1


def _repeated(folder: Path, blocks: int) -> bytes:
    """An ext2 whose folder /evil has one block with 200 names, again and again, by pointers."""
    names = folder / "tree/evil"
    names.mkdir(parents=True)
    for number in range(200):
        (names / f"name-{number:03}").touch()
    (folder / "tree/file").write_bytes(b"harmless")
    image = made.ext(folder / "image", 16 * MIB, folder / "tree", 2, "-b", "4096")
    held = int(run_checked("debugfs", "-R", "bmap /evil 0", image))
    lists = [held]
    for _ in range(2):
        free = int(run_checked("debugfs", "-R", "ffb", image).split()[-1])
        made.debugfs(image, f"setb {free}")
        made.write_at(image, free * 4096, struct.pack("<I", lists[-1]) * 1024)
        lists.append(free)
    direct = [f"set_inode_field /evil block[{n}] {held}" for n in range(12)]
    tables = [f"set_inode_field /evil block[IND] {lists[1]}"]
    tables.append(f"set_inode_field /evil block[DIND] {lists[2]}")
    made.debugfs(image, *direct, *tables, f"set_inode_field /evil size {blocks * 4096}")
    return image.read_bytes()


def test_a_folder_that_is_larger_than_its_volume_is_an_error(tmp_path: Path) -> None:
    told, problems = _ls_all(_repeated(tmp_path, 1 << 20))
    assert told == {"/evil", "/file", "/lost+found"}
    (problem,) = problems
    assert isinstance(problem, Problem)
    assert "a folder of 4294967296 bytes" in problem.what


def test_a_folder_of_ntfs_that_is_larger_than_its_volume_is_an_error(backed: Backed) -> None:
    """The sizes of the index of `many`, in its attribute's header (ntfs.h of Linux)."""
    data = bytearray((backed.store.parent / "ntfs").read_bytes())
    header, changed = re.compile(rb"\xa0\0\0\0.{4}\x01\x04\x40\0", re.DOTALL), 0
    for found in header.finditer(bytes(data)):
        record = found.start() // 1024 * 1024
        number = int.from_bytes(data[record + 44 : record + 48], "little")
        # The root, 5, has the name in its index. The log may hold a copy of the record.
        if number != 5 and "many".encode("utf-16-le") in data[record : record + 1024]:
            struct.pack_into("<QQQ", data, found.start() + 40, *[1 << 50] * 3)
            changed += 1
    assert changed
    _, problems = _ls_all(bytes(data))
    (problem,) = problems
    assert isinstance(problem, Problem)
    assert "/many" in problem.where
    assert "a folder of 1125899906842624 bytes" in problem.what


def test_a_folder_of_too_many_bad_entries_is_given_up_and_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4096 blocks, as many as the volume has, with 200 names each."""
    monkeypatch.setattr("fleece.files.point._MOST_PROBLEMS", 1 << 11)
    data = _repeated(tmp_path, 4096)
    told, problems = _ls_all(data)
    assert told == {"/evil", "/file", "/lost+found"}
    *twice, last = [event for event in problems if isinstance(event, Problem)]
    assert len(twice) == (1 << 11) + 1
    assert {event.what for event in twice} == {"the folder has this name twice"}
    assert "2048 entries that cannot be read; it is given up" in last.what
    *_, last_of_all = _cp_all(data, tmp_path / "out")
    assert last_of_all == last.what
    assert _all_below(tmp_path / "out") == {"evil", "file", "lost+found"}


class _Memory:
    """A disk in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.where = "disk m"

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def _look_at_all(data: bytes) -> int:
    """Walk a disk and read all of its files; gives the problems."""
    heard: list[Event] = []
    session = Session(CancelToken())
    try:
        session.open(_Memory(data))
        files = fleece.PointFiles(session, "p", "m")
        for volume in files.volumes:
            if volume.obstacle is not None:
                heard.append(Problem("", volume.obstacle))
            else:
                for entry in files.walk(files.find(volume, "/"), heard.append):
                    if entry.kind is fleece.FileKind.FILE and entry.size < 1 << 30:
                        for _ in files.pieces(entry):
                            pass
    except StoreError:
        return 1
    finally:
        session.close()
    return sum(isinstance(event, Problem) for event in heard)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "ntfs", "fat"])
def test_random_garbage_in_a_file_system_ends_as_an_error_or_not_at_all(
    backed: Backed, kind: str
) -> None:
    data = (backed.store.parent / kind).read_bytes()
    assert _look_at_all(data) == 0
    chance, met = random.Random(kind), 0
    used = [at for at in range(0, len(data), 4096) if any(data[at : at + 4096])]
    for _ in range(4):
        broken = bytearray(data)
        for at in [*used[:8], *chance.sample(used, len(used) // 3)]:
            for _ in range(16):
                broken[at + chance.randrange(4096)] = chance.choice((0, 1, 255, 128))
        met += _look_at_all(bytes(broken)) > 0
    assert met > 0


def test_a_chain_of_clusters_in_a_circle_ends(backed: Backed) -> None:
    """FAT16: every cluster's successor is cluster 3."""
    data = bytearray((backed.store.parent / "fat").read_bytes())
    reserved = int.from_bytes(data[14:16], "little") * 512
    length = int.from_bytes(data[22:24], "little") * 512
    data[reserved + 4 : reserved + length] = b"\x03\x00" * ((length - 4) // 2)
    assert _look_at_all(bytes(data)) > 0


# ---- being stopped ---------------------------------------------------------------------------


def test_a_copy_that_is_cancelled_leaves_whole_files_alone(backed: Backed, tmp_path: Path) -> None:
    cancel, copied, before = CancelToken(), [], children(os.getpid())

    def hear(event: Event) -> None:
        if isinstance(event, Copied) and event.type == "file":
            copied.append(event.path)
        if len(copied) == 5:
            cancel.cancel()

    store = fleece.open_store(backed.store)
    with fleece.open_files(store, "latest", "ext4", cancel=cancel) as files:
        volume = files.volume()
        with pytest.raises(fleece.Interrupted):
            fleece.copy_files(files, volume, ["/"], tmp_path, listener=hear, cancel=cancel)
    found = made.hashes(tmp_path)
    assert found.keys() == {f".{path}" for path in copied}
    wanted = made.hashes(backed.tree)
    assert {name: wanted[name] for name in found} == found
    assert children(os.getpid()) == before


def test_a_folder_that_streams_without_a_pause_is_cancelled_at_once(tmp_path: Path) -> None:
    """All of it is in blocks that the reader keeps: it wants none of the disk."""
    cancel, heard = CancelToken(), itertools.count(1)
    with closing(Session(cancel)) as session:
        session.open(_Memory(_repeated(tmp_path, 4096)))
        files = fleece.PointFiles(session, "p", "m")
        folder = files.find(files.volume(), "/evil")

        def hear(event: Event) -> None:
            if next(heard) == 1000:
                cancel.cancel()

        with pytest.raises(fleece.Interrupted):
            files.children(folder, hear)
    assert next(heard) == 1001


# ---- without the library ---------------------------------------------------------------------


def test_without_the_library_it_says_what_to_install(backed: Backed, tmp_path: Path) -> None:
    (tmp_path / "dissect").mkdir()
    (tmp_path / "dissect/__init__.py").write_text("raise ImportError('not here')\n")
    script = (
        "import os, sys; os.environ['PYTHONPATH'] = sys.argv.pop(1) + ':' + "
        "os.environ['PYTHONPATH']; from fleece.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = (tmp_path, "files", backed.store, "latest", "ext4", "ls")
    INTACT.script(script, *words).wait().failed(2, "not installed", "fleece-backup[files]")


def test_the_library_is_in_no_process_of_ours() -> None:
    """The licences of the two meet in the reader alone."""
    script = (
        "import fleece.api, fleece.cli.files, sys; "
        "print([name for name in sys.modules if name.startswith('dissect')])"
    )
    assert INTACT.script(script).wait().succeeded().out == "[]\n"
