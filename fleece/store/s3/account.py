"""What a store in a bucket has not any more, or shows otherwise than it was made.

Fleece removes what a change has dropped, and never writes a key twice, nor lays a mark of a
deletion over anything that a point needs. So whatever else is found, somebody else did. Each
finding names the version that is to be removed first. No engine does: it is for the bucket's owner.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from fleece.errors import StoreError
from fleece.store.names import MARKER
from fleece.store.s3.client.answers import Version
from fleece.store.s3.client.problems import Denied
from fleece.store.s3.ledger import Ledger
from fleece.store.s3.names import COMMITS, DATA, change_key
from fleece.store.s3.view import View

_MARK = "remove the mark of its deletion (version {}): then it is there again"
_OVER = "remove what was put over it (version {}): its first version is still there"
_CHANGE = "no engine drops what is locked: remove the change (version {}), unless it was a prune's"

_Versions: TypeAlias = Mapping[str, Sequence[Version]]
"""By key below the prefix, the newest first."""


def unaccounted(ledger: Ledger) -> list[StoreError]:
    """What was hidden, overwritten or taken away, although no engine has dropped it.

    Another engine may drop a point between the requests of a listing: so what is found must be so
    in a second one.

    Raises:
        StoreError: the store cannot be listed.
    """
    if not ledger.listed:
        ledger.all()
    found = _look(ledger)
    if found:
        ledger.all()
        again = {str(error) for error in _look(ledger)}
        found = [error for error in found if str(error) in again]
    return found


def hidden_by(ledger: Ledger, key: str) -> StoreError | None:
    """What hides an object that is not there; None: nothing that can be seen."""
    with contextlib.suppress(StoreError):
        for each in ledger.versions.of(ledger.key(key)):
            if each.key == ledger.key(key) and each.deleted:
                hint = _MARK.format(each.version)
                return StoreError("was hidden by a deletion", where=ledger.name(key), hint=hint)
    return None


def _look(ledger: Ledger) -> list[StoreError]:
    versions, blind = _versions(ledger)
    found = [*blind, *_changed_objects(ledger, versions)]
    for view in ledger.views.values():
        found += _missing(ledger, view, versions)
        found += _dropped_though_locked(ledger, view, versions)
    return found


def _versions(ledger: Ledger) -> tuple[_Versions, list[StoreError]]:
    """All versions, where any are kept, and what keeps us from seeing those of locked points."""
    found: dict[str, list[Version]] = defaultdict(list)
    blind: list[StoreError] = []
    start = len(ledger.key(""))
    try:
        for each in ledger.versions.of(ledger.key("")):
            found[each.key[start:]].append(each)
    except Denied as error:
        blind.append(error)
    if ledger.retention.days and not (found or blind):
        what = "nobody can see here whether a point was hidden"
        hint = "that needs the rights s3:GetBucketVersioning and s3:ListBucketVersions"
        blind.append(Denied(what, where=ledger.where, hint=hint))
    return found, blind if ledger.retention.days else []


def _changed_objects(ledger: Ledger, versions: _Versions) -> Iterator[StoreError]:
    """Changes that are hidden, and whatever is written once and was written again."""
    for key, each in sorted(versions.items()):
        kind = key.split("/")[1:2]
        if key != MARKER and kind not in ([COMMITS], [DATA]):
            continue
        contents = [one for one in each if not one.deleted]
        if each[0].deleted and kind == [COMMITS]:
            what = "the change was hidden by a deletion: a point may have another name, or be gone"
            yield StoreError(what, where=ledger.name(key), hint=_MARK.format(each[0].version))
        elif len({one.etag for one in contents}) > 1:
            hint = _OVER.format(each[0].version)
            yield StoreError("was overwritten", where=ledger.name(key), hint=hint)


def _missing(ledger: Ledger, view: View, versions: _Versions) -> Iterator[StoreError]:
    """What points hold by their changes and the bucket has not."""
    for point, objects in sorted(view.points.items()):
        for key in sorted({*objects.values()} - ledger.items.keys()):
            where = ledger.name(key)
            mark = next((each for each in versions.get(key, ()) if each.latest), None)
            if mark is not None and mark.deleted and len(versions[key]) > 1:
                what = f"of point {point} was hidden by a deletion"
                yield StoreError(what, where=where, hint=_MARK.format(mark.version))
            else:
                yield StoreError(f"of point {point} is gone, and no engine dropped it", where=where)


def _dropped_though_locked(ledger: Ledger, view: View, versions: _Versions) -> Iterator[StoreError]:
    """What a change has taken out of a point although it is locked: no engine does."""
    used = view.used()
    there = [
        (number, change, key)
        for number, change in sorted(view.changes.items())
        if change is not None
        for key in change.objects.values()
        if key not in used and any(not each.deleted for each in versions.get(key, ()))
    ]
    for number, change, key in there:
        (newest, *_) = [each for each in versions[key] if not each.deleted]
        kept = ledger.retention.of_version(ledger.key(key), newest.version)
        if kept is not None:
            last, by = max(
                (n, c.by)
                for n, c in view.changes.items()
                if n > number and c is not None and c.point == change.point
            )
            culprit = change_key(view.guest, last)
            (top, *_) = versions[culprit]
            what = f"{by} dropped {key} of point {change.point}, which is {kept}"
            hint = _CHANGE.format(top.version)
            yield StoreError(what, where=ledger.name(culprit), hint=hint)
