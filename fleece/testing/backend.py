"""The tests that every storage must pass (`fleece.store.backend`), whoever wrote it.

Derive a class whose name begins with `Test`, with a pytest fixture `backend` that gives an empty
place of its own to each test::

    class TestMine(BackendContract):
        @pytest.fixture
        def backend(self, tmp_path):
            return MyBackend(tmp_path)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import sys
import threading
import traceback
import unittest
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fleece.cancel import CancelToken
from fleece.delta.blob import Blob
from fleece.errors import DeltaError, Interrupted, StoreError, UsageError
from fleece.store.backend import (
    Accounts,
    Backend,
    BeginsAhead,
    Draft,
    Kept,
    Listing,
    Metered,
    NewObject,
    Patience,
    Retains,
    Site,
)
from fleece.store.errors import Gone
from fleece.store.open import open_backend

_MARKER = "fleece-store.json"
_ONE = "web/000001-aa/vda.fleece"
_TWO = "web/000001-aa/vdb.fleece"
_NOTE = "web/000001-aa/note.pin.json"
_TAGS = "web/000001-aa/note.tags.json"

_KILLS = 6
"""At how many places a writer is killed, evenly spread over what it does."""
_DOORS = 5
"""Up to how many files a listing may open before it can open no more."""

_T = TypeVar("_T")


@contextlib.contextmanager
def _refused(kind: type[Exception] = StoreError) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} was raised")


def _content(blob: Blob) -> bytes:
    try:
        return blob.read_at(0, blob.length)
    finally:
        blob.close()


def _read(backend: Backend, key: str) -> bytes:
    return _content(backend.open(key))


def _point(backend: Backend, key: str = _ONE, data: bytes = b"content", more: str = "") -> None:
    """Make a point of one delta, or two."""
    guest, point, name = key.split("/")
    batch = backend.batch(guest, point.partition("-")[2])
    for one in filter(None, (name, more)):
        batch.create(one).write(data)
    batch.seal()
    batch.commit(point)


def _draft(make: Callable[[], Draft], data: bytes) -> Draft:
    draft = make()
    draft.sink.write(data)
    draft.seal()
    return draft


def _at_once(deed: Callable[[_T], None], each: Sequence[_T]) -> None:
    """Do it by as many threads, which begin together."""
    start = threading.Barrier(len(each))

    def one(given: _T) -> None:
        start.wait()
        deed(given)

    with ThreadPoolExecutor(len(each)) as pool:
        for done in [pool.submit(one, given) for given in each]:
            done.result()


def _killed(work: Iterator[bytes]) -> bytes:
    """What a process of its own says first. It is gone then: no context of its ends.

    Nothing: it was gone before, or failed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, next(work))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def _counted(work: Callable[[], None], last: int) -> int:
    """Do it; gives how many steps it took, which are calls and returns.

    This process is gone at the last one; 0: it is not.
    """
    steps = itertools.count(1)

    def step(*_: object) -> None:
        if next(steps) == last:
            os._exit(0)

    sys.setprofile(step)
    work()
    sys.setprofile(None)
    return next(steps)


def _may_open(count: int) -> None:
    """From now on this process can open so many files more, or connections."""
    lowest = os.dup(0)
    os.close(lowest)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + count, most))


def _takes_no_more(made: NewObject) -> None:
    """It says so, or what is written then is nowhere."""
    with contextlib.suppress(StoreError):
        made.write(b"later")


