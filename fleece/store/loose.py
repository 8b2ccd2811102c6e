"""Deltas that lie outside of any store: files that the user names."""

from __future__ import annotations

import os
from typing import TypeVar

from fleece.delta.reader import DeltaReader, RecordFile
from fleece.delta.wreck import Wreck
from fleece.errors import WrongKey
from fleece.fileblob import named_file
from fleece.keys import Secret
from fleece.store.catalogue import Entry

_File = TypeVar("_File", bound=RecordFile)


def open_delta(path: str | os.PathLike[str], secret: Secret | None = None) -> DeltaReader:
    """Open a finished delta.

    Args:
        path: the file; only its bytes are believed, never its name.
        secret: what it is protected by; None: nothing.

    Raises:
        DeltaError: damaged, incomplete, salvaged, or not a delta.
        WrongKey: it is protected by another key, or by none though one is given.
    """
    return _used(DeltaReader(named_file(path), secret), secret)


def open_records(path: str | os.PathLike[str], secret: Secret | None = None) -> RecordFile:
    """Open a file that begins with a delta's header, whatever follows.

    Raises:
        DeltaError: it cannot be read, or it does not begin with a whole header.
        WrongKey: it is protected by another key, or by none though one is given.
    """
    return _used(RecordFile(named_file(path), secret), secret)


def open_wreck(path: str | os.PathLike[str], secret: Secret | None = None) -> Wreck:
    """Open a delta in whatever state.

    Raises:
        DeltaError: it cannot be read, or its header is damaged.
        WrongKey: it is protected by another key, or by none though one is given.
    """
    return _used(Wreck(named_file(path), secret), secret)


def read_entry(path: str | os.PathLike[str], secret: Secret | None = None) -> Entry:
    """Open a finished delta, and describe it.

    Raises:
        DeltaError: it is damaged, incomplete or no delta.
        WrongKey: it is protected by another key, or by none though one is given.
    """
    with open_delta(path, secret) as delta:
        return Entry.of(delta, os.fspath(path))


def _used(file: _File, secret: Secret | None) -> _File:
    """The file, if the key that was given for it is used: else its bytes could be anybody's."""
    if secret is not None and file.protection is None:
        file.close()
        raise WrongKey(
            "a key was given, but this delta has none: nothing in it is protected",
            where=file.where,
            hint="without the key, what it says can be read, and anybody can have written it",
        )
    return file
