"""Copies between stores: what arrives is what was sent, whole and once, whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fleece
from fleece import events
from fleece.delta.header import PointRef
from fleece.delta.passage import ReadAhead, carry
from fleece.delta.reader import DeltaReader
from fleece.errors import StoreError, UsageError
from fleece.extents import Extents
from fleece.keys import Derivation, Secret
from fleece.store.backend import Batch
from fleece.store.init import init, make
from fleece.store.marker import HashChoice, Marker, StoreWishes
from fleece.store.names import COPIED
from fleece.store.store import Store
from fleece.tree import BlankDisk
from tests.contract.memory import Held, MemoryBackend
from tests.unit.copies import SIZE, Site
from tests.unit.kit import header, write_delta

KEY = Secret(Derivation.KEY_FILE, b"k" * 32)
OTHER_KEY = Secret(Derivation.KEY_FILE, b"o" * 32)
ENCRYPTED = StoreWishes(encrypt=True)
KEYED = StoreWishes(HashChoice.BLAKE3)


def _memory(wishes: StoreWishes | None = None, secret: Secret | None = None) -> Store:
    return make(MemoryBackend(), Marker.new(wishes or StoreWishes(), secret), secret)


def _files(store: Store) -> dict[str, bytes]:
    found = {}
    for key in store.backend.listing().deltas:
        blob = store.backend.open(key)
        found[key] = blob.read_at(0, blob.length)
    return found


def _refused(run: Callable[[], object], *words: str) -> None:
    with pytest.raises(UsageError) as refused:
        run()
    assert all(word in str(refused.value) for word in words), str(refused.value)


# ---- what is sent ------------------------------------------------------------------------------


def test_points_are_the_same_files_under_the_same_names() -> None:
    site = Site(_memory(), disks=("vda", "vdb", "@nvram"))
    made = [site.back_up() for _ in range(3)]
    target = _memory()
    heard: list[events.Event] = []
    report = fleece.copy(site.store, target, listener=heard.append)
    assert [point.point for point in report.points] == made
    assert (report.had, report.errors) == (0, ())
    assert _files(target) == _files(site.store)
    assert site.judge(target) == made
    arrived = [event.point for event in heard if isinstance(event, events.Arrived)]
    assert arrived == made
    progress = [event for event in heard if isinstance(event, events.Progress)]
    assert progress[-1].done == progress[-1].total == sum(p.stored_bytes for p in report.points)


def test_a_listener_is_called_by_one_thread_at_a_time() -> None:
    site = Site(_memory(), disks=("vda", "vdb", "vdc"))
    for _ in range(12):
        site.back_up()
    turn = threading.Lock()
    together = []

    def listen(event: events.Event) -> None:
        alone = turn.acquire(blocking=False)
        if not alone:
            together.append(event)
            return
        time.sleep(0.05)
        turn.release()

    fleece.copy(site.store, _memory(), listener=listen)
    assert together == []


def test_what_the_target_has_is_not_sent_again() -> None:
    site, target = Site(_memory()), _memory()
    site.back_up()
    fleece.copy(site.store, target)
    made = site.back_up()
    report = fleece.copy(site.store, target)
    assert ([point.point for point in report.points], report.had) == ([made], 1)
    assert fleece.copy(site.store, target).points == ()


def test_each_byte_is_read_once_but_for_headers_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    site, target = Site(_memory()), _memory()
    site.back_up()
    read: list[int] = []
    true = Held.read_at

    def counted(blob: Held, position: int, length: int) -> bytes:
        if blob.name.startswith("memory: web/0"):
            read.append(length)
        return true(blob, position, length)

    entry = site.store.catalogue().points[0].disks["vda"]
    carried = ReadAhead(site.store.backend.open(entry.key), lambda count: None)
    monkeypatch.setattr(Held, "read_at", counted)
    with site.store.access.read(carried) as delta:
        opening = sum(read)
        carry(delta, carried, target.begin_copy("web", "aa" * 5, 1).create("vda"), None)
        assert sum(read) - opening == delta.length


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (fleece.CopyOptions(last=2), [1, 2, 3, 4]),
        (fleece.CopyOptions(guests=("db",)), []),
        (fleece.CopyOptions(since=datetime(2024, 1, 5, tzinfo=UTC)), []),
        (fleece.CopyOptions(since=datetime(2024, 1, 2, tzinfo=UTC)), [1, 2, 3, 4]),
    ],
    ids=["last", "guest", "nothing", "since"],
)
def test_what_a_chosen_point_builds_on_goes_along(
    options: fleece.CopyOptions, sent: list[int]
) -> None:
    store, target = _memory(), _memory()
    site, other = Site(store), Site(store, "db")
    for day in range(1, 5):
        site.back_up(time=f"2024-01-0{day}T12:00:00Z")
    other.back_up()
    fleece.copy(store, target, options)
    assert site.judge(target) == [f"{number:010x}" for number in sent]


def test_of_points_that_build_on_nothing_older_only_the_chosen_ones_are_sent() -> None:
    site, target = Site(_memory()), _memory()
    made = [site.back_up() for _ in range(4)]
    fleece.merge(site.store, made[2])
    fleece.copy(site.store, target, fleece.CopyOptions(last=2))
    assert site.judge(target) == made[2:]


def test_a_dry_run_sends_nothing_and_says_what_it_would() -> None:
    site, target = Site(_memory()), _memory()
    made = site.back_up()
    with target.locked("web"):  # and waits for nobody
        report = fleece.copy(site.store, target, fleece.CopyOptions(dry_run=True))
    assert [point.point for point in report.points] == [made]
    assert _files(target) == {}


def test_a_guest_that_the_source_does_not_have_is_an_error() -> None:
    site = Site(_memory())
    site.back_up()
    with pytest.raises(StoreError, match="no point of guest wbe"):
        fleece.copy(site.store, _memory(), fleece.CopyOptions(guests=("wbe",)))


def test_a_note_against_bitmaps_goes_where_the_chain_goes() -> None:
    site, target = Site(_memory()), _memory()
    site.back_up()
    chain = site.store.catalogue().points[0].chain
    site.store.distrust(chain, "vda", "a write was missed")
    fleece.copy(site.store, target)
    assert target.distrusted(chain, "vda") == "a write was missed"


def test_new_points_are_followed_until_it_is_cancelled() -> None:
    site, target = Site(_memory()), _memory()
    made = [site.back_up()]
    cancel, arrived = fleece.CancelToken(), threading.Semaphore(0)

    def hear(event: events.Event) -> None:
        if isinstance(event, events.Arrived):
            arrived.release()

    reports: list[fleece.CopyReport] = []
    options = fleece.CopyOptions(follow=True, poll=0.01)
    running = threading.Thread(
        target=lambda: reports.append(fleece.copy(site.store, target, options, hear, cancel))
    )
    running.start()
    arrived.acquire()
    made.append(site.back_up())
    arrived.acquire()
    cancel.cancel()
    running.join()
    assert [point.point for point in reports[0].points] == made
    assert site.judge(target) == made


# ---- keys and hashes ---------------------------------------------------------------------------


def test_under_another_key_frames_are_sealed_anew_and_not_compressed() -> None:
    site = Site(_memory(ENCRYPTED, KEY), disks=("vda", "vdb"))
    made = [site.back_up() for _ in range(3)]
    target = _memory(ENCRYPTED, OTHER_KEY)
    fleece.copy(site.store, target)
    assert site.judge(target) == made
    assert not {*_files(site.store).values()} & {*_files(target).values()}
    _same_frames(site.store, target)


def test_what_was_not_encrypted_can_be_and_its_index_fits() -> None:
    site, target = Site(_memory()), _memory(ENCRYPTED, KEY)
    made = [site.back_up() for _ in range(3)]
    fleece.copy(site.store, target)
    assert site.judge(target) == made
    _same_frames(site.store, target)


def _same_frames(one: Store, other: Store) -> None:
    """Headers and records, byte by byte as they are unsealed."""
    for mine, theirs in zip(one.catalogue().points, other.catalogue().points, strict=True):
        for disk in mine.deltas:
            with (
                one.access.open(mine.deltas[disk].key) as old,
                other.access.open(theirs.deltas[disk].key) as new,
            ):
                assert _frames(old) == _frames(new)
                assert old.header == new.header


def _frames(delta: DeltaReader) -> list[tuple[Any, bytes]]:
    return [delta.record_at(*row) for part in delta.index() for row in part.tolist()]


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ((None, None), (StoreWishes(HashChoice.BLAKE3), None), ("hash blake3", "--like")),
        ((KEYED, KEY), (KEYED, OTHER_KEY), ("another key", "--like")),
        ((KEYED, KEY), (KEYED, KEY), ("another key", "--like")),  # under a salt of its own
        ((ENCRYPTED, KEY), (None, None), ("not encrypted", "--encrypt")),
    ],
    ids=["hash", "key", "salt", "plain"],
)
def test_what_does_not_fit_is_refused_before_anything_is_sent(
    source: Any, target: Any, words: tuple[str, ...]
) -> None:
    site, other = Site(_memory(*source)), _memory(*target)
    site.back_up()
    _refused(lambda: fleece.copy(site.store, other), *words)
    assert _files(other) == {}


def test_a_store_that_was_made_like_it_takes_keyed_deltas_as_they_are(tmp_path: Path) -> None:
    site = Site(init(tmp_path / "one", KEY, dataclasses.replace(KEYED, encrypt=True)))
    made = [site.back_up() for _ in range(2)]
    target = init(tmp_path / "two", KEY, like=tmp_path / "one")
    fleece.copy(site.store, target)
    assert site.judge(target) == made
    assert _files(target) == _files(site.store)


def test_a_store_is_not_copied_into_itself() -> None:
    store = _memory()
    _refused(lambda: fleece.copy(store, store), "the same store")


# ---- damage ------------------------------------------------------------------------------------


def _damage(store: Store, point: int, at: float) -> None:
    backend = store.backend
    assert isinstance(backend, MemoryBackend)
    (key,) = [
        key for key in backend.listing().deltas if key.split("/")[1].startswith(f"{point:06}")
    ]
    data = bytearray(_files(store)[key])
    data[int(at * len(data))] ^= 1
    backend.set(key, bytes(data))


@pytest.mark.parametrize("at", [0.02, 0.3, 0.6, 0.9, 0.97])
def test_a_damaged_delta_is_told_and_what_does_not_need_it_arrives(at: float) -> None:
    store, target = _memory(), _memory()
    site, other = Site(store), Site(store, "db")
    made = [site.back_up() for _ in range(4)]
    fleece.merge(store, made[2])
    theirs = other.back_up()
    data = [key for key in _files(store) if key.startswith("web/000002")]
    backend = store.backend
    assert isinstance(backend, MemoryBackend)
    content = bytearray(_files(store)[data[0]])
    content[int(at * len(content))] ^= 1
    backend.set(data[0], bytes(content))
    report = fleece.copy(store, target)
    assert len(report.errors) == 1
    assert data[0] in report.errors[0]
    assert site.judge(target) == [made[0], *made[2:]]
    assert other.judge(target) == [theirs]


def test_what_builds_on_a_damaged_delta_is_not_sent() -> None:
    site, target = Site(_memory()), _memory()
    made = [site.back_up() for _ in range(3)]
    _damage(site.store, 2, 0.4)
    report = fleece.copy(site.store, target)
    assert len(report.errors) == 2
    assert site.judge(target) == made[:1]


def test_every_flipped_byte_of_a_delta_is_noticed_on_its_way() -> None:
    site = Site(_memory())
    site.back_up()
    backend = site.store.backend
    assert isinstance(backend, MemoryBackend)
    ((key, true),) = _files(site.store).items()
    for at in range(0, len(true), 11):
        target = _memory()
        backend.set(key, true[:at] + bytes([true[at] ^ 0x40]) + true[at + 1 :])
        assert fleece.copy(site.store, target).errors, at
        assert _files(target) == {}
        assert target.backend.left("web") == []


def test_another_root_of_a_point_that_both_have_is_told() -> None:
    site, other, target = Site(_memory()), Site(_memory()), _memory()
    site.back_up(1)
    other.back_up(2)
    fleece.copy(other.store, target)
    report = fleece.copy(site.store, target)
    assert "another root" in report.errors[0]
    assert other.judge(target)


def test_a_guest_of_the_same_name_is_not_mixed_with_another() -> None:
    from fleece.delta.identity import GuestIdentity

    site, target = Site(_memory()), _memory()
    site.back_up()
    with target.locked("web"):
        partial = target.begin("web", "ff" * 5, 1)
        head = dataclasses.replace(
            header(SIZE, 1),
            chain="feedfeed",
            point=PointRef("ff" * 5, 1, "2024-01-01T00:00:00Z"),
            identity=GuestIdentity(str(uuid.UUID(int=5)), "web"),
        )
        whole = Extents.whole(SIZE)
        write_delta(partial.create("vda"), head, BlankDisk(head.geometry), bytes(SIZE), whole)
        partial.commit()
    report = fleece.copy(site.store, target)
    assert "another guest" in report.errors[0]
    assert [point.chain for point in target.catalogue().points] == ["feedfeed"]


# ---- kills, prunes, two sites ------------------------------------------------------------------


class Killed(BaseException):
    """What a process that is killed does not catch."""


class _Mortal:
    """Something of a store's, all of whose methods end the process from some call on."""

    def __init__(self, real: Any, life: list[int]) -> None:
        self._real, self._life = real, life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found) or name == "lock":
            return found

        def call(*given: Any) -> Any:
            self._life[0] -= 1
            if self._life[0] < 0:
                raise Killed
            result = found(*given)
            if name in ("batch", "create"):
                return _Mortal(result, self._life)
            if name == "sharing":
                return self
            return result

        return call


