"""A read that failed because its point was lost says so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fleece.errors import SourceError
from fleece.source.base import Point


@contextlib.contextmanager
def reads_of(point: Point) -> Iterator[None]:
    """In the context a point is read: if that fails, its loss is the reason to tell, if it is lost.

    Raises:
        PointError: it is.
        SourceError: as it was raised in the context.
    """
    try:
        yield
    except SourceError:
        with contextlib.suppress(SourceError):
            point.check()
        raise
