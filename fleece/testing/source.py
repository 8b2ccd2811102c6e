"""The tests that every source must pass (`fleece.source.base`), whoever wrote it.

Derive a class whose name begins with `Test`, with a pytest fixture `guest` that gives a guest of
its own to each test::

    class TestMine(SourceContract):
        @pytest.fixture
        def guest(self, tmp_path):
            with my_guest(tmp_path) as made:
                yield made
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import unittest
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from fleece.cancel import CancelToken
from fleece.disk.nbd import NbdDisk
from fleece.engine.backup.embed import dirty_extents
from fleece.engine.backup.options import BackupOptions
from fleece.engine.backup.pull import open_export
from fleece.engine.backup.run import backup
from fleece.engine.restore.image import restore
from fleece.engine.work.part import parts
from fleece.engine.work.reads import OneReader
from fleece.errors import PointError, SourceError, UsageError
from fleece.extents import Extents, Gathering
from fleece.nbd.sink import NbdSink
from fleece.source.base import (
    Disk,
    Export,
    HeldElsewhere,
    KeepsBitmaps,
    MayLackGuest,
    PushFeed,
    Request,
    Resumable,
    Since,
    Source,
    TellsMachine,
    Transport,
    TransportWish,
    Unknown,
    Wanted,
)
from fleece.store.init import init

_CHAIN = "c0ffee00"
_OTHER = "c0ffee01"
_LEAF = 64 * 1024
_LIMIT = 60.0
"""Seconds until a source that should push counts as one that does not."""


class ContractGuest(Protocol):
    """A guest with at least one writable disk of 512 KiB or more, and somebody who writes to it.

    Attributes:
        runs: it can write while a point of it lives. Else nobody writes then.
    """

    runs: bool

    def open(self) -> Source:
        """A new source of the guest."""

    def open_beside(self) -> Source:
        """The same, while another one is open."""

    def write(self, disk: str, offset: int, data: bytes) -> None:
        """Have the guest write whole sectors of 512 bytes; it is done when this returns."""

    def content(self, disk: str) -> bytes:
        """All of a disk as the guest sees it now."""


@contextlib.contextmanager
def _refused(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"none of {', '.join(kind.__name__ for kind in kinds)} was raised")


def _id(sequence: int) -> str:
    return f"{sequence:010x}"


def _disks(source: Source) -> Sequence[Disk]:
    return source.inventory().choose(())


def _request(source: Source, sequence: int, *, rotate: bool = True) -> Request:
    """All disks, as a whole."""
    wanted = [Wanted(disk, None) for disk in _disks(source)]
    return Request(_CHAIN, sequence, _id(sequence), wanted, rotate)


def _since(source: Source, disk: Disk, sequence: int) -> Since | Unknown:
    return source.known_since(disk, _CHAIN, sequence, _id(sequence))


def _known(source: Source, sequence: int) -> tuple[Disk, Since]:
    """The first disk, and what is known of it since a point.

    Raises:
        SkipTest: nothing ever is of such a source.
    """
    disk = _disks(source)[0]
    known = _since(source, disk, sequence)
    if isinstance(known, Unknown):
        assert known.reason
        raise unittest.SkipTest(f"it never knows what was written: {known.reason}")
    return disk, known


def _still_known(source: Source, sequence: int) -> tuple[Disk, Since]:
    """As `_known`, of a source that has known something before."""
    disk = _disks(source)[0]
    known = _since(source, disk, sequence)
    assert isinstance(known, Since)
    return disk, known


def _read(export: Export, start: int = 0) -> bytes:
    disk: NbdDisk = open_export(export)
    with contextlib.closing(OneReader()) as one:
        return bytes(one.of(disk).read(start, export.size - start))


def _guest(source: Source) -> str | None:
    """Whose disks they are, or None: the user must say it."""
    try:
        name = source.guest()
    except UsageError:
        return None
    assert name
    return name


def _committed(source: Source, sequence: int) -> dict[str, bytes]:
    """Take a point that another can build on; gives its disks."""
    with source.take(_request(source, sequence)) as point:
        found = {export.disk: _read(export) for export in point.exports}
        point.check()
        point.close()
        assert not point.committed()
    return found


def _first(source: Source, sequence: int) -> Request:
    """The first disk alone, as a whole."""
    return Request(_CHAIN, sequence, _id(sequence), [Wanted(_disks(source)[0], None)])


def _interrupted(guest: ContractGuest, sequence: int) -> None:
    """A process of its own takes a point of the first disk, and is gone: no context ends."""
    child = os.fork()
    if child == 0:
        try:
            source = guest.open()
            with source.take(_first(source, sequence)):
                os._exit(0)
        finally:
            os._exit(1)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == 0, "no point could be taken"


def _pushing(source: Source) -> Disk:
    """The first disk.

    Raises:
        SkipTest: the source does not push.
    """
    disks = _disks(source)
    try:
        source.transport(TransportWish.PUSH, disks[:1])
    except (UsageError, PointError) as error:
        raise unittest.SkipTest(f"it does not push: {error}") from error
    return disks[0]


class _Receiver:
    """Takes what is pushed of one disk, and notes where it belongs. Use `close`.

    Args:
        feed: that was not started yet.
        size: of the disk, in bytes.

    Attributes:
        begun: something has come.
    """

    def __init__(self, feed: PushFeed, size: int) -> None:
        self.begun = threading.Event()
        self._came = Gathering()
        self._sink = NbdSink(feed.socket, [size], 1)
        feed.end_sink = self._sink.end
        self._sink.wait(CancelToken())
        self._serving = threading.Thread(target=self._serve)
        self._serving.start()

    def _serve(self) -> None:
        for channel in self._sink.channels:
            for request in channel.requests():
                self._came.add(request.offset, request.offset + request.length)
                self.begun.set()
                channel.answer(True)

    def close(self) -> Extents:
        """End it; gives what came."""
        self._sink.end()
        self._serving.join()
        self._sink.close()
        return self._came.extents()


def _received(feed: PushFeed, size: int) -> Extents:
    """Have all of a point's one disk pushed; gives what came."""
    with contextlib.closing(_Receiver(feed, size)) as receiver:
        feed.start()
        assert receiver.begun.wait(_LIMIT), "nothing was pushed"
        while not feed.done():
            threading.Event().wait(0.01)
        feed.end()
        return receiver.close()