def _killed(source: Store, target: Store, after: int) -> None:
    """Copy by a process that is killed after so many calls to the target's storage."""
    mortal: Any = _Mortal(target.backend, [1 << 60])
    seen = Store(mortal)
    mortal._life[0] = after
    with contextlib.suppress(Killed):
        fleece.copy(source, seen, fleece.CopyOptions(workers=2))


def test_a_copy_that_is_killed_anywhere_is_completed_by_the_next() -> None:
    site = Site(_memory(), disks=("vda", "vdb"))
    made = [site.back_up() for _ in range(3)]
    for after in itertools.count(step=3):
        target = _memory()
        _killed(site.store, target, after)
        there = site.judge(target)
        assert there == made[: len(there)]
        again = fleece.copy(site.store, target)
        assert [point.point for point in again.points] == made[len(there) :]
        assert site.judge(target) == made
        backend = target.backend
        assert isinstance(backend, MemoryBackend)
        assert not backend.batches
        if len(there) == len(made):
            return


def test_what_a_killed_copy_left_is_no_backup_to_be_resumed() -> None:
    site, target = Site(_memory()), _memory()
    site.back_up()
    left: list[Batch] = []
    after = itertools.count()
    while not left:
        _killed(site.store, target, next(after))
        left = target.backend.left("web")
    assert [batch.name[: len(COPIED)] for batch in left] == [COPIED]
    assert target.unfinished("web") == []
    assert len(target.remove_partial("web")) == 1


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["back up", "copy", "copy newer", "killed", "copy back", "prune", "prune there"]
        ),
        st.integers(1, 60),
    ),
    min_size=6,
    max_size=16,
)


