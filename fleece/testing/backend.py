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
import threading
from collections.abc import Callable, Iterator

from fleece.delta.blob import Blob
from fleece.errors import DeltaError, StoreError
from fleece.store.backend import Backend, Draft, Patience
from fleece.store.errors import Gone

_MARKER = "fleece-store.json"
_ONE = "web/000001-aa/vda.fleece"
_TWO = "web/000001-aa/vdb.fleece"
_NOTE = "web/000001-aa/note.pin.json"


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


class BackendContract:
    """Each method is one promise, or a few that belong together.

    Attributes:
        resumes: batches that killed writers left can be gone on with, and not only discarded.
    """

    resumes = True

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

    def test_an_object_that_is_not_there_is_told(self, backend: Backend) -> None:
        """Opened, or asked for its stamp."""
        backend.create(b"marker")
        with _refused(DeltaError):
            backend.open(_ONE).close()
        with _refused(Gone):
            backend.stamp(_ONE)
        assert not backend.has(_ONE)

    def test_a_stamp_changes_whenever_the_content_does(self, backend: Backend) -> None:
        """And only then."""
        backend.create(b"marker")
        _point(backend)
        before = backend.stamp(_ONE)
        assert backend.stamp(_ONE) == before
        _draft(lambda: backend.replace(_ONE), b"CONTENT").place(_ONE)
        assert backend.stamp(_ONE) != before

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

    def test_a_batch_that_was_left_can_be_gone_on_with(self, backend: Backend) -> None:
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
        assert backend.writable("web")
        assert backend.writable("web/000001-aa")
        assert [*backend.drop("web/000001-aa")] == []
        assert backend.listing().deltas == ["web/000002-bb/vda.fleece"]
        assert not backend.has(_NOTE)

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