class SourceContract:
    """Each method is one promise, or a few that belong together.

    Attributes:
        one_at_a_time: the point of one chain keeps those of others from being taken. So what is
            left of it goes, whichever chain is cleaned up.
    """

    one_at_a_time = False

    # ---- what it tells of the guest ----

    def test_it_tells_of_itself_and_of_the_guest(self, guest: ContractGuest) -> None:
        """The same again when it is opened again; what knows no guest's name says so."""
        with guest.open() as first:
            assert first.where
            told = _guest(first), first.identity(), dict(first.producer())
            assert all(name and version for name, version in first.producer().items())
            first.check_needs()
            first.check_ready()
        with guest.open() as second:
            assert (_guest(second), second.identity(), dict(second.producer())) == told
            if isinstance(second, MayLackGuest) and second.lacks_guest:
                assert second.identity() is None
            assert all(second.doubts)

    def test_it_may_be_closed_again(self, guest: ContractGuest) -> None:
        """And its context ends all the same."""
        source = guest.open()
        with source as itself:
            assert itself is source
            source.close()
        source.close()

    def test_disks_have_names_of_their_own_and_their_sizes(self, guest: ContractGuest) -> None:
        """As the guest sees them."""
        with guest.open() as source:
            disks = source.inventory().disks
            assert len({disk.name for disk in disks}) == len(disks)
            for disk in _disks(source):
                assert disk.size == len(guest.content(disk.name))
                assert not disk.read_only
            for disk in disks:
                if disk.read_only:
                    with _refused(PointError):
                        source.inventory().choose((disk.name,))

    def test_disks_are_chosen_by_name(self, guest: ContractGuest) -> None:
        """In the order asked for; what cannot be is refused."""
        with guest.open() as source:
            inventory = source.inventory()
            names = tuple(disk.name for disk in inventory.choose(()))[::-1]
            assert tuple(disk.name for disk in inventory.choose(names)) == names
            with _refused(PointError):
                inventory.choose(("no such disk",))
            with _refused(UsageError):
                inventory.choose((names[0], names[0]))

    # ---- points ----

    def test_a_point_has_an_export_of_each_disk_asked_for(self, guest: ContractGuest) -> None:
        """In that order, and all of it is to be read."""
        with guest.open() as source, source.take(_request(source, 1)) as point:
            disks = _disks(source)
            assert [export.disk for export in point.exports] == [disk.name for disk in disks]
            assert [export.size for export in point.exports] == [disk.size for disk in disks]
            assert all(export.dirty_context is None for export in point.exports)
            assert point.push is None
            assert point.granularity % 512 == 0
            assert point.stuck is None
            assert all(point.warnings)
            point.close()
            request = Request(_CHAIN, 2, _id(2), [Wanted(disk, None) for disk in disks[::-1]])
            with source.take(request) as other:
                named = [export.disk for export in other.exports]
                assert named == [disk.name for disk in disks[::-1]]

    def test_an_export_shows_the_disk_of_the_point(self, guest: ContractGuest) -> None:
        """Whatever the guest writes meanwhile."""
        with guest.open() as source:
            before = {disk.name: guest.content(disk.name) for disk in _disks(source)}
            with source.take(_request(source, 1)) as point:
                if guest.runs:
                    for name in before:
                        guest.write(name, 0, b"later..." * 512)
                point.watch()
                assert {export.disk: _read(export) for export in point.exports} == before
                point.check()

    def test_a_point_may_be_closed_again(self, guest: ContractGuest) -> None:
        """And its context ends all the same."""
        with guest.open() as source:
            with source.take(_request(source, 1)) as point:
                export = point.exports[0]
                point.close()
                if not isinstance(source, HeldElsewhere):
                    with _refused(SourceError):
                        _read(export)
                point.close()
            with source.take(_request(source, 2)) as again:
                again.check()

    def test_giving_back_what_was_read_harms_nothing(self, guest: ContractGuest) -> None:
        """What was not given back is still that of the point."""
        with guest.open() as source, source.take(_request(source, 1)) as point:
            export = point.exports[0]
            expected = guest.content(export.disk)
            half = export.size // 2 // _LEAF * _LEAF
            given = export.disk, Extents.of([(0, half)])
            giving = threading.Thread(target=point.reclaim, args=given)  # as a worker of the engine
            giving.start()
            giving.join()
            assert not point.scarce or point.reclaims
            assert _read(export, half) == expected[half:]
            point.check()

    def test_how_it_comes_out_is_said_before(self, guest: ContractGuest) -> None:
        """Pulled, there are exports; pushed, there is who pushes; or it is refused."""
        with guest.open() as source:
            disks = _disks(source)
            for wish in TransportWish:
                try:
                    chosen = source.transport(wish, disks)
                except (UsageError, PointError):
                    continue
                assert (chosen.reason is None) == (chosen.transport is Transport.PULL)
                wanted = [Wanted(disk, None) for disk in disks]
                request = Request(_CHAIN, 1, _id(1), wanted, transport=chosen.transport)
                with source.take(request) as point:
                    assert (point.push is None) == (chosen.transport is Transport.PULL)
                    assert bool(point.exports) == (chosen.transport is Transport.PULL)

    # ---- what was written since ----

    def test_of_a_point_that_never_was_nothing_is_known(self, guest: ContractGuest) -> None:
        """And it is said why."""
        with guest.open() as source:
            for disk in _disks(source):
                found = _since(source, disk, 1)
                assert isinstance(found, Unknown)
                assert found.reason
            assert source.highest_sequence(_CHAIN, _disks(source)) == 0

    def test_what_is_not_tracked_is_never_known(self, guest: ContractGuest) -> None:
        """Of sources whose points others begin and end."""
        with guest.open() as source:
            if not isinstance(source, HeldElsewhere) or source.tracked:
                raise unittest.SkipTest("it may know what was written")
            _committed(source, 1)
            assert all(isinstance(_since(source, disk, 1), Unknown) for disk in _disks(source))

    def test_what_is_known_is_of_one_chain_and_one_point(self, guest: ContractGuest) -> None:
        """Another chain's, or another point of the same sequence, is unknown."""
        with guest.open() as source:
            _committed(source, 3)
            disk, _ = _known(source, 3)
            assert source.highest_sequence(_CHAIN, [disk]) == 3
            assert source.highest_sequence(_OTHER, [disk]) == 0
            assert isinstance(source.known_since(disk, _OTHER, 3, _id(3)), Unknown)
            assert isinstance(source.known_since(disk, _CHAIN, 3, _id(4)), Unknown)
            assert isinstance(source.known_since(disk, _CHAIN, 2, _id(2)), Unknown)

    def test_what_changed_since_a_point_is_dirty(self, guest: ContractGuest) -> None:
        """All of it; what is not dirty is as it was."""
        with guest.open() as source:
            before = _committed(source, 1)
            disk, _ = _known(source, 1)
            guest.write(disk.name, 2 * _LEAF + 512, b"new....." * 512)
            self._check_dirty(source, 1, before[disk.name], guest.content(disk.name))

    def test_how_much_changed_is_guessed_until_now(self, guest: ContractGuest) -> None:
        """No more than the disk has; it grows by what is written, or nobody ever tells."""
        with guest.open() as source:
            _committed(source, 1)
            disk, before = _known(source, 1)
            guest.write(disk.name, 2 * _LEAF, b"new....." * 512)
            _, after = _still_known(source, 1)
            assert 0 <= before.changed <= after.changed <= disk.size
            assert after.changed == 0 or after.changed >= before.changed + 4096

    def test_what_changed_before_a_failed_point_is_dirty_too(self, guest: ContractGuest) -> None:
        """A point that was not committed takes nothing away."""
        with guest.open() as source:
            before = _committed(source, 1)
            disk, _ = _known(source, 1)
            guest.write(disk.name, 0, b"one....." * 512)
            with source.take(_request(source, 2)):
                pass
            disk, _ = _still_known(source, 1)
            guest.write(disk.name, 4 * _LEAF, b"two....." * 512)
            self._check_dirty(source, 1, before[disk.name], guest.content(disk.name))

    def test_a_committed_point_lets_older_ones_go(self, guest: ContractGuest) -> None:
        """Only the newest can be built on, unless an older one is to be kept."""
        with guest.open() as source:
            _committed(source, 1)
            _known(source, 1)
            with source.take(_request(source, 2)) as point:
                point.close()
                assert not point.committed(oldest=1)
            _still_known(source, 1)
            _still_known(source, 2)
            _committed(source, 3)
            disk, _ = _still_known(source, 3)
            assert isinstance(_since(source, disk, 1), Unknown)

    def test_a_point_that_is_only_looked_at_changes_nothing(self, guest: ContractGuest) -> None:
        """Without `rotate` all is known as before, and nothing of the point itself."""
        with guest.open() as source:
            _committed(source, 1)
            kept = [_since(source, disk, 1) for disk in _disks(source)]
            with source.take(_request(source, 2, rotate=False)) as point:
                point.check()
            assert [_since(source, disk, 1) for disk in _disks(source)] == kept
            assert all(isinstance(_since(source, d, 2), Unknown) for d in _disks(source))

    def _check_dirty(self, source: Source, since: int, before: bytes, now: bytes) -> None:
        disk, known = _still_known(source, since)
        request = Request(_CHAIN, since + 5, _id(since + 5), [Wanted(disk, known)])
        with source.take(request) as point:
            (export,) = point.exports
            assert _read(export) == now
            dirty = [(start, end) for start, end, _ in dirty_extents(export)]
            point.check()
        unchanged, last = bytearray(), 0
        shown = bytearray()
        for start, end in [*dirty, (len(now), len(now))]:
            unchanged += before[last:start]
            shown += now[last:start]
            last = end
        assert dirty
        assert sum(end - start for start, end in dirty) < len(now)
        assert unchanged == shown

    # ---- what interrupted runs left ----

    def test_where_nothing_was_left_nothing_is_removed(self, guest: ContractGuest) -> None:
        """Of no chain, and no guest is let go."""
        with guest.open() as source:
            assert not list(source.release())
            assert not list(source.recover())
            assert not list(source.recover(_CHAIN))

    def test_a_living_point_is_left_alone(self, guest: ContractGuest) -> None:
        """By another run that cleans up."""
        with guest.open() as source, source.take(_request(source, 1)) as point:
            expected = guest.content(point.exports[0].disk)
            with guest.open_beside() as other:
                assert not list(other.release())
                assert not list(other.recover())
            assert _read(point.exports[0]) == expected
            point.check()

    def test_what_an_interrupted_run_left_is_removed(self, guest: ContractGuest) -> None:
        """All of its chain, and no more: what was known since an older point is known."""
        with guest.open() as source:
            before = _committed(source, 1)
            known = [isinstance(_since(source, disk, 1), Since) for disk in _disks(source)]
        _interrupted(guest, 2)
        with guest.open() as source:
            list(source.release())
            others = list(source.recover(_OTHER))
            assert self.one_at_a_time or not others
            removed = list(source.recover(_CHAIN))
            assert all(one.kind and one.item for one in removed)
            assert not list(source.recover())
            assert known == [isinstance(_since(source, d, 1), Since) for d in _disks(source)]
            assert _committed(source, 3) == before

    def test_the_point_of_an_interrupted_run_is_resumed(self, guest: ContractGuest) -> None:
        """It shows the disks of then."""
        with guest.open() as source:
            if not isinstance(source, Resumable) or source.unresumable() is not None:
                raise unittest.SkipTest("it resumes nothing")
            name = _disks(source)[0].name
        before = guest.content(name)
        _interrupted(guest, 1)
        if guest.runs:
            guest.write(name, 0, b"later..." * 512)
        with guest.open() as source:
            assert isinstance(source, Resumable)
            with source.adopt(_first(source, 1)) as point:
                (export,) = point.exports
                assert (export.disk, _read(export)) == (name, before)
                point.check()
                point.close()
                assert not point.committed()
            assert not list(source.recover())

    def test_a_point_that_is_not_there_is_not_resumed(self, guest: ContractGuest) -> None:
        """Only of sources whose points outlive a run."""
        with guest.open() as source:
            if not isinstance(source, Resumable):
                raise unittest.SkipTest("it resumes nothing")
            reason = source.unresumable()
            assert reason is None or reason
            with _refused(PointError), source.adopt(_request(source, 1)):
                pass
            assert not list(source.recover())

    # ---- bitmaps ----

    def test_bitmaps_are_listed_and_dropped(self, guest: ContractGuest) -> None:
        """Without them nothing is known any more; dropping one again is fine."""
        with guest.open() as source:
            if not isinstance(source, KeepsBitmaps):
                raise unittest.SkipTest("it keeps no bitmaps")
            source.check_present()
            assert not source.bitmaps()
            with source.take(_request(source, 1)) as point:
                assert source.has_point(_CHAIN)
                assert not source.has_point(_OTHER)
                point.close()
                point.committed()
            assert not source.has_point(_CHAIN)
            kept = source.bitmaps()
            known = [d.name for d in _disks(source) if isinstance(_since(source, d, 1), Since)]
            assert known
            assert [bitmap.disk for bitmap in kept] == sorted(known)
            for bitmap in kept:
                found = bitmap.chain_id, bitmap.sequence, bitmap.point, bitmap.own
                assert found == (_CHAIN, 1, _id(1), True)
                source.drop_bitmap(bitmap.disk, bitmap.name)
                source.drop_bitmap(bitmap.disk, bitmap.name)
            assert not source.bitmaps()
            assert all(isinstance(_since(source, d, 1), Unknown) for d in _disks(source))

    def test_a_point_whose_bitmaps_are_gone_is_impossible(self, guest: ContractGuest) -> None:
        """They went after it was looked at. The next one is taken."""
        with guest.open() as source:
            if not isinstance(source, KeepsBitmaps):
                raise unittest.SkipTest("it keeps no bitmaps")
            _committed(source, 1)
            disk, known = _known(source, 1)
            for bitmap in source.bitmaps():
                source.drop_bitmap(bitmap.disk, bitmap.name)
            assert isinstance(source.known_since(disk, _CHAIN, 1, _id(1)), Since | Unknown)
            request = Request(_CHAIN, 2, _id(2), [Wanted(disk, known)])
            with _refused(PointError), source.take(request):
                pass
            assert not list(source.recover())
            assert isinstance(_since(source, _disks(source)[0], 1), Unknown)
            _committed(source, 3)
            _still_known(source, 3)

    def test_bitmaps_are_in_order(self, guest: ContractGuest) -> None:
        """By disk, then the oldest first."""
        with guest.open() as source:
            if not isinstance(source, KeepsBitmaps):
                raise unittest.SkipTest("it keeps no bitmaps")
            for sequence in (1, 2):
                with source.take(_request(source, sequence)) as point:
                    point.close()
                    assert not point.committed(oldest=1)
            shown = [(bitmap.disk, bitmap.sequence) for bitmap in source.bitmaps()]
            assert shown
            assert shown == [
                (disk, n) for disk in sorted({disk for disk, _ in shown}) for n in (1, 2)
            ]

    # ---- the machine ----

    def test_the_machine_is_told_and_stored(self, guest: ContractGuest) -> None:
        """The same again, if nothing changed, which costs nothing; what cannot be told is said."""
        with tempfile.TemporaryDirectory() as folder, guest.open() as source:
            store = init(Path(folder, "store"))
            before = None
            for number in (1, 2):
                with source.take(_request(source, number)) as point:
                    if not isinstance(point, TellsMachine):
                        raise unittest.SkipTest("it tells no machine")
                    told = point.machine()
                kinds = [part.kind for part in told.parts]
                assert len(set(kinds)) == len(kinds)
                assert all(told.missing)
                assert before in (None, told)
                before = told
                result = backup(source, store, BackupOptions(guest="contract"))
                assert result.parts == tuple(part.name for part in told.parts)
                assert {*parts(store, result.point)} == {*told.parts}
                for entry in store.catalogue().find(result.point).parts.values():
                    held = entry.data_bytes + entry.zero_bytes
                    assert held == (entry.header.size if number == 1 else 0)

    # ---- the engine ----

    def test_backups_of_it_are_exact(self, guest: ContractGuest) -> None:
        """The first, and one after more was written."""
        with tempfile.TemporaryDirectory() as folder:
            store = init(Path(folder, "store"))
            for turn in range(2):
                with guest.open() as source:
                    names = [disk.name for disk in _disks(source)]
                    result = backup(source, store, BackupOptions(guest="contract"))
                for name in names:
                    target = Path(folder, f"{turn}-{names.index(name)}.raw")
                    restore(store, result.point, name, str(target))
                    assert target.read_bytes() == guest.content(name)
                    guest.write(name, _LEAF, b"more...." * 512)

    def test_it_pushes_what_has_to_come(self, guest: ContractGuest) -> None:
        """No leaf more, none less: all of a disk, then what changed. It says how much before."""
        with guest.open() as source:
            for number in (1, 2):
                disk = _pushing(source)
                known = _since(source, disk, 1)
                since = None if isinstance(known, Unknown) else known
                wanted = [Wanted(disk, since)]
                request = Request(_CHAIN, number, _id(number), wanted, transport=Transport.PUSH)
                with source.take(request) as point:
                    feed = point.push
                    assert feed is not None
                    (told,) = feed.dirty_bytes()
                    came = _received(feed, disk.size)
                    self._check_came(feed, came, told, disk.size)
                    point.check()
                    point.close()
                    point.committed()
                guest.write(disk.name, 2 * _LEAF, b"new....." * 512)

    def _check_came(self, feed: PushFeed, came: Extents, told: int | None, size: int) -> None:
        assert came.total == size if told is None else 0 <= told - came.total < _LEAF
        feed.check_received(0, came, size)
        first = Extents.of([(int(came.start[0]), int(came.start[0]) + _LEAF)])
        more = Extents.whole(size).subtract(came).clip(0, _LEAF)
        for wrong in (came.subtract(first), came.union(more)):
            if wrong != came:
                with _refused(PointError):
                    feed.check_received(0, wrong, size)

    def test_a_push_keeps_its_rate_and_lets_go_of_its_server(self, guest: ContractGuest) -> None:
        """At a byte a second it is not done; a point that ends first ends the server, and then it
        ends the push.
        """
        with guest.open() as source:
            disk = _pushing(source)
            wanted = [Wanted(disk, None)]
            request = Request(_CHAIN, 1, _id(1), wanted, transport=Transport.PUSH)
            with source.take(request) as point:
                feed = point.push
                assert feed is not None
                feed.rate = 1
                with contextlib.closing(_Receiver(feed, disk.size)):
                    end = feed.end_sink
                    done: list[bool] = []

                    def ended() -> None:
                        done.append(feed.done())
                        end()

                    feed.end_sink = ended
                    feed.start()
                    assert not any(feed.done() for _ in range(100))
                    point.close()
                    assert done[:1] == [False]

    def test_what_it_pushes_is_exact(self, guest: ContractGuest) -> None:
        """All of it, and then what changed; of sources that can push."""
        with tempfile.TemporaryDirectory() as folder:
            store = init(Path(folder, "store"))
            for turn in range(2):
                with guest.open() as source:
                    name = _pushing(source).name
                    options = BackupOptions(guest="contract", transport=TransportWish.PUSH)
                    result = backup(source, store, options)
                assert result.transport is Transport.PUSH
                target = Path(folder, f"{turn}.raw")
                restore(store, result.point, name, str(target))
                assert target.read_bytes() == guest.content(name)
                guest.write(name, _LEAF, b"more...." * 512)
