"""The verb `serve`: says where the exports are, and stays until it is told to end."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.errors import StoreError, UsageError
from fleece.terminal import counted

_EVERY = 0.1


def serve(
    output: Output,
    cancel: CancelToken,
    store: str,
    point: str,
    disks: list[str],
    socket: str | None,
    writable: bool,
    scratch: str | None,
    guest: str | None,
    secret: fleece.Secret | None,
) -> None:
    """`fleece serve STORE POINT`."""
    if scratch is not None and not writable:
        raise UsageError("--scratch needs --writable")
    with fleece.serve(
        fleece.open_store(store, secret),
        point,
        tuple(dict.fromkeys(disks)),
        guest=guest,
        socket=socket,
        writable=writable,
        scratch=None if scratch is None else Path(scratch),
        listener=output.listen,
        cancel=cancel,
    ) as serving:
        output.row(
            "serving",
            [disk.uri for disk in serving.disks],
            point=serving.point,
            writable=writable,
            exports=[asdict(disk) for disk in serving.disks],
        )
        while not cancel.cancelled:
            serving.check()
            time.sleep(_EVERY)
    if serving.problems:
        raise StoreError(
            f"reads met {counted(serving.problems, 'error')} while it was served",
            where=store,
            hint="'fleece verify' tells what is damaged",
        )
    output.succeed("", point=serving.point)
