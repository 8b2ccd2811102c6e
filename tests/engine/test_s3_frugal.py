"""What verbs cost in a bucket: they tell their requests, and a nightly backup needs few."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.cloud import Cloud, clouded
from tests.engine.scene import INTACT, Json
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.s3 import SeaweedFs
from tests.rig.s3_script import ScriptedS3

MIB = images.MIB
NIGHTLY = 20
"""Requests of an incremental of two disks, beside the parts."""
CHAINS = 10, 30
"""Deltas of each disk below it."""


@pytest.fixture
def nightly(tmp_path: Path, server: SeaweedFs) -> Iterator[Cloud]:
    """A guest of two disks, and a full of it."""
    first = images.random_image(tmp_path / "d0.qcow2", 12 * MIB, seed=1, fill=1.0)
    second = images.random_image(tmp_path / "d1.raw", 4 * MIB, seed=2, fmt="raw")
    with clouded(server, tmp_path, Disk(first, "d0"), Disk(second, "d1", "raw")) as made:
        made.backup().succeeded()
        yield made


def _requests(result: Json) -> dict[str, int]:
    return {kind: done["count"] for kind, done in result["requests"].items()}


def test_a_nightly_incremental_of_two_disks_costs_few_requests(
    nightly: Cloud, server: SeaweedFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server counts them, and as the result tells: however many deltas there are below."""
    counts = set()
    for night in range(1, max(CHAINS) + 1):
        if night not in CHAINS:
            nightly.change(night % 12 * MIB)
            nightly.change(night % 4 * MIB, disk="d1")
            nightly.back_up_here()
            continue
        nightly.change(0, 9 * MIB)  # two parts of one disk, one of the other
        with ScriptedS3(server.port, lambda _: None) as counting, monkeypatch.context() as told:
            told.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{counting.port}")
            result = nightly.backup().succeeded().result
        assert result["mode"] == "incremental"
        asked = counting.asked
        parts = [one for one in asked if one.method == "PUT" and "/data/" in one.path]
        assert len(parts) == 3
        counts.add(len(asked) - len(parts))
        assert sum(_requests(result).values()) == len(asked)
        sent = sum(done["sent_bytes"] for done in result["requests"].values())
        assert sent == sum(len(one.body) for one in asked)
        assert 9 * MIB < sent < 10 * MIB
    assert max(counts) <= NIGHTLY
    assert len(counts) == 1


def test_every_verb_tells_what_it_asked_of_a_bucket(nightly: Cloud) -> None:
    for place in (0, MIB):
        nightly.change(place)
        nightly.backup().succeeded()
    target = nightly.folder / "back.raw"
    for words in (
        ("list",),
        ("status",),
        ("verify",),
        ("restore", "latest", "d0", target),
        ("prune", "--keep-last", "2", "--merge", "always"),
    ):
        result = nightly.run(*words).succeeded().result
        assert _requests(result)["ListBucket"] >= 1, words
    assert result["requests"]["GetObject"]["received_bytes"] > 0
    shown = INTACT.run("status", nightly.address).succeeded()
    assert "requests: " in shown.err
    assert " ListBucket" in shown.err
    assert "request" not in shown.out
    failed = nightly.run("restore", "nowhere", "d0", target).result
    assert failed["requests"]


def test_a_folder_costs_no_requests(nightly: Cloud, tmp_path: Path) -> None:
    place = tmp_path / "folder"
    INTACT.run("init", place, "--like", nightly.address).succeeded()
    assert "requests" not in INTACT.run("status", place, "--json").succeeded().result
    copied = INTACT.run("copy", nightly.address, place, "--json").succeeded().result
    assert _requests(copied)["GetObject"] > 3
