"""`fleece copy`, run as its users run it, and judged by other programs than what copies."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fleece
from fleece.store.init import init, make
from fleece.store.marker import Marker
from fleece.store.s3.backend import S3Backend
from fleece.store.store import Store
from tests.engine.scene import MIB, ROOT, Ran, small_tmpfs
from tests.rig.process import LIMIT, run_checked
from tests.rig.s3 import SeaweedFs
from tests.unit.copies import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A store of five points of two disks, some 8 MiB each."""
    made = Site(init(tmp_path / "from"), disks=("vda", "vdb"), size=2 * MIB)
    for _ in range(5):
        made.back_up()
    return made


def _start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fleece", "copy", *map(str, words), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(started: subprocess.Popen[str]) -> Ran:
    out, err = started.communicate(timeout=LIMIT)
    return Ran(started.returncode, out, err)


def _copy(*words: object) -> Ran:
    return _end(_start(*words))


def _same(site: Site, target: Path) -> None:
    """All points are there, file by file, and verify."""
    run_checked("diff", "-r", "--exclude=.*", Path(site.store.where) / "web", target / "web")
    run_checked(sys.executable, "-m", "fleece", "verify", target, cwd=ROOT)


def test_another_program_restores_what_was_copied(site: Site, tmp_path: Path) -> None:
    init(tmp_path / "to")
    ran = _copy(tmp_path / "from", tmp_path / "to").succeeded()
    assert [point["point"] for point in ran.result["points"]] == [*site.true]
    assert [event["point"] for event in ran.named("arrived")] == [*site.true]
    _same(site, tmp_path / "to")
    for disk, content in site.live.items():
        deltas = sorted((tmp_path / "to").glob(f"web/*/{disk}.fleece"))
        run_checked(
            sys.executable, "-I", ROOT / "tools" / "read_delta.py", tmp_path / disk, *deltas
        )
        assert (tmp_path / disk).read_bytes() == content
    again = _copy(tmp_path / "from", tmp_path / "to").succeeded()
    assert (again.result["points"], again.result["had"]) == ([], 5)


def test_copies_that_are_killed_leave_whole_points_and_are_completed(
    site: Site, tmp_path: Path
) -> None:
    target, chance = init(tmp_path / "to"), random.Random(22)
    seen = 0
    for _ in range(6):
        started = _start(tmp_path / "from", tmp_path / "to", "--rate", "16M")
        time.sleep(chance.uniform(0.3, 1))
        started.kill()
        _end(started)
        there = site.judge(target)
        assert there == [*site.true][: len(there)]
        assert len(there) >= seen
        seen = len(there)
    _copy(tmp_path / "from", tmp_path / "to").succeeded()
    _same(site, tmp_path / "to")
    assert not [*(tmp_path / "to").glob("web/.partial*")]


def test_two_copies_at_once_send_each_point_once(site: Site, tmp_path: Path) -> None:
    init(tmp_path / "to")
    started = [_start(tmp_path / "from", tmp_path / "to") for _ in range(2)]
    ended = [_end(one).succeeded() for one in started]
    sent = [point["point"] for ran in ended for point in ran.result["points"]]
    assert sorted(sent) == [*site.true]
    _same(site, tmp_path / "to")


def test_a_full_target_keeps_what_arrived_and_nothing_half(site: Site, tmp_path: Path) -> None:
    with small_tmpfs(6) as small:
        target = init(small / "to")
        ran = _copy(tmp_path / "from", small / "to")
        ran.failed(fleece.ExitCode.STORE, "No space left", "make room")
        there = site.judge(target)
        assert there == [*site.true][: len(there)]
        assert 0 < len(there) < 5
        assert not [*(small / "to").glob("web/.partial*")]


def test_damage_is_told_and_the_exit_code_says_so(site: Site, tmp_path: Path) -> None:
    target = init(tmp_path / "to")
    fleece.merge(site.store, [*site.true][3])
    (file,) = (tmp_path / "from").glob("web/000003-*/vdb.fleece")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    ran = _copy(tmp_path / "from", tmp_path / "to")
    ran.failed(fleece.ExitCode.STORE, str(file))
    assert len(ran.result["errors"]) == 1
    assert [found["where"] for found in ran.named("problem")] == [str(file)]
    points = [*site.true]
    assert site.judge(target) == points[:2] + points[3:]


def test_a_target_that_is_no_store_is_told_how_to_become_one(site: Site, tmp_path: Path) -> None:
    _copy(tmp_path / "from", tmp_path / "to").failed(fleece.ExitCode.STORE, "fleece init")
    assert not (tmp_path / "to").exists()


def test_following_ends_by_a_signal_and_says_what_was_sent(site: Site, tmp_path: Path) -> None:
    target = init(tmp_path / "to")
    started = _start(tmp_path / "from", tmp_path / "to", "--follow", "--newer")
    assert started.stdout is not None
    arrived = 0
    lines = []
    while arrived < 6:
        lines.append(started.stdout.readline())
        assert lines[-1], "it ended"
        if '"arrived"' in lines[-1]:
            arrived += 1
            if arrived == 5:
                site.back_up()
    started.send_signal(signal.SIGTERM)
    ran = _end(started)
    assert Ran(ran.code, "".join(lines) + ran.out, ran.err).succeeded().result["had"] == 0
    assert site.judge(target) == [*site.true]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--last", "0"], "--last must be at least 1"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--since", "yesterday"], "yesterday is neither"),
        (["--follow", "--dry-run"], "does not follow"),
        (["--rate", "1M", "--dry-run"], "--rate has no effect"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_what_means_nothing_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    init(tmp_path / "from")
    init(tmp_path / "to")
    _copy(tmp_path / "from", tmp_path / "to", *words).failed(fleece.ExitCode.USAGE, said)


def test_points_go_into_a_bucket_and_come_back(tmp_path: Path, seaweedfs: SeaweedFs) -> None:
    """A guest's points are begun there one after the other; guests are sent side by side."""
    here = init(tmp_path / "from")
    sites = [Site(here, guest, ("vda", "vdb")) for guest in ("web", "db")]
    bucket = seaweedfs.bucket()
    target = make(S3Backend(bucket), Marker.new(fleece.StoreWishes(), None))
    for _ in range(2):
        for site in sites:
            site.back_up()
            site.back_up()
        report = fleece.copy(here, Store(S3Backend(bucket)))
        assert (len(report.points), report.errors) == (4, ())
    back = init(tmp_path / "back")
    assert fleece.copy(target, back).errors == ()
    for site in sites:
        assert site.judge(target) == site.judge(back) == [*site.true]


def test_each_store_has_its_key(tmp_path: Path) -> None:
    keys = []
    for name in ("here", "there"):
        keys.append(tmp_path / f"{name}.key")
        keys[-1].write_bytes(name.encode() * 16)
    secrets = [fleece.Secret.of_key_file(key) for key in keys]
    wishes = fleece.StoreWishes(encrypt=True)
    site = Site(init(tmp_path / "from", secrets[0], wishes))
    made = site.back_up()
    target = init(tmp_path / "to", secrets[1], wishes)
    both = tmp_path / "from", tmp_path / "to", "--key-file", keys[0]
    _copy(*both).failed(fleece.ExitCode.USAGE, "not the key", str(tmp_path / "to"))
    ran = _copy(*both, "--to-key-file", keys[1]).succeeded()
    assert ran.result["sent_bytes"] > 0
    assert site.judge(target) == [made]
