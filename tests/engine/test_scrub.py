"""Scrub and status: the longest unverified comes first, and what is wrong is never forgotten."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import fleece
from fleece.events import DeltaChecked, Event
from fleece.store import verified
from fleece.store.catalogue import Access
from fleece.store.folder.backend import FolderBackend
from tests.engine.history import Guest, deep_guest
from tests.engine.scene import INTACT, Engine, Mutation, flip
from tests.unit.kit import LEAF

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
SIZES = {"vda": 40 * LEAF, "vdb": 3 * LEAF + 5}


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    """Four points of two disks: eight deltas."""
    return deep_guest(tmp_path / "store", 4, SIZES)


def catalogue(guest: Guest) -> fleece.Catalogue:
    return fleece.open_store(guest.store).catalogue()


def run_scrub(
    guest: Guest,
    now: datetime = NOW,
    *,
    fraction: float = 1.0,
    max_age: str | None = None,
    read: list[str] | None = None,
) -> fleece.ScrubResult:
    """One run; `read` gets "point disk" of each delta that it found sound."""

    def listen(event: Event) -> None:
        if isinstance(event, DeltaChecked) and read is not None:
            read.append(f"{event.point} {event.disk}")

    age = None if max_age is None else fleece.Duration.parse(max_age)
    rules = fleece.ScrubRules(age, fraction)
    return fleece.scrub(catalogue(guest), rules, listen, now=now)


def days(count: int) -> Iterator[datetime]:
    """A moment of each day from `NOW` on."""
    return (NOW + timedelta(days=number) for number in range(count))


def test_runs_of_a_part_read_everything_once_before_anything_twice(guest: Guest) -> None:
    read: list[str] = []
    for day in days(8):
        run_scrub(guest, day, fraction=0.01, read=read)
    assert len(read) == 8
    assert len(set(read)) == 8
    again: list[str] = []
    for day in days(16):
        if day >= NOW + timedelta(days=8):
            run_scrub(guest, day, fraction=0.01, read=again)
    assert again == read


def test_the_part_is_of_bytes_and_at_least_one_delta(guest: Guest) -> None:
    total = sum(entry.stored_bytes for entry in catalogue(guest).entries)
    result = run_scrub(guest, fraction=0.5)
    assert total / 2 <= result.read_bytes < total
    assert 0 < result.deltas < 8
    assert result.due == 8
    assert result.left == 8 - result.deltas
    assert run_scrub(guest, fraction=0.000001).deltas == 1


def test_what_is_younger_than_the_age_is_left_out(guest: Guest) -> None:
    first = run_scrub(guest, fraction=0.5)
    rest = run_scrub(guest, NOW + timedelta(days=20), max_age="30d")
    assert (rest.due, rest.left) == (8 - first.deltas, 0)
    assert run_scrub(guest, NOW + timedelta(days=31), max_age="30d").due == first.deltas
    assert run_scrub(guest, NOW + timedelta(days=31), max_age="30d").due == 0


def test_a_damaged_delta_fails_each_run_until_it_is_mended(guest: Guest) -> None:
    run_scrub(guest)
    path = guest.paths["vda"][1]
    kept = path.read_bytes()
    flip(path, 3000)
    found = run_scrub(guest, NOW + timedelta(days=1), fraction=0.000001)
    assert [str(path) in line for line in found.errors] == [True]
    state = fleece.status(catalogue(guest), NOW + timedelta(days=2))
    assert any(str(path) in line for line in state.problems)
    assert state.guests[0].failed == 1 or state.guests[0].points < 4
    # That everything else was read lately changes nothing.
    again = run_scrub(guest, NOW + timedelta(days=2), max_age="30d", fraction=0.000001)
    assert [str(path) in line for line in again.errors] == [True]
    path.write_bytes(kept)
    assert run_scrub(guest, NOW + timedelta(days=3), max_age="30d").errors == ()
    assert fleece.status(catalogue(guest), NOW + timedelta(days=4)).problems == ()


def test_a_missing_delta_fails_a_run_of_any_part(guest: Guest) -> None:
    run_scrub(guest)
    guest.paths["vdb"][2].unlink()
    found = run_scrub(guest, NOW + timedelta(days=1), max_age="30d")
    assert any("incomplete" in line for line in found.errors)
    assert any("is not in the store" in line for line in found.errors)
    state = fleece.status(catalogue(guest), NOW)
    assert set(state.problems) == set(found.errors)
    assert state.guests[0].point == guest.points[1]


def break_nothing(path: Path) -> None:
    """The record stays as it is."""


def touch(path: Path) -> None:
    os.utime(path)


def copy(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").rename(path)


def spoil(path: Path) -> None:
    Path(f"{path}.verified.json").write_text("[" * 4000)


def drop(path: Path) -> None:
    Path(f"{path}.verified.json").unlink()


def lie(path: Path) -> None:
    access = Access(FolderBackend(path.parent))
    stamp = access.backend.stamp(path.name)
    verified.note(access, path.name, stamp, verified.Verification(NOW + timedelta(days=400), True))


@pytest.mark.parametrize(
    ("change", "due"), [(break_nothing, 0), *((f, 1) for f in (touch, copy, spoil, drop, lie))]
)
def test_only_a_whole_record_of_this_very_file_counts(
    guest: Guest, change: object, due: int
) -> None:
    run_scrub(guest)
    assert callable(change)
    change(guest.paths["vda"][2])
    assert run_scrub(guest, NOW + timedelta(days=1), max_age="30d").due == due


def test_a_merged_delta_was_never_verified_and_prune_takes_records_along(guest: Guest) -> None:
    run_scrub(guest)
    store = fleece.open_store(guest.store)
    fleece.merge(store, guest.points[3], guest.points[2])
    assert fleece.status(store.catalogue(), NOW).guests[0].unverified == 2
    fleece.prune(store, fleece.KeepRules(last=1))
    left = sorted(path.name for path in guest.store.rglob("*") if path.is_file())
    assert left == [
        ".lock",
        "fleece-store.json",
        *(f"{disk}.fleece{end}" for disk in SIZES for end in ("", ".verified.json")),
    ]


@pytest.mark.parametrize("forward", ["dropped", "merged"])
def test_a_parent_that_goes_during_a_verification_condemns_no_child(
    guest: Guest, forward: str
) -> None:
    """The run may fail; but what `status` knows is only what is wrong with a file itself."""
    store = fleece.open_store(guest.store)

    def listen(event: Event) -> None:
        if isinstance(event, DeltaChecked) and len(catalogue(guest).points) == 4:
            rules = fleece.KeepRules(last=2 if forward == "dropped" else 3)
            fleece.prune(store, rules)

    fleece.verify_store(catalogue(guest), None, listen, record=True)
    assert len(catalogue(guest).points) < 4
    assert fleece.status(catalogue(guest)).problems == ()
    assert fleece.verify_store(catalogue(guest), record=True).errors == ()


@pytest.mark.parametrize("error", ["EMFILE", "ENOMEM", "EIO"])
def test_what_the_system_refuses_condemns_no_delta(
    error: str, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = catalogue(guest)
    number = getattr(errno, error)

    def fail(descriptor: int, length: int, position: int) -> bytes:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        assert fleece.verify_store(known, record=True).errors != ()
    (state,) = fleece.status(catalogue(guest)).guests
    assert bool(state.failed) == (error == "EIO")
    assert fleece.verify_store(catalogue(guest), record=True).errors == ()
    assert fleece.status(catalogue(guest)).problems == ()


def test_status_says_how_a_store_is(guest: Guest) -> None:
    entries = catalogue(guest).entries
    (before,) = fleece.status(catalogue(guest), NOW).guests
    assert (before.unverified, before.failed, before.verified) == (8, 0, None)
    run_scrub(guest, fraction=0.5)
    run_scrub(guest, NOW + timedelta(days=1), max_age="2d")
    (after,) = fleece.status(catalogue(guest), NOW + timedelta(days=2)).guests
    assert (after.guest, after.points, after.point) == ("web", 4, guest.points[-1])
    assert (after.unverified, after.failed, after.verified) == (0, 0, NOW.isoformat())
    assert after.depth == 4
    assert after.stored_bytes == sum(entry.stored_bytes for entry in entries)
    assert after.time == catalogue(guest).find("latest").time
    age = NOW + timedelta(days=2) - datetime.fromisoformat(after.time)
    assert after.age == max(0.0, age.total_seconds())


def test_growth_counts_the_points_of_the_last_days(guest: Guest) -> None:
    taken = datetime.fromisoformat(catalogue(guest).find("latest").time)
    (young,) = fleece.status(catalogue(guest), taken + timedelta(days=29)).guests
    assert young.growth_bytes == young.stored_bytes
    (old,) = fleece.status(catalogue(guest), taken + timedelta(days=32)).guests
    assert old.growth_bytes == 0


def test_the_command_line_scrubs_and_says_how_it_is(guest: Guest) -> None:
    ran = INTACT.run("verify", guest.store, "--fraction", "10%", "--max-age", "30d", "--json")
    result = ran.succeeded().result
    assert result["due"] == 8
    assert result["left"] == 8 - result["deltas"] > 0
    INTACT.run("verify", guest.store).succeeded()
    said = INTACT.run("status", guest.store, "--json").succeeded()
    (line,) = said.named("guest")
    assert (line["points"], line["unverified"], line["depth"]) == (4, 0, 4)
    again = INTACT.run("verify", guest.store, "--max-age", "1d").succeeded()
    assert again.out.splitlines()[-1].startswith("0 deltas checked")
    table = INTACT.run("status", guest.store).succeeded().out.splitlines()
    assert table[0].split()[0] == "GUEST"
    assert table[1].split()[:2] == ["web", guest.points[-1]]


def test_a_store_that_takes_no_notes_can_be_verified_but_not_in_parts(guest: Guest) -> None:
    for path in guest.paths["vda"]:
        Path(f"{path}.verified.json").mkdir()
    files = sorted(guest.store.rglob("*"))
    ran = INTACT.run("verify", guest.store, "latest", "--json").succeeded()
    assert len(ran.named("warning")) == 1
    assert "cannot be recorded" in ran.named("warning")[0]["what"]
    INTACT.run("verify", guest.store, "--fraction", "100%").failed(5, "Is a directory")
    new = set(guest.store.rglob("*")) - set(files)
    assert {path.name for path in new} <= {"vdb.fleece.verified.json"}


def test_prometheus_reads_how_a_store_is(guest: Guest) -> None:
    INTACT.run("verify", guest.store, guest.points[0]).succeeded()
    text = INTACT.run("metrics", guest.store).succeeded().out
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["fleece_store_problems"] == 0
    assert samples["fleece_points"] == 4
    assert samples["fleece_unverified_deltas"] == 6
    assert "fleece_verified_timestamp_seconds" not in samples
    guest.paths["vda"][3].unlink()
    text = INTACT.run("metrics", guest.store).succeeded().out
    assert re.search(r"^fleece_store_problems\{.*\} 1\.0$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fraction", "0"), "more than 0%"),
        (("--fraction", "101%"), "at most 100%"),
        (("--fraction", "some"), "like 10%"),
        (("--max-age", "soon"), "not a duration"),
        (("latest", "--max-age", "3d"), "do not go with POINT"),
    ],
)
def test_a_scrub_that_makes_no_sense_is_refused(
    guest: Guest, words: tuple[str, ...], message: str
) -> None:
    INTACT.run("verify", guest.store, *words).failed(2, message)
    INTACT.run("verify", guest.store, "--guest", "nobody", "--max-age", "3d").failed(5, "nobody")


FAULTS = (
    Mutation(
        "failures count as verified",
        (("engine/check/scrub.py", "found is None or not found.sound", "found is None"),),
    ),
    Mutation(
        "any file may be the verified one",
        (
            (
                "store/verified.py",
                'known = _FORMAT | {"stamp": access.backend.stamp(key)}',
                "known = _FORMAT",
            ),
        ),
    ),
)


def damage_is_read_again(engine: Engine, guest: Guest) -> None:
    """Damage behind a fresh record is noticed, and so is one whose failure was noted."""
    engine.run("verify", guest.store).succeeded()
    path = guest.paths["vda"][1]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        ran = engine.run("verify", guest.store, "--max-age", "1d").failed(5, "1 error")
        assert str(path) in ran.err


def test_damage_is_read_again(guest: Guest) -> None:
    damage_is_read_again(INTACT, guest)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_in_scrubbing_is_noticed(fault: Mutation, guest: Guest, tmp_path: Path) -> None:
    engine = fault.engine(tmp_path)
    with pytest.raises(AssertionError):
        damage_is_read_again(engine, guest)
