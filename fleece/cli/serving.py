"""The verb `serve`: says where the exports are, and stays until it is told to end."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.words import ServeWords
from fleece.errors import StoreError, UsageError
from fleece.terminal import counted

_EVERY = 0.1


def serve(output: Output, cancel: CancelToken, words: ServeWords) -> None:
    """`fleece serve STORE POINT`."""
    if words.scratch is not None and not words.writable:
        raise UsageError("--scratch needs --writable")
    scratch = None if words.scratch is None else Path(words.scratch)
    options = fleece.ServeOptions(words.guest, words.socket, words.writable, scratch)
    with fleece.serve(
        fleece.open_store(words.store, words.secret, cancel),
        words.point,
        tuple(dict.fromkeys(words.disks)),
        options,
        output.listen,
        cancel,
    ) as serving:
        output.row(
            "serving",
            [disk.uri for disk in serving.disks],
            point=serving.point,
            writable=words.writable,
            exports=[asdict(disk) for disk in serving.disks],
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
