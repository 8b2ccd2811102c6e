"""Open a store by what a user calls it: what knows which kinds of stores there are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from fleece.cancel import CancelToken
from fleece.errors import UsageError
from fleece.keys import Secret
from fleece.plugins import STORES, installed
from fleece.store.backend import Backend
from fleece.store.folder.backend import FolderBackend
from fleece.store.store import Store

_FILE = "file"
_S3 = "s3"
_SSH = "ssh"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def open_store(
    place: str | os.PathLike[str],
    secret: Secret | None = None,
    cancel: CancelToken | None = None,
) -> Store:
    """Open an existing store.

    Args:
        place: the path of a folder, or `file:` and one; `s3://BUCKET/PREFIX`;
            `ssh://[USER@]HOST[:PORT]/PATH`; or of another scheme, `SCHEME://...`, that an entry
            point `fleece.stores` of an installed package opens: it is called with the whole text,
            and gives the `Backend`.
        secret: the store's key file or passphrase; None: it has no key.
        cancel: ends every wait for a server.

    Raises:
        Interrupted: it was cancelled.
        StoreError: it is not there, or it is not a store.
        UsageError: there are no stores of its scheme, or the secret is not the store's.
    """
    return Store(open_backend(place, cancel), secret)


def open_backend(place: str | os.PathLike[str], cancel: CancelToken | None = None) -> Backend:
    """Where the store of a name is, or would be.

    Args:
        place: as `open_store` takes it.
        cancel: ends every wait for a server.

    Raises:
        UsageError: there are no stores of its scheme.
    """
    text = os.fspath(place)
    found = _SCHEME.match(text)
    if found is None or found[1].lower() == _FILE:
        return FolderBackend(_folder_of(text))
    scheme = found[1].lower()
    if scheme == _S3:
        from fleece.store.s3.open import open_s3  # it loads an HTTP client and more

        return open_s3(text, cancel)
    if scheme == _SSH:
        from fleece.store.remote.backend import RemoteBackend

        return RemoteBackend(text, cancel=cancel)
    opener: Callable[[str], Backend] | None = installed(STORES, scheme)
    if opener is None:
        raise UsageError(
            f"there are no stores of the kind {found[1]}://",
            where=text,
            hint=f"a store is the path of a folder, {_FILE}:PATH, {_S3}://BUCKET/PREFIX or "
            f"{_SSH}://HOST/PATH",
        )
    return opener(text)


def _folder_of(text: str) -> str:
    """The path of the folder that a store's name means.

    Raises:
        UsageError: it names no folder.
    """
    if not text.startswith(f"{_FILE}:"):
        return text
    path = text.removeprefix(f"{_FILE}:")
    if not path.startswith("//"):
        return path
    if not path.startswith("///"):
        raise UsageError("names another host", where=text, hint=f"write {_FILE}:/PATH")
    return path.removeprefix("//")
