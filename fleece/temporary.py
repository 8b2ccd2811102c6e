"""Temporary files and folders; that none can be made is an error of the family of missing needs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fleece.errors import UsageError


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of this user's alone, for as long as the context lasts.

    Raises:
        UsageError: none can be made.
    """
    with _errors():
        made = tempfile.TemporaryDirectory(prefix="fleece-", ignore_cleanup_errors=True)
    try:
        yield Path(made.name)
    finally:
        with contextlib.suppress(OSError):
            made.cleanup()


def temporary_file() -> BinaryIO:
    """A file without a name, to write and read: nothing stays of it if this process is killed.

    Raises:
        UsageError: none can be made.
    """
    with _errors():
        return tempfile.TemporaryFile(prefix="fleece-")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"no temporary file can be made ({error.strerror})",
            where=tempfile.tempdir or os.environ.get("TMPDIR"),
            hint="TMPDIR says where they are made",
        ) from error
