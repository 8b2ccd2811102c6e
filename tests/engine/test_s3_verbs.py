"""Each verb that reads points, or rewrites them, once on a bucket; test_s3.py has the others."""

from __future__ import annotations

from pathlib import Path

import pytest

import fleece
from fleece.store.s3.client.bucket import Bucket
from tests.engine.history import Guest
from tests.engine.scene import INTACT, Json, flip
from tests.engine.test_boot import bootable
from tests.engine.test_serve import command
from tests.rig import filesystems
from tests.rig.process import LIMIT, run_checked
from tests.rig.s3 import SeaweedFs
from tests.unit.kit import LEAF

MIB = 1 << 20
SYSTEM, FILES = "system", "vda"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """A disk that boots, and one with files, of which one point has more than the other."""
    folder = tmp_path_factory.mktemp("guest")
    made = Guest(folder / "store")
    tree = folder / "tree"
    tree.mkdir()
    contents = []
    for word in "one", "two", "three":
        (tree / word).write_text(word)
        contents.append(filesystems.ext(folder / word, MIB, tree).read_bytes())
    made.holding({SYSTEM: bootable(), FILES: contents[0]})
    for content in contents[1:]:
        made.become(**{FILES: content})
    return made


def test_every_verb_that_reads_points_reads_them_in_a_bucket(
    guest: Guest, server: SeaweedFs, tmp_path: Path
) -> None:
    bucket = server.bucket()
    place = f"s3://{bucket.address.bucket}/vms"
    store = fleece.init(place)
    fleece.copy(fleece.open_store(guest.store), store)
    first, second, last = guest.points
    shown = _said("map", place, "latest", FILES)
    assert all(point in shown for point in (first, last))
    old, new = (guest.disk(FILES, number) for number in (0, 2))
    places = range(0, MIB, LEAF)
    changed = LEAF * sum(old[at : at + LEAF] != new[at : at + LEAF] for at in places)
    told = INTACT.run("diff", place, first, last, "--json").succeeded().result
    assert told["changed_bytes"] == changed
    assert "6 deltas checked" in _said("verify", place, "--fraction", "1")
    assert _said("files", place, second, FILES, "ls", "/").split() == [
        "/lost+found",
        "/one",
        "/two",
    ]
    assert _said("files", place, second, FILES, "cp", "/two", "-") == "two"
    _served(guest, place, tmp_path)
    _booted(place)
    _damaged(guest, bucket, tmp_path)
    merged = INTACT.run("merge", place, last, "--json").succeeded().result
    assert merged["point"] == last
    assert "no damage in 1 point: 2 deltas" in _said("verify", place, last)


def test_verbs_that_mark_points_and_put_a_guest_back_do_so_in_a_bucket(
    guest: Guest, server: SeaweedFs, tmp_path: Path
) -> None:
    place = f"s3://{server.bucket().address.bucket}/vms"
    fleece.copy(fleece.open_store(guest.store), fleece.init(place))
    first, last = guest.points[0], guest.points[-1]

    def said(verb: str, *words: object) -> Json:
        return INTACT.run(verb, place, *words, "--json").succeeded().result

    assert said("pin", first)["pinned"]
    assert said("tag", last, "--add", "nightly")["tags"] == ["nightly"]
    rows = INTACT.run("list", place, "--tag", "nightly", "--json").succeeded().named("point")
    assert {row["point"] for row in rows} == {last}
    ran = INTACT.run("stats", place, "--keep-last", "1", "--json").succeeded()
    assert (ran.result["points"], ran.named("guest")[0]["freed_bytes"]) == (3, 0)
    assert not said("unpin", first)["pinned"]
    pruned = said("prune", "--keep-tag", "nightly", "--merge", "always")
    assert (pruned["kept"], pruned["removed"]) == (1, 2)
    said("restore-guest", last, tmp_path / "back", "--format", "raw")
    for disk in SYSTEM, FILES:
        assert (tmp_path / "back" / f"{disk}.raw").read_bytes() == guest.disk(disk)


def _said(*words: object) -> str:
    return INTACT.run(*words).succeeded().out


def _served(guest: Guest, place: str, folder: Path) -> None:
    """A disk is read by NBD, and written, which the store hears nothing of."""
    with command(place, "latest", "--disk", FILES, "--writable", "--scratch", folder) as served:
        (export,) = served.exports
        run_checked("qemu-img", "convert", "-O", "raw", export["uri"], folder / "served")
        assert (folder / "served").read_bytes() == guest.disk(FILES)
        run_checked("qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", export["uri"])


def _booted(place: str) -> None:
    machine = ("--emulated", "--memory", 64, "--disk", SYSTEM, "--timeout", LIMIT)
    ran = INTACT.run("boot-test", place, "latest", *machine, "--console-text", "BOOTED", "--json")
    assert ran.succeeded().result["sign"] == "console"


def _damaged(guest: Guest, bucket: Bucket, folder: Path) -> None:
    """What is left of a damaged delta is restored out of the bucket; salvage takes a copy of it."""
    place = f"s3://{bucket.address.bucket}/vms"
    entry = fleece.open_store(place).catalogue().points[0].disk(FILES)
    key = entry.where.removeprefix(f"s3://{bucket.address.bucket}/")
    whole = bucket.get(key).data
    damaged = folder / "damaged"
    damaged.write_bytes(whole)
    flip(damaged, len(whole) // 2)
    bucket.put(key, damaged.read_bytes())
    target = folder / "partial"
    partial = ("restore", place, "latest", FILES, target)
    INTACT.run(*partial).failed(5, "--partial restores what can still be proven")
    assert "lost" in _said(*partial, "--partial")
    INTACT.run("salvage", damaged, "-o", folder / "saved").succeeded()
    bucket.put(key, whole)
