"""The verbs for what is damaged: `salvage` and `restore --partial`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output, human
from fleece.cli.restoring import image_format
from fleece.errors import UsageError, VerifyError
from fleece.terminal import counted


def salvage(
    output: Output,
    cancel: CancelToken,
    file: str,
    target: str,
    force: bool,
    permissions: int | None,
    secret: fleece.Secret | None,
) -> None:
    """`fleece salvage FILE -o NEW`."""
    result = fleece.salvage(
        file,
        target,
        secret=secret,
        force=force,
        mode=permissions,
        listener=output.listen,
        cancel=cancel,
    )
    _show(output, result.lost)
    saved = human(result.data_bytes + result.zero_bytes)
    output.succeed(
        f"{target} holds what is proven of disk {result.disk} at point {result.point}: "
        f"{counted(result.records, 'record')}, {saved}; {_lost(result.lost)}",
        **{"file": file} | asdict(result),
    )


def info(output: Output, said: fleece.SalvagedFile) -> None:
    """`fleece info FILE` of a salvaged file."""
    _show(output, said.lost)
    fields: dict[str, object] = {"salvaged": True} | asdict(said)
    shown = {name: value for name, value in fields.items() if name != "lost"}
    output.succeed((f"{name:17} {value}" for name, value in shown.items()), **fields)


def restore_partial(
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
    """`fleece restore STORE POINT DISK TARGET --partial`."""
    if in_place or target == "-":
        raise UsageError("--partial makes a new image", where=target)
    result = fleece.restore_partial(
        fleece.open_store(store, secret),
        point,
        disk,
        target,
        guest=guest,
        target_format=image_format(target, target_format) or fleece.ImageFormat.RAW,
        force=force,
        mode=permissions,
        listener=output.listen,
        cancel=cancel,
    )
    what = f"disk {result.disk} at point {result.point}"
    _show(output, result.lost)
    if result.whole:
        output.succeed(f"{target} is {what}: root {result.root}, nothing is lost", **asdict(result))
        return
    why = _lost(result.lost)
    if not result.lost:
        why = "no part of it is known to be lost, but no file is left that says its root"
    error = VerifyError(f"{what} is restored in part: {why}", where=target)
    error.fields = asdict(result)
    raise error


def _show(output: Output, lost: Sequence[fleece.LostExtent]) -> None:
    if not output.machine:
        for part in lost:
            end = part.offset + part.length - 1
            output.row("lost", f"{part.reason}: bytes {part.offset} to {end}")


def _lost(lost: Sequence[fleece.LostExtent]) -> str:
    total = {loss: sum(part.length for part in lost if part.reason is loss) for loss in fleece.Loss}
    words = [f"{human(count)} {loss}" for loss, count in total.items() if count]
    return " and ".join(words) or "nothing lost"
