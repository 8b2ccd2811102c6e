"""Take a delta that comes as a stream into a store, after every check that there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain
from fleece.delta.reader import DeltaReader
from fleece.engine.backup.identity import check_taken_in
from fleece.engine.check.verify import check_delta
from fleece.engine.work.pool import Counter
from fleece.errors import StoreError
from fleece.store.backend import Draft, NewObject, Patience
from fleece.store.catalogue import Catalogue, Entry
from fleece.store.store import Store

_PIECE = 1 << 20
_PATIENCE = 60.0
"""Seconds to wait for the guest's lock: the backup that wrote the stream may still hold it."""


@dataclass(frozen=True)
class ImportResult:
    """What was taken in.

    Attributes:
        point, guest, disk, root: of the delta.
        delta: where it is, for messages.
        stored_bytes: the file's length.
        already: the store had it.
        missing: disks and parts of the point that the store still lacks.
    """

    point: str
    guest: str
    disk: str
    root: str
    delta: str
    stored_bytes: int
    already: bool
    missing: tuple[str, ...]


def import_delta(
    store: Store,
    read: Callable[[int], bytes],
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
    *,
    adopt: bool = False,
) -> ImportResult:
    """Read a delta to its end, check every byte and all that it builds on, then store it.

    Args:
        store: takes it; it has the delta's hash and key (`init` can make it so: `like`).
        read: gives up to that many bytes, none at the end; `BinaryIO.read` does.
        listener: hears `Progress` and `Committed`.
        cancel: stops it; nothing is left.
        adopt: it joins the points of another guest.

    Raises:
        DeltaError: it is damaged, cut, no delta, or not protected as the store is.
        PointError: it is of another guest than the points of its guest's name.
        UsageError: there is nothing to adopt.
        StoreError: what it builds on is not in the store, or the store has another of its kind.
    """
    cancel = cancel or CancelToken()
    with store.spooled() as draft:
        _spool(draft.sink, read, cancel)
        with (
            store.access.read(draft.open()) as delta,
            store.locked(delta.header.guest, Patience(_PATIENCE, cancel)),
        ):
            return _take_in(store, draft, delta, listener, cancel, adopt)


def _take_in(
    store: Store,
    draft: Draft,
    delta: DeltaReader,
    listener: events.Listener,
    cancel: CancelToken,
    adopt: bool,
) -> ImportResult:
    catalogue = store.catalogue(delta.header.guest)
    entry = Entry.of(delta, draft.key)
    head = entry.header
    there = _deltas_of(catalogue, entry)
    held = there.get(head.disk)
    if held is None:
        check_taken_in(head, catalogue, adopt=adopt)
        parents = catalogue.line(entry)[1:]
        if parents:
            with catalogue.chain(parents[0]) as older:
                Chain([delta, *older.deltas])
                _check(delta, older, listener, cancel)
        else:
            _check(delta, None, listener, cancel)
        place = store.take_in(draft, entry, next(iter(there.values()), None), catalogue)
        listener(events.Committed(head.point.id))
    elif held.root == entry.root:
        place = held.where
    else:
        raise StoreError(
            f"holds another root ({held.root}) of point {head.point.id}, {head.what}, "
            f"than the stream ({entry.root})",
            where=held.where,
        )
    return ImportResult(
        point=head.point.id,
        guest=head.guest,
        disk=head.disk,
        root=entry.root,
        delta=place,
        stored_bytes=entry.stored_bytes,
        already=held is not None,
        missing=tuple(sorted({*head.disks, *head.parts} - {*there, head.disk})),
    )


def _spool(sink: NewObject, read: Callable[[int], bytes], cancel: CancelToken) -> None:
    try:
        while piece := read(_PIECE):
            cancel.check()
            view = memoryview(piece)
            while len(view):
                view = view[sink.write(view) :]
    except OSError as error:
        raise StoreError(f"the stream cannot be read ({error.strerror})") from error
    cancel.check()
    sink.sync()


def _deltas_of(catalogue: Catalogue, entry: Entry) -> dict[str, Entry]:
    """What the store has of the point already."""
    head = entry.header
    wanted = head.guest, head.chain, head.point.id
    return next((p.deltas for p in catalogue.points if (p.guest, p.chain, p.id) == wanted), {})


def _check(
    delta: DeltaReader, older: Chain | None, listener: events.Listener, cancel: CancelToken
) -> None:
    """Check the delta, to its last byte, against itself and against what it builds on."""
    counter = Counter(listener, events.Phase.IMPORT, delta.header.disk, delta.footer.data_bytes)
    check_delta(delta, older, counter, cancel)
