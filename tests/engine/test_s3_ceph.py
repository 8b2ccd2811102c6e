"""Backups into a real Ceph, which is full in the midst of one, or lets a bucket hold no more."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from tests.engine.cloud import Cloud, lived
from tests.engine.scene import MIB
from tests.engine.test_s3_faults import exact_at_last, hasty, is_data
from tests.rig.ceph import PROGRAMS, Ceph, is_installed
from tests.rig.s3_script import Asked, Deed, ScriptedS3

pytestmark = pytest.mark.skipif(not is_installed(), reason=f"{', '.join(PROGRAMS)}: not all here")


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    made = Ceph(tmp_path_factory.mktemp("ceph"))
    yield made
    made.kill()


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, ceph: Ceph) -> Iterator[Cloud]:
    """Of all tests here."""
    with lived(ceph, tmp_path_factory.mktemp("life")) as made:
        yield made


def test_an_osd_that_is_full_fails_a_backup_and_loses_nothing(
    life: Cloud, ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second part on: it answers no more. When there is room again, the next is exact."""
    puts, lock = itertools.count(1), threading.Lock()

    def script(asked: Asked) -> Deed:
        if is_data(asked):
            with lock:
                if next(puts) == 2:
                    ceph.be_full(full=True)
        return None

    life.change(0, MIB)
    before = life.points()
    with ScriptedS3(ceph.port, script) as between, monkeypatch.context() as told:
        told.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.port}")
        try:
            done = hasty(life.words("--mode", "full"), 4, 6)  # a busy Ceph takes a second
        finally:
            ceph.be_full(full=False)
    done.ran.failed(5, "whose disks are full")
    assert life.points() == before
    exact_at_last(life)


def test_a_bucket_with_a_quota_fails_a_backup_and_loses_nothing(life: Cloud, ceph: Ceph) -> None:
    life.change(MIB, MIB)
    before = life.points()
    held = sum(item.length for item in life.bucket.list())
    ceph.limit(life.bucket, held + 12 * MIB)
    try:
        hasty(life.words("--mode", "full")).ran.failed(5, "takes no more (403 QuotaExceeded)")
    finally:
        ceph.limit(life.bucket, None)
    assert life.points() == before
    exact_at_last(life)
