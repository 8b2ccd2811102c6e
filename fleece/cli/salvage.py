"""The verbs for what is damaged: `salvage` and `restore --partial`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.restoring import restore_options
from fleece.cli.words import RestoreWords, SalvageWords
from fleece.errors import UsageError, VerifyError
from fleece.terminal import counted, human


def salvage(output: Output, cancel: CancelToken, words: SalvageWords) -> None:
    """`fleece salvage FILE -o NEW`."""
    result = fleece.salvage(
        words.file,
        words.target,
        secret=words.secret,
        force=words.force,
        mode=words.permissions,
        listener=output.listen,
        cancel=cancel,
    )
    _show(output, result.lost)
    saved = human(result.data_bytes + result.zero_bytes)
    output.succeed(
        f"{words.target} holds what is proven of disk {result.disk} at point {result.point}: "
        f"{counted(result.records, 'record')}, {saved}; {_lost(result.lost)}",
        **{"file": words.file} | asdict(result),
    )


def info(output: Output, said: fleece.SalvagedFile) -> None:
    """`fleece info FILE` of a salvaged file."""
    _show(output, said.lost)
    fields: dict[str, object] = {"salvaged": True} | asdict(said)
    shown = {name: value for name, value in fields.items() if name != "lost"}
    output.answer(f"{name:17} {value}" for name, value in shown.items())
    output.succeed("", **fields)


def restore_partial(output: Output, cancel: CancelToken, words: RestoreWords) -> None:
    """`fleece restore STORE POINT DISK TARGET --partial`."""
    if words.in_place or words.target == "-":
        raise UsageError("--partial makes a new image", where=words.target)
    result = fleece.restore_partial(
        fleece.open_store(words.store, words.secret, cancel),
        words.point,
        words.disk,
        words.target,
        restore_options(words),
        output.listen,
        cancel,
    )
    what = f"disk {result.disk} at point {result.point}"
    _show(output, result.lost)
    if result.whole:
        output.succeed(
            f"{words.target} is {what}: root {result.root}, nothing is lost", **asdict(result)
        )
        return
    why = _lost(result.lost)
    if not result.lost:
        why = "no part of it is known to be lost, but no file is left that says its root"
    error = VerifyError(f"{what} is restored in part: {why}", where=words.target)
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
