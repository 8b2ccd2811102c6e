"""The parts of the machine at a point, for who puts it back."""

from __future__ import annotations

from fleece.delta.part import Part
from fleece.engine.work.part import read_part
from fleece.store.store import Store


def parts(store: Store, point: str, guest: str | None = None) -> tuple[Part, ...]:
    """The parts of the machine at a point, each proven by its root.

    What they say was made by who could write the store: it is to be looked at before it is used.

    Args:
        store: to read.
        point: an id, a prefix of one, or `latest`.
        guest: which guest, if `point` could mean several.

    Raises:
        StoreError: the point is not there, its chain is damaged, or a part is too large.
        VerifyError: a part has not the point's root.
    """
    catalogue = store.catalogue()
    found = []
    for _, entry in sorted(catalogue.find(point, guest).parts.items()):
        with catalogue.chain(entry) as chain:
            found.append(read_part(chain))
    return tuple(found)
