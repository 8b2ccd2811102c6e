"""Change the tags of a point."""

from __future__ import annotations

from collections.abc import Iterable

from fleece.errors import UsageError
from fleece.store.catalogue import StoredPoint
from fleece.store.marks import checked, note_tags, tags_of
from fleece.store.store import Store


def set_tags(
    store: Store,
    point: str,
    guest: str | None = None,
    *,
    add: Iterable[str] = (),
    remove: Iterable[str] = (),
    only: Iterable[str] | None = None,
) -> tuple[StoredPoint, tuple[str, ...]]:
    """Give a point tags, and take some.

    Args:
        store: that has it.
        point: an id, an unambiguous prefix of one, or `latest`.
        guest: whose; None: the only one's.
        add: tags that it gets.
        remove: tags that it has no more.
        only: the tags that it has then, whatever it had; None: what it had, and the changes.

    Returns:
        The point, and the tags that it has now.

    Raises:
        UsageError: nothing is to be changed, or what it would have cannot be tags.
        StoreError: there is no such point, its tags cannot be told, or it cannot be written.
    """
    more, less = set(add), set(remove)
    if only is None and not more and not less:
        raise UsageError("no tag is named", hint="give --add TAG, --remove TAG or --set TAG")
    if only is not None and (more or less):
        raise UsageError("--set says all tags: --add and --remove have no effect beside it")
    checked(more | less)
    guest = store.catalogue().find(point, guest).guest
    with store.locked(guest):
        catalogue = store.catalogue()
        found = catalogue.find(point, guest)
        tags = checked((set(tags_of(catalogue, found)) - less) | more if only is None else only)
        note_tags(catalogue, found, tags)
    return found, tags
