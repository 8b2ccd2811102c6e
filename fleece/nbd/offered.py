"""Ask a server which meta contexts an export has: a connection names those that it wants."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from fleece.cancel import CancelToken
from fleece.errors import SourceError
from fleece.nbd.binding import libnbd
from fleece.nbd.connection import CONNECT_LIMIT

_TICK = 200
"""Milliseconds between two looks at whether the run is interrupted."""


def offered_contexts(uri: str, cancel: CancelToken | None = None) -> tuple[str, ...]:
    """All meta contexts of an export, in the server's order.

    Args:
        uri: of the export.
        cancel: ends every wait for the server, with `Interrupted`.

    Raises:
        SourceError: the server does not tell, or not within `CONNECT_LIMIT`.
    """
    nbd, stop = libnbd(), cancel or CancelToken()
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.set_uri_allow_local_file(True)
    end = time.monotonic() + CONNECT_LIMIT

    def wait(ready: Callable[[], Any]) -> None:
        while not ready():
            stop.check()
            if time.monotonic() > end:
                what = f"NBD: the server did not answer within {CONNECT_LIMIT:.0f} s"
                raise SourceError(what, where=uri)
            handle.poll(_TICK)

    found: list[str] = []
    try:
        handle.aio_connect_uri(uri)
        wait(handle.aio_is_negotiating)
        with contextlib.suppress(nbd.Error):  # without structured replies it is not even asked
            handle.aio_opt_list_meta_context(found.append)
            wait(handle.aio_is_negotiating)
        with contextlib.suppress(nbd.Error):  # it may hang up instead of saying goodbye
            handle.aio_opt_abort()
            wait(handle.aio_is_closed)
    except nbd.Error as error:
        raise SourceError(f"NBD: {error.string}", where=uri) from error
    return tuple(found)
