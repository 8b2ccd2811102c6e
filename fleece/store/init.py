"""Make a new store. Nothing else does: a store that is missing is an error everywhere else."""

from __future__ import annotations

import os

from fleece.cancel import CancelToken
from fleece.errors import StoreError, UsageError
from fleece.keys import Secret
from fleece.store.backend import Backend, Site
from fleece.store.loose import open_delta
from fleece.store.marker import Marker, StoreWishes
from fleece.store.open import open_backend, open_store
from fleece.store.store import Store


def init(
    path: str | os.PathLike[str],
    secret: Secret | None = None,
    wishes: StoreWishes | None = None,
    like: str | os.PathLike[str] | None = None,
    cancel: CancelToken | None = None,
) -> Store:
    """Make a store where nothing or an empty folder is.

    Args:
        path: the folder or bucket, as `open_store` takes it; folders on the way to it are made too.
        secret: the key file or passphrase of a store with a key.
        wishes: how it shall be; None: as private as can be, without a key.
        like: a store, or a delta: the new store has its hash, its key and its encryption, so that
            it can take in deltas of that store. The wishes then say the mode and the site alone.

    Raises:
        StoreError: a store or something else is there, or it cannot be made. Of several that make
            one at once all but the first fail so.
        UsageError: the wishes contradict the secret, or `like`; or there are no such stores.
    """
    wishes = wishes or StoreWishes()
    marker = Marker.new(wishes, secret) if like is None else _like(like, secret, wishes, cancel)
    return make(open_backend(path, cancel), marker, secret, wishes.site)


def make(
    backend: Backend, marker: Marker, secret: Secret | None = None, site: Site | None = None
) -> Store:
    """Make a store where nothing is.

    Args:
        backend: where.
        marker: of the new store.
        secret: that the marker was made with.
        site: how its place shall be made; None: as usual.

    Raises:
        StoreError, UsageError: as `init`.
    """
    backend.sharing(marker.mode).create(marker.to_text(secret).encode(), site)
    store = Store(backend, secret)
    if store.id != marker.id:  # where there are no hard links, two can place theirs
        raise StoreError(
            "is a store already", where=backend.where, hint="use it as it is; nothing was changed"
        )
    return store


def _like(
    like: str | os.PathLike[str],
    secret: Secret | None,
    wishes: StoreWishes,
    cancel: CancelToken | None,
) -> Marker:
    if wishes.hash is not None or wishes.encrypt:
        raise UsageError("a store that is like another has its hash and its encryption")
    if not os.path.isfile(like):
        store = open_store(like, secret, cancel)
        return Marker.like(store.algorithm.name, store.protection, wishes)
    with open_delta(like, secret) as delta:
        return Marker.like(delta.geometry.algorithm.name, delta.protection, wishes)
