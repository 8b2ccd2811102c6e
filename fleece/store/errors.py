"""What the operating system says, as an error about the store."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from fleece.errors import StoreError

_HINTS = {
    errno.ENOSPC: "make room in the store; nothing was committed",
    errno.EDQUOT: "the quota is used up; nothing was committed",
    errno.EACCES: "the user that runs fleece must be able to write there",
    errno.ENOLCK: "the store's file system must be able to lock files",
    errno.ELOOP: "nothing in a store may be a link; mount there what lies elsewhere (mount --bind)",
}


@contextlib.contextmanager
def store_errors(where: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an operating system's error into one about the store.

    Args:
        where: it happened, if the error itself does not say.
    """
    try:
        yield
    except OSError as error:
        raise store_error(error, where) from error


class Gone(StoreError):
    """What it is about is not there, or not any more."""


def store_error(error: OSError, where: str | os.PathLike[str]) -> StoreError:
    """The store's error for an operating system's."""
    kind = Gone if isinstance(error, FileNotFoundError) else StoreError
    return kind(
        error.strerror or str(error),
        where=error.filename or where,
        hint=_HINTS.get(error.errno or 0),
    )
