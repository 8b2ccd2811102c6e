"""A real QEMU backed up into a bucket of a real object store, by the commands that users type."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import pytest

import fleece
from tests.engine.cloud import Cloud, clouded
from tests.engine.matrix import IN_PARTS, matrix
from tests.engine.scene import GUEST, INTACT, MIB, Scene
from tests.rig.s3 import HOST, HOST_SECRET, SeaweedFs, environment_at


def test_a_life_in_a_bucket(cloud: Cloud) -> None:
    """Full and incrementals, then the verbs that need nothing but the store."""
    points = []
    for number in range(3):
        cloud.change(number * MIB)
        done = cloud.backup().succeeded().result
        assert done["disks"][0]["mode"] == ("full" if number == 0 else "incremental")
        points.append(done["point"])
    cloud.check_exact()
    first, second, third = points
    listed = cloud.run("list").succeeded().named("point")
    assert [row["point"] for row in listed] == points
    assert listed[0]["path"].startswith(f"{cloud.address}/{GUEST}/data/")
    assert not fleece.verify_store(cloud.opened().catalogue(), record=True).errors
    found = fleece.status(cloud.opened().catalogue())
    assert (found.guests[0].unverified, found.problems, found.foreign) == (0, (), ())
    fleece.set_pin(cloud.opened(), first)
    assert cloud.run("prune", "--keep-last", "1").succeeded().result["removed"] == 0
    pruned = cloud.run("prune", "--keep-last", "1", "--merge", "always").succeeded().result
    assert (pruned["kept"], pruned["removed"]) == (2, 1)
    fleece.set_pin(cloud.opened(), first, pinned=False)
    fleece.prune(cloud.opened(), fleece.KeepRules(last=1), merging=True)
    assert [point.id for point in cloud.opened().catalogue().points] == [third]
    cloud.nothing_left()
    assert second not in " ".join(cloud.objects())
    cloud.verify()
    cloud.check_exact()


STEPS = (
    "before PUT-PutObject 2",
    "after PUT-PutObject 2",
    "before PUT-PutObject 4",
    "after PUT-PutObject 3",
)
"""Of an incremental backup of two disks: probe (refused), two deltas and the change are put."""


def test_killed_at_steps_of_a_backup_into_a_bucket(tmp_path: Path, server: SeaweedFs) -> None:
    """The next backup is incremental and exact, and leaves nothing of the one before."""
    where = functools.partial(clouded, server)
    with matrix(tmp_path, seed=22, where=where, shape=IN_PARTS) as here:
        here.way = "--mode", "full"
        assert here.only_hit("SIGKILL", "after PUT-PutObject 3").code == -9
        assert here.counts.begun > 0
        here.way = ()
        here.backup()
        steps = here.steps()
        assert set(STEPS) <= {*steps}
        for step in STEPS:
            ran = here.hit("SIGKILL", step)
            assert ran.code == -9, f"{step}: {ran}"
        stopped = here.only_hit("SIGTERM", STEPS[1])
        assert stopped.code == 130, stopped
        here.scene.nothing_left()
    assert here.counts.resumed == 0


def test_an_encrypted_bucket_is_audited_and_takes_points_from_a_stream(
    cloud: Cloud, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    secret = "--key-file", key
    first, second = (f"{cloud.address.removesuffix('/first')}/{name}" for name in ("a", "b"))
    INTACT.run("init", first, "--encrypt", *secret).succeeded()
    INTACT.run("init", second, "--like", first, *secret).succeeded()
    here = "--guest", GUEST, "--scratch", cloud.scratch
    for place in (0, MIB):
        cloud.change(place)
        INTACT.run("backup", cloud.source, first, *here, *secret).succeeded()
        INTACT.run("audit", cloud.source, first, *here, *secret).succeeded()
    INTACT.run("list", first).failed(2, "key")
    store = fleece.open_store(first, fleece.Secret.of_key_file(key))
    for entry in (point.disks["d0"] for point in store.catalogue().points):
        blob = store.backend.open(entry.key)
        stream = io.BytesIO(blob.read_at(0, entry.stored_bytes)).read
        blob.close()
        fleece.import_delta(fleece.open_store(second, fleece.Secret.of_key_file(key)), stream)
    INTACT.run("verify", second, *secret).succeeded()
    target = tmp_path / "back.raw"
    INTACT.run("restore", second, "latest", "d0", target, *secret).succeeded()
    cloud.same_as_live("d0", target)


def test_a_host_that_may_delete_nothing_backs_up_into_a_locked_store(
    pair: Scene, tmp_path: Path, server: SeaweedFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the policy that the howto gives; what an interrupted backup left is a warning."""
    cloud = Cloud(pair.qemu, tmp_path, INTACT)
    cloud.bucket = server.bucket("backups", locked=True)
    INTACT.run("init", cloud.address, "--lock-days", "7").succeeded()
    with monkeypatch.context() as patch:
        for name, text in environment_at(server.port, HOST, HOST_SECRET).items():
            patch.setenv(name, text)
        assert cloud.backup().succeeded().named("warning") == []
        left = f"vms/first/{GUEST}/data/aa.0000000000.11111111.0000000000000000/d0.fleece"
        cloud.bucket.put(left, b"a part of a point")
        cloud.change(0)
        ran = cloud.backup().succeeded()
        assert ran.result["mode"] == "incremental"
        assert "what an interrupted backup left in the store cannot be removed" in ran.out
        cloud.run("prune", "--keep-last", "1").failed(5, "right s3:DeleteObject")
        cloud.run("status").failed(5)
    cloud.check_exact()
    (first, _) = cloud.run("prune", "--keep-last", "1").succeeded().named("pruned")
    assert first["reasons"][0].startswith("locked until")
    assert left not in cloud.objects()
    cloud.run("status").succeeded()