class BackendContract:
    """Each method is one promise, or a few that belong together.

    Attributes:
        resumes: batches that killed writers left can be resumed, and not only discarded.
    """

    resumes = True

    def reopened(self, backend: Backend) -> Backend:
        """The store by its address. A place that only its own process can reach gives itself."""
        return open_backend(backend.address)

    def hurried(self, backend: Backend) -> Backend:
        """The same, which tries for a moment only where it would try for long what fails."""
        return self.reopened(backend)

    # ---- the place ---------------------------------------------------------------------------

    def test_a_store_is_made_once(self, backend: Backend) -> None:
        """The second attempt fails, and changes nothing."""
        with _refused():
            backend.check()
        backend.create(b"first")
        with _refused():
            backend.create(b"second")
        backend.check()
        assert backend.get(_MARKER, 100) == b"first"

    def test_it_tells_of_itself(self, backend: Backend) -> None:
        """What engines ask before they begin."""
        backend.create(b"marker")
        assert backend.where
        assert backend.address
        assert backend.writable()
        room = backend.room()
        assert room is None or room >= 0
        assert backend.name(_ONE) != backend.name(_TWO)

    def test_of_several_that_make_a_store_one_does(self, backend: Backend) -> None:
        """It has the marker of the one that was told so."""
        made: list[bytes] = []

        def make(marker: bytes) -> None:
            with contextlib.suppress(StoreError):
                backend.create(marker)
                made.append(marker)

        _at_once(make, [b"first", b"second", b"third"])
        assert made == [backend.get(_MARKER, 100)]

    def test_a_place_that_cannot_be_made_as_asked_stays_empty(self, backend: Backend) -> None:
        """It is refused before anything is made; then a store can be made there as usual."""
        for site in (Site(make_bucket=True), Site(lock_days=1)):
            with contextlib.suppress(UsageError, StoreError):
                backend.create(b"marker", site)
                backend.check()
                return
            with _refused():
                backend.check()
        backend.create(b"marker")
        backend.check()

    def test_its_address_opens_it(self, backend: Backend) -> None:
        """With all that is in it."""
        backend.create(b"marker")
        _point(backend)
        again = self.reopened(backend)
        again.check()
        assert again.address == backend.address
        assert again.listing().deltas == [_ONE]
        assert _read(again, _ONE) == b"content"

    def test_who_shares_it_with_others_sees_the_same(self, backend: Backend) -> None:
        """And is seen."""
        backend.create(b"marker")
        _point(backend)
        shared = backend.sharing(0o640)
        assert _read(shared, _ONE) == b"content"
        _point(shared, "db/000001-aa/vda.fleece")
        assert len(backend.listing().deltas) == len(shared.listing().deltas) == 2

    def test_what_is_counted_grows_by_what_is_asked(self, backend: Backend) -> None:
        """Of storages whose requests have a price."""
        if not isinstance(backend, Metered):
            raise unittest.SkipTest("its requests have no price")
        backend.create(b"marker")
        before = sum(each.requests for each in backend.usage().values())
        backend.put("note", b"12345")
        after = backend.usage().values()
        assert sum(each.requests for each in after) > before
        assert sum(each.sent for each in after) >= 5

    # ---- small objects -----------------------------------------------------------------------

    def test_small_objects_are_put_got_and_deleted(self, backend: Backend) -> None:
        """The newest content is read; a missing one is told as that, and deleting it is fine."""
        backend.create(b"marker")
        with _refused(Gone):
            backend.get("note", 100)
        assert not backend.has("note")
        for data in (b"one", b"another", b""):
            backend.put("note", data)
            assert backend.get("note", 100) == data
            assert backend.has("note")
        for _ in range(2):
            backend.delete("note")
            assert not backend.has("note")
        with _refused(Gone):
            backend.get("note", 100)

    def test_a_small_object_that_is_too_long_is_not_read(self, backend: Backend) -> None:
        """Up to `most` bytes it is."""
        backend.create(b"marker")
        backend.put("note", b"12345")
        assert backend.get("note", 5) == b"12345"
        with _refused():
            backend.get("note", 4)

    def test_nothing_is_put_into_a_point_that_is_not_there(self, backend: Backend) -> None:
        """It is gone, and a note must not bring it back."""
        backend.create(b"marker")
        with _refused(Gone):
            backend.put(_NOTE, b"x")
        assert not backend.has(_NOTE)

    def test_the_listing_names_pins_and_tags(self, backend: Backend) -> None:
        """So nobody has to ask for those of each point."""
        backend.create(b"marker")
        _point(backend)
        assert backend.listing().marks == []
        backend.put(_NOTE, b"x")
        backend.put(_TAGS, b"x")
        backend.put(f"{_ONE}.verified.json", b"x")
        assert sorted(backend.listing().marks) == [_NOTE, _TAGS]
        backend.delete(_NOTE)
        assert backend.listing().marks == [_TAGS]
        backend.drop(_ONE.rpartition("/")[0])
        assert backend.listing().marks == []

    def test_a_listing_of_a_guest_is_that_of_what_lies_below_it(self, backend: Backend) -> None:
        """Its deltas, pins and tags; and nothing, without an error, if there is no such guest."""
        backend.create(b"marker")
        other = "web2/000001-aa/vda.fleece"
        _point(backend)
        _point(backend, other)
        for key in (_ONE, other):
            backend.put(f"{key.rpartition('/')[0]}/{_NOTE.rpartition('/')[2]}", b"x")
        found = self.reopened(backend).listing("web")
        assert (found.deltas, found.marks, found.foreign) == ([_ONE], [_NOTE], [])
        assert set(found.stamps) <= {_ONE}
        assert backend.listing("web2").deltas == [other]
        assert backend.listing("we") == Listing()
        assert sorted(backend.listing().deltas) == sorted([_ONE, other])

    def test_what_killed_writers_left_of_a_small_object_is_swept(self, backend: Backend) -> None:
        """Wherever they were: it is the old one or the new one, and nothing lies beside it."""
        backend.create(b"marker")
        _point(backend)

        def put(last: int) -> Iterator[bytes]:
            again = self.reopened(backend)
            with again.lock("web", "web"):
                yield str(_counted(lambda: again.put(_NOTE, b"new"), last)).encode()

        steps = int(_killed(put(0)))
        for part in range(1, _KILLS):
            with backend.lock("web", "web", Patience(300)):
                backend.put(_NOTE, b"old")
            _killed(put(steps * part // _KILLS))
            with backend.lock("web", "web", Patience(300)):  # it is free when all of it has ended
                assert backend.get(_NOTE, 3) in (b"old", b"new")
                backend.sweep(_NOTE)
                assert backend.get(_NOTE, 3) in (b"old", b"new")
                assert [*backend.tidy(["web/000001-aa"])] == []

    def test_sweeping_leaves_the_object(self, backend: Backend) -> None:
        """Only what killed writers left goes."""
        backend.create(b"marker")
        backend.put("note", b"x")
        backend.sweep("note")
        assert backend.get("note", 1) == b"x"

    # ---- deltas ------------------------------------------------------------------------------

    def test_an_object_gives_just_what_is_asked_for(self, backend: Backend) -> None:
        """Also by parts; past its end it is cut, and says so."""
        backend.create(b"marker")
        _point(backend, data=b"0123456789")
        blob = backend.open(_ONE)
        assert blob.length == 10
        assert blob.read_at(2, 5) == b"23456"
        assert 0 <= blob.data_from(0) <= blob.length
        assert blob.data_from(blob.length) == blob.length
        with _refused(DeltaError):
            blob.read_at(8, 3)
        blob.close()
        blob.close()

    def test_an_object_is_read_by_many_at_once(self, backend: Backend) -> None:
        """Each gets what is at its place."""
        backend.create(b"marker")
        data = bytes(range(256)) * 64
        _point(backend, data=data)
        blob = backend.open(_ONE)

        def read(first: int) -> None:
            for start in range(first, len(data), 1000):
                end = min(start + 500, len(data))
                assert blob.read_at(start, end - start) == data[start:end]

        _at_once(read, [0, 1, 250, 600])
        blob.close()

    def test_an_object_is_written_by_many_at_once(self, backend: Backend) -> None:
        """What one of them writes is in one piece."""
        backend.create(b"marker")
        batch = backend.batch("web", "aa")
        made = batch.create("vda.fleece", 80_000)

        def write(value: int) -> None:
            for _ in range(20):
                assert made.write(bytes([value]) * 1000) == 1000

        _at_once(write, [1, 2, 3, 4])
        batch.seal()
        batch.commit("000001-aa")
        data = _read(backend, _ONE)
        pieces = Counter(data[start : start + 1000] for start in range(0, len(data), 1000))
        assert pieces == {bytes([value]) * 1000: 20 for value in (1, 2, 3, 4)}

    def test_what_is_forgotten_is_read_anew(self, backend: Backend) -> None:
        """Once; nothing of the object is lost."""
        backend.create(b"marker")
        assert not backend.forget(_ONE)
        _point(backend)
        assert _read(backend, _ONE) == b"content"
        backend.forget(_ONE)
        assert not backend.forget(_ONE)
        assert _read(backend, _ONE) == b"content"

    def test_a_listing_that_fails_never_looks_short(self, backend: Backend) -> None:
        """Nor empty, whatever it needs and cannot have: it is refused, or has all."""
        backend.create(b"marker")
        for key in (_ONE, "db/000001-aa/vda.fleece"):
            _point(backend, key)
        whole = sorted(backend.listing().deltas)
        assert len(whole) == 2

        def listing(count: int) -> Iterator[bytes]:
            again = self.hurried(backend)
            _may_open(count)
            try:
                yield json.dumps(sorted(again.listing().deltas)).encode()
            except (StoreError, UsageError):
                yield b"null"

        for count in range(_DOORS):
            assert json.loads(_killed(listing(count))) in (None, whole)

    def test_an_object_that_is_not_there_is_told(self, backend: Backend) -> None:
        """Opened, or asked for its stamp."""
        backend.create(b"marker")
        with _refused(DeltaError):
            backend.open(_ONE).close()
        with _refused(Gone):
            backend.stamp(_ONE)
        assert not backend.has(_ONE)

    def test_a_point_that_is_not_there_is_told(self, backend: Backend) -> None:
        """To who would take it away, or replace what is in it."""
        backend.create(b"marker")
        _point(backend)
        backend.drop("web/000001-aa")
        with _refused(Gone):
            backend.drop("web/000001-aa")
        with _refused(Gone):
            backend.replace(_ONE)

    def test_a_stamp_changes_whenever_the_content_does(self, backend: Backend) -> None:
        """And only then."""
        backend.create(b"marker")
        _point(backend)
        before = backend.stamp(_ONE)
        assert backend.stamp(_ONE) == before
        _draft(lambda: backend.replace(_ONE), b"CONTENT").place(_ONE)
        assert backend.stamp(_ONE) != before

    def test_a_stamp_in_a_listing_is_that_of_the_object(self, backend: Backend) -> None:
        """Of each that has one there."""
        backend.create(b"marker")
        _point(backend)
        _draft(lambda: backend.replace(_ONE), b"CONTENT").place(_ONE)
        found = backend.listing()
        assert found.stamps.keys() <= {*found.deltas}
        assert {key: backend.stamp(key) for key in found.stamps} == found.stamps

    # ---- points ------------------------------------------------------------------------------

    def test_a_batch_is_seen_at_once_or_not_at_all(self, backend: Backend) -> None:
        """Not before it is committed, then all of it."""
        backend.create(b"marker")
        batch = backend.batch("web", "aa")
        for name in ("vda.fleece", "vdb.fleece"):
            made = batch.create(name)
            made.write(name.encode())
            made.sync()
        assert backend.listing().deltas == []
        batch.seal()
        assert sorted(batch.names()) == ["vda.fleece", "vdb.fleece"]
        assert _content(batch.open("vda.fleece")) == b"vda.fleece"
        assert backend.listing().deltas == []
        batch.commit("000001-aa")
        assert sorted(backend.listing().deltas) == [_ONE, _TWO]
        assert _read(backend, _TWO) == b"vdb.fleece"
        assert backend.left("web") == []

    def test_a_batch_has_each_object_once(self, backend: Backend) -> None:
        """The first one stays."""
        backend.create(b"marker")
        batch = backend.batch("web", "aa")
        batch.create("vda.fleece").write(b"first")
        with _refused():
            batch.create("vda.fleece")
        batch.seal()
        assert _content(batch.open("vda.fleece")) == b"first"
        batch.discard()

    def test_what_a_batch_has_not_cannot_be_read(self, backend: Backend) -> None:
        """It is told as what no delta is."""
        backend.create(b"marker")
        batch = backend.batch("web", "aa")
        assert (batch.name, bool(batch.where)) == ("aa", True)
        batch.create("vda.fleece").write(b"x")
        batch.seal()
        with _refused(DeltaError):
            batch.open("vdb.fleece").close()
        batch.discard()

    def test_nothing_is_added_to_what_is_sealed(self, backend: Backend) -> None:
        """What was proven is what is seen."""
        backend.create(b"marker")
        batch = backend.batch("web", "aa")
        made = batch.create("vda.fleece")
        made.write(b"whole")
        batch.seal()
        _takes_no_more(made)
        batch.commit("000001-aa")
        assert _read(backend, _ONE) == b"whole"
        draft = _draft(lambda: backend.replace(_ONE), b"other")
        _takes_no_more(draft.sink)
        draft.place(_ONE)
        assert _read(backend, _ONE) == b"other"

    def test_points_that_are_begun_ahead_are_seen_in_turn(self, backend: Backend) -> None:
        """Each by its own commit, of storages where that can be."""
        if not (isinstance(backend, BeginsAhead) and backend.begins_ahead):
            raise unittest.SkipTest("a guest's points are begun one after the other")
        backend.create(b"marker")
        first, second = backend.batch("web", "aa"), backend.batch("web", "bb")
        for batch in (second, first):
            batch.create("vda.fleece").write(batch.name.encode())
            batch.seal()
        first.commit("000001-aa")
        assert backend.listing().deltas == [_ONE]
        second.commit("000002-bb")
        assert _read(backend, _ONE) == b"aa"
        assert _read(backend, "web/000002-bb/vda.fleece") == b"bb"

    def test_two_batches_of_one_name_never_mix(self, backend: Backend) -> None:
        """The second one is refused, or is another."""
        backend.create(b"marker")
        first = backend.batch("web", "aa")
        first.create("vda.fleece").write(b"first")
        with contextlib.suppress(StoreError):
            second = backend.batch("web", "aa")
            second.create("vda.fleece").write(b"second")
            second.seal()
            second.discard()
        first.seal()
        first.commit("000001-aa")
        assert _read(backend, _ONE) == b"first"

    def test_a_point_never_replaces_another(self, backend: Backend) -> None:
        """The one that is there stays as it is."""
        backend.create(b"marker")
        _point(backend, data=b"first")
        with _refused():
            _point(backend, data=b"second")
        assert _read(backend, _ONE) == b"first"
        assert backend.listing().deltas == [_ONE]

    def test_a_batch_that_was_left_can_be_resumed(self, backend: Backend) -> None:
        """What was synced is there; the rest may be cut off. Or it can be discarded alone."""
        backend.create(b"marker")
        made = backend.batch("web", "aa").create("vda.fleece")
        made.write(b"proven, and not proven")
        made.sync()
        if not self.resumes:
            for left in backend.left("web"):
                assert left.names() == []
                left.discard()
            assert backend.left("web") == []
            return
        (left,) = backend.left("web")
        assert (left.name, left.names()) == ("aa", ["vda.fleece"])
        assert _content(left.open("vda.fleece")) == b"proven, and not proven"
        left.reopen("vda.fleece", 6).write(b"!")
        left.seal()
        left.commit("000001-aa")
        assert _read(backend, _ONE) == b"proven!"

    def test_a_batch_that_is_discarded_leaves_nothing(self, backend: Backend) -> None:
        """And its name is free again; other guests' batches stay."""
        backend.create(b"marker")
        other = backend.batch("db", "bb")
        other.create("vda.fleece").write(b"other")
        batch = backend.batch("web", "aa")
        batch.create("vda.fleece").write(b"x")
        batch.discard()
        assert backend.left("web") == []
        assert backend.listing().deltas == []
        _point(backend)
        other.seal()
        other.commit("000001-bb")
        assert _read(backend, "db/000001-bb/vda.fleece") == b"other"

    def test_a_sealed_batch_that_was_left_is_never_seen(self, backend: Backend) -> None:
        """Its writer was killed before the commit: it is left, and can be discarded."""
        backend.create(b"marker")
        batch = backend.batch("web", "aa")
        batch.create("vda.fleece").write(b"whole")
        batch.seal()
        assert backend.listing().deltas == []
        with backend.lock("web", "web"):
            (left,) = backend.left("web")
            left.discard()
            assert backend.left("web") == []
        _point(backend)
        assert _read(backend, _ONE) == b"content"

    def test_a_point_is_dropped_with_all_that_is_fleeces(self, backend: Backend) -> None:
        """Its deltas and what lies beside them; no other point."""
        backend.create(b"marker")
        _point(backend, more="vdb.fleece")
        _point(backend, "web/000002-bb/vda.fleece")
        backend.put(_NOTE, b"x")
        opened = backend.open(_ONE)
        assert backend.writable("web")
        assert backend.writable("web/000001-aa")
        assert [*backend.drop("web/000001-aa")] == []
        assert backend.listing().deltas == ["web/000002-bb/vda.fleece"]
        assert not backend.has(_NOTE)
        with contextlib.suppress(StoreError):
            assert opened.read_at(0, 7) == b"content"
        opened.close()

    # ---- single objects ----------------------------------------------------------------------

    def test_a_replacement_takes_its_place_at_once(self, backend: Backend) -> None:
        """Until then the old one is seen; who has that open never reads a mixture."""
        backend.create(b"marker")
        _point(backend, data=b"old content")
        opened = backend.open(_ONE)
        draft = _draft(lambda: backend.replace(_ONE), b"the new one")
        assert _content(draft.open()) == b"the new one"
        assert (_read(backend, _ONE), backend.listing().deltas) == (b"old content", [_ONE])
        draft.place(_ONE)
        assert (_read(backend, _ONE), backend.listing().deltas) == (b"the new one", [_ONE])
        with contextlib.suppress(StoreError):
            assert opened.read_at(0, 11) == b"old content"
        opened.close()
        draft.discard()
        assert _read(backend, _ONE) == b"the new one"

    def test_a_replacement_that_is_discarded_changes_nothing(self, backend: Backend) -> None:
        """The old one stays, and nothing is left to be cleaned up."""
        backend.create(b"marker")
        _point(backend, data=b"old")
        _draft(lambda: backend.replace(_ONE), b"new").discard()
        assert _read(backend, _ONE) == b"old"
        assert [*backend.tidy(["web/000001-aa"])] == []

    def test_what_killed_writers_left_is_cleaned_up_once(self, backend: Backend) -> None:
        """It was never seen; each is told."""
        backend.create(b"marker")
        _point(backend, data=b"old")
        _draft(lambda: backend.replace(_ONE), b"new")
        assert backend.listing().deltas == [_ONE]
        assert len(backend.tidy(["web/000001-aa"])) == 1
        assert [*backend.tidy(["web/000001-aa"])] == []
        assert _read(backend, _ONE) == b"old"

    def test_what_is_spooled_and_has_no_place_goes(self, backend: Backend) -> None:
        """Nobody sees it meanwhile."""
        backend.create(b"marker")
        with backend.spool() as draft:
            draft.sink.write(b"incoming")
            draft.sink.sync()
            assert _content(draft.open()) == b"incoming"
            assert backend.listing().deltas == []
            assert backend.has(draft.key)
        assert not backend.has(draft.key)
        assert backend.listing().deltas == []

    def test_what_killed_writers_spooled_goes_first(self, backend: Backend) -> None:
        """But not what another one spools."""
        backend.create(b"marker")

        def spool() -> Iterator[bytes]:
            again = self.reopened(backend)
            with again.lock("web", "web"), again.spool() as draft:
                draft.sink.write(b"left")
                draft.sink.sync()
                yield draft.key.encode()

        with backend.spool() as living:
            living.sink.write(b"incoming")
            living.sink.sync()
            left = _killed(spool()).decode()
            assert left
            with backend.lock("web", "web", Patience(300)), backend.spool():
                assert not backend.has(left)
                assert backend.has(living.key)

    def test_what_is_spooled_gets_a_place_that_must_be_free(self, backend: Backend) -> None:
        """In a point of its own, or beside another disk's delta."""
        backend.create(b"marker")
        for key in (_ONE, _TWO):
            with backend.spool() as draft:
                draft.sink.write(key.encode())
                draft.sink.sync()
                draft.place(key)
        with backend.spool() as draft:
            draft.sink.write(b"another")
            draft.sink.sync()
            with _refused():
                draft.place(_ONE)
        assert sorted(backend.listing().deltas) == [_ONE, _TWO]
        assert _read(backend, _ONE) == _ONE.encode()

    # ---- locks -------------------------------------------------------------------------------

    def test_a_guest_has_one_writer(self, backend: Backend) -> None:
        """Others are refused at once, other guests are free, and the next one gets it."""
        backend.create(b"marker")
        with backend.lock("web", "web"):
            with _refused(), backend.lock("web", "web"):
                pass
            with backend.lock("db", "db"):
                pass
        with contextlib.suppress(ZeroDivisionError), backend.lock("web", "web"):
            raise ZeroDivisionError
        with backend.lock("web", "web"):
            pass

    def test_who_is_patient_gets_the_lock_when_it_is_free(self, backend: Backend) -> None:
        """The waiting ends when the holder lets go."""
        backend.create(b"marker")
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with backend.lock("web", "web"):
                held.set()
                release.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        threading.Timer(0.3, release.set).start()
        with backend.lock("web", "web", Patience(300)):
            assert release.is_set()
        holder.join()

    def test_waiting_for_a_lock_ends(self, backend: Backend) -> None:
        """When it was long enough, and when nobody wants it any more."""
        backend.create(b"marker")
        cancel = CancelToken()
        cancel.cancel()
        with backend.lock("web", "web"):
            with _refused(Interrupted), backend.lock("web", "web", Patience(300, cancel)):
                pass
            with _refused(), backend.lock("web", "web", Patience(0.01)):
                pass

    # ---- what only some can do ---------------------------------------------------------------

    def test_what_is_held_is_kept_until_that_ends(self, backend: Backend) -> None:
        """Of storages that can keep objects; the others keep none, and fail nothing."""
        if not isinstance(backend, Retains):
            raise unittest.SkipTest("it keeps nothing from anybody")
        backend.create(b"marker")
        _point(backend, more="vdb.fleece")
        backend.retain([_ONE])
        assert backend.kept([_ONE, _TWO]) == {}
        backend.hold([_ONE], on=True)
        held = backend.kept([_ONE, _TWO])
        assert held in ({}, {_ONE: Kept(held=True)})
        backend.hold([_ONE], on=False)
        assert backend.kept([_ONE, _TWO]) == {}
        if held:
            _point(backend.retaining(1), "web/000002-bb/vda.fleece")
            backend.listing()
            kept = backend.kept([_ONE, "web/000002-bb/vda.fleece"])
            assert [*kept] == ["web/000002-bb/vda.fleece"]
            assert kept["web/000002-bb/vda.fleece"].until is not None

    def test_what_engines_did_is_accounted_for(self, backend: Backend) -> None:
        """Of storages that know what was put into them."""
        if not isinstance(backend, Accounts):
            raise unittest.SkipTest("it keeps no accounts")
        backend.create(b"marker")
        _point(backend, more="vdb.fleece")
        _point(backend, "web/000002-bb/vda.fleece")
        _draft(lambda: backend.replace(_ONE), b"new").place(_ONE)
        backend.drop("web/000002-bb")
        backend.listing()
        assert [*backend.unaccounted()] == []
