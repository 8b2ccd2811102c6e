"""The verb `serve`: says where the exports are, and stays until it is told to end."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.cli.http import http_door
from fleece.cli.output import Output
from fleece.cli.words import ServeWords
from fleece.errors import StoreError, UsageError, VerifyError
from fleece.terminal import counted

_EVERY = 0.1


def serve(output: Output, cancel: CancelToken, words: ServeWords) -> None:
    """`fleece serve STORE POINT`."""
    if words.scratch is not None and not words.writable:
        raise UsageError("--scratch needs --writable")
    scratch = None if words.scratch is None else Path(words.scratch)
    options = fleece.ServeOptions(
        words.guest, words.socket, words.writable, scratch, http_door(words)
    )
    options.check()
    store = fleece.open_store(words.store, words.secret, cancel)
    with fleece.serve(
        store,
        words.point,
        tuple(dict.fromkeys(words.disks)),
        options,
        output.listen,
        cancel,
    ) as serving:
        like = _likeness(output, store, serving)
        uris = [uri for disk in serving.disks for uri in (disk.uri, disk.http) if uri is not None]
        output.row(
            "serving",
            uris if like is None else [*uris, f"its machine: {like}"],
            point=serving.point,
            writable=words.writable,
            exports=[asdict(disk) for disk in serving.disks],
            machine=None if like is None else _fields(like),
        )
        while not cancel.cancelled:
            serving.check()
            time.sleep(_EVERY)
    if serving.problems:
        raise StoreError(
            f"reads met {counted(serving.problems, 'error')} while it was served",
            where=words.store,
            hint="'fleece verify' tells what is damaged",
        )
    output.succeed("", point=serving.point)


def _likeness(
    output: Output, store: fleece.Store, serving: fleece.Serving
) -> fleece.Likeness | None:
    """What is known of the machine; the disks are served though that is damaged."""
    try:
        return fleece.likeness(store, serving.point, serving.guest)
    except (StoreError, VerifyError) as error:
        output.listen(events.Warned(f"the machine of point {serving.point} is unknown: {error}"))
        return None


def _fields(like: fleece.Likeness) -> dict[str, object]:
    code = None if like.firmware is None else str(like.firmware.code)
    return {
        "memory": like.memory,
        "processors": like.processors,
        "buses": dict(like.buses),
        "firmware": code,
    }
