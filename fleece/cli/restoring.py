"""The verb `restore`: to a new image, in place, to a stream, as a backing chain."""

from __future__ import annotations

from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.stream import data_output
from fleece.errors import TargetError, UsageError
from fleece.terminal import counted


def restore(
    output: Output,
    cancel: CancelToken,
    store: str,
    point: str,
    disk: str,
    target: str,
    target_format: str | None,
    force: bool,
    in_place: bool,
    permissions: int | None,
    guest: str | None,
    secret: fleece.Secret | None,
) -> None:
    """`fleece restore STORE POINT DISK TARGET`."""
    place = fleece.open_store(store, secret)
    if target == "-":
        idle = (force, in_place, permissions is not None, target_format not in (None, "raw"))
        if any(idle):
            raise UsageError(
                "a stream is always raw: --force, --in-place and --mode have no effect"
            )
        with data_output("a disk", TargetError, cancel) as sink:
            result = fleece.restore_stream(
                place, point, disk, sink, guest=guest, listener=output.listen, cancel=cancel
            )
        what = "of what was written"
    else:
        result = fleece.restore(
            place,
            point,
            disk,
            target,
            guest=guest,
            target_format=image_format(target, target_format),
            force=force,
            in_place=in_place,
            mode=permissions,
            listener=output.listen,
            cancel=cancel,
        )
        what = "read back and compared"
    _succeed(output, result, what)


def as_chain(
    output: Output,
    cancel: CancelToken,
    store: str,
    point: str,
    disk: str,
    target: str,
    target_format: str | None,
    force: bool,
    in_place: bool,
    permissions: int | None,
    guest: str | None,
    secret: fleece.Secret | None,
) -> None:
    """`fleece restore STORE POINT DISK TARGET --as-chain`."""
    if force or in_place or target_format is not None or target == "-":
        raise UsageError(
            "--as-chain makes a new folder of qcow2 images: "
            "it takes no --force, --in-place or --format",
            where=target,
        )
    result = fleece.restore_as_chain(
        fleece.open_store(store, secret),
        point,
        disk,
        target,
        guest=guest,
        mode=permissions,
        listener=output.listen,
        cancel=cancel,
    )
    _succeed(
        output, result, f"of the newest of {counted(result.deltas, 'image')}, checked by qemu-img"
    )


def image_format(target: str, wished: str | None) -> fleece.ImageFormat | None:
    """The format that was asked for, or that the target's name asks for."""
    return fleece.format_by_name(target) if wished is None else fleece.ImageFormat(wished)


def _succeed(output: Output, result: fleece.RestoreResult, what: str) -> None:
    where = f"{result.target} is disk {result.disk} at point {result.point}"
    output.succeed(f"{where}: root {result.root}, {what}", **asdict(result))
