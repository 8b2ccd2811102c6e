"""What may not go: deltas that their storage keeps from everybody (`fleece.store.backend.Retains`).

A point that is kept keeps what it builds on readable: whoever makes it has that kept as long. Where
a storage can keep nothing, nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fleece.errors import StoreError
from fleece.store.backend import Accounts, Kept, Retains
from fleece.store.catalogue import Access, Catalogue, Entry, StoredPoint


def outlast(access: Access, entries: Sequence[Entry], known: Catalogue | None) -> None:
    """Have all that new deltas build on kept at least as long as they will be.

    Args:
        access: of the store.
        entries: the new ones, which nobody sees yet.
        known: the store's, with what they build on; None: nobody has read it.

    Raises:
        StoreError: that is not possible, or something that they build on is missing.
    """
    backend = access.backend
    building = [entry for entry in entries if entry.header.parent is not None]
    if isinstance(backend, Retains):
        if known is None and building:
            raise StoreError("nobody knows what it builds on", where=building[0].where)
        lines = [known.line(entry)[1:] for entry in building] if known is not None else []
        backend.retain(sorted({older.key for line in lines for older in line}))


def kept_points(catalogue: Catalogue, points: Sequence[StoredPoint]) -> Mapping[str, Kept]:
    """Those of some points that nobody can delete now, by id, and how long all of each is kept."""
    backend = catalogue.access.backend
    if not isinstance(backend, Retains):
        return {}
    mine = {entry.key: point.id for point in points for entry in _all(catalogue, point)}
    found: dict[str, Kept] = {}
    for key, kept in backend.kept(sorted(mine)).items():
        known = found.get(mine[key], Kept())
        until = max(filter(None, (known.until, kept.until)), default=None)
        found[mine[key]] = Kept(until, known.held or kept.held)
    return found


def check_free(catalogue: Catalogue, point: StoredPoint) -> None:
    """Raise `StoreError` if a point's deltas may not be replaced: those that are there stay."""
    kept = kept_points(catalogue, [point]).get(point.id)
    if kept is not None:
        raise StoreError(
            f"point {point.id} is {kept}: its deltas cannot be replaced",
            where=catalogue.where,
            hint="nothing was changed; what is pinned must be unpinned first",
        )


def hold(catalogue: Catalogue, point: StoredPoint) -> None:
    """Keep a point, and what it builds on, until `release`."""
    backend = catalogue.access.backend
    if isinstance(backend, Retains):
        backend.hold(sorted(_whole(catalogue, point)), on=True)


def release(catalogue: Catalogue, point: StoredPoint, others: Iterable[StoredPoint]) -> None:
    """End that, but for what other points, which are held too, have or build on."""
    backend = catalogue.access.backend
    if isinstance(backend, Retains):
        stays = {key for other in others for key in _whole(catalogue, other)}
        backend.hold(sorted(_whole(catalogue, point) - stays), on=False)


def unaccounted(catalogue: Catalogue) -> Sequence[StoreError]:
    """What somebody has hidden, overwritten or taken away, as far as the storage can tell."""
    backend = catalogue.access.backend
    return backend.unaccounted() if isinstance(backend, Accounts) else ()


def _all(catalogue: Catalogue, point: StoredPoint) -> list[Entry]:
    """A point's deltas, copies too."""
    return [copy for entry in point.deltas.values() for copy in catalogue.copies(entry)]


def _whole(catalogue: Catalogue, point: StoredPoint) -> set[str]:
    """Keys of a point's deltas and of all that they build on."""
    return {e.key for each in _all(catalogue, point) for e in catalogue.line(each)}
