"""Deltas that lie outside of any store: files that the user names."""

from __future__ import annotations

import os

from fleece.delta.reader import DeltaReader, RecordFile
from fleece.delta.wreck import Wreck
from fleece.fileblob import named_file
from fleece.keys import Secret
from fleece.store.catalogue import Entry


def open_delta(path: str | os.PathLike[str], secret: Secret | None = None) -> DeltaReader:
    """Open a finished delta.

    Args:
        path: the file; only its bytes are believed, never its name.
        secret: what it is protected by; None: nothing.

    Raises:
        DeltaError: damaged, incomplete, salvaged, or not a delta.
        WrongKey: it is protected by another key.
    """
    return DeltaReader(named_file(path), secret)


def open_records(path: str | os.PathLike[str], secret: Secret | None = None) -> RecordFile:
    """Open a file that begins with a delta's header, whatever follows.

    Raises:
        DeltaError: it cannot be read, or it does not begin with a whole header.
        WrongKey: it is protected by another key.
    """
    return RecordFile(named_file(path), secret)


def open_wreck(path: str | os.PathLike[str], secret: Secret | None = None) -> Wreck:
    """Open a delta in whatever state.

    Raises:
        DeltaError: it cannot be read, or its header is damaged.
        WrongKey: it is protected by another key.
    """
    return Wreck(named_file(path), secret)


def read_entry(path: str | os.PathLike[str], secret: Secret | None = None) -> Entry:
    """Open a finished delta, and describe it.

    Raises:
        DeltaError: it is damaged, incomplete or no delta.
        WrongKey: it is protected by another key.
    """
    with open_delta(path, secret) as delta:
        return Entry.of(delta, os.fspath(path))