@settings(max_examples=10)
@given(_STEPS)
def test_two_sites_that_prune_by_themselves_never_endanger_each_other(
    steps: list[tuple[str, int]],
) -> None:
    """Whatever the order: all that is seen at either site verifies, and is what was backed up."""
    site, there = Site(_memory(), disks=("vda", "@tpm")), _memory()
    site.back_up()
    for step, number in steps:
        changed = site.store if step in ("back up", "copy back", "prune") else there
        if step == "back up":
            site.back_up(number)
        elif step == "killed":
            _killed(site.store, there, number)
        elif step == "copy back":
            assert fleece.copy(there, site.store).errors == ()
        elif step.startswith("copy"):
            options = fleece.CopyOptions(newer=step.endswith("newer"), workers=1 + number % 3)
            assert fleece.copy(site.store, there, options).errors == ()
            newest = [store.catalogue().of_guest("web")[-1].id for store in (site.store, there)]
            assert newest[0] == newest[1]
        else:
            store = there if step.endswith("there") else site.store
            if store.catalogue().points:
                fleece.prune(store, fleece.KeepRules(last=1 + number % 4))
        site.judge(changed)


def test_a_prune_in_the_source_meanwhile_does_no_harm() -> None:
    """What it removed or merged is planned again; nothing half done arrives."""
    site, target = Site(_memory()), _memory()
    made = [site.back_up() for _ in range(4)]
    pruned: list[bool] = []

    def hear(event: events.Event) -> None:
        if isinstance(event, events.Arrived) and not pruned:
            pruned.append(True)
            fleece.prune(site.store, fleece.KeepRules(last=1))

    report = fleece.copy(site.store, target, fleece.CopyOptions(workers=1), hear)
    assert report.errors == ()
    assert site.judge(target) in ([made[0], made[3]], [*made[:2], made[3]], made)
