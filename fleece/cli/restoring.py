"""The verb `restore`: to a new image, in place, to a stream, as a backing chain."""

from __future__ import annotations

from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.stream import data_output
from fleece.cli.words import RestoreWords
from fleece.errors import TargetError, UsageError
from fleece.terminal import counted, human


def restore(output: Output, cancel: CancelToken, words: RestoreWords) -> None:
    """`fleece restore STORE POINT DISK TARGET`."""
    place = fleece.open_store(words.store, words.secret, cancel)
    output.charge(place.usage)
    if words.target == "-":
        idle = (
            words.force,
            words.in_place,
            words.permissions is not None,
            words.target_format not in (None, "raw"),
        )
        if any(idle):
            raise UsageError(
                "a stream is always raw: --force, --in-place and --mode have no effect"
            )
        with data_output("a disk", TargetError, cancel) as sink:
            result = fleece.restore_stream(
                place,
                words.point,
                words.disk,
                sink,
                guest=words.guest,
                listener=output.listen,
                cancel=cancel,
            )
        what = "of what was written"
    else:
        result = fleece.restore(
            place,
            words.point,
            words.disk,
            words.target,
            restore_options(words),
            output.listen,
            cancel,
        )
        what = "read back and compared"
    _succeed(output, result, what)


def as_chain(output: Output, cancel: CancelToken, words: RestoreWords) -> None:
    """`fleece restore STORE POINT DISK TARGET --as-chain`."""
    if words.force or words.in_place or words.target_format is not None or words.target == "-":
        raise UsageError(
            "--as-chain makes a new folder of qcow2 images: "
            "it takes no --force, --in-place or --format",
            where=words.target,
        )
    result = fleece.restore_as_chain(
        fleece.open_store(words.store, words.secret, cancel),
        words.point,
        words.disk,
        words.target,
        fleece.RestoreOptions(words.guest, mode=words.permissions),
        output.listen,
        cancel,
    )
    _succeed(
        output, result, f"of the newest of {counted(result.deltas, 'image')}, checked by qemu-img"
    )


def restore_options(words: RestoreWords) -> fleece.RestoreOptions:
    """How a command line wants its disk restored; of which format, the target's name may say."""
    wished = words.target_format
    return fleece.RestoreOptions(
        guest=words.guest,
        target_format=fleece.format_by_name(words.target)
        if wished is None
        else fleece.ImageFormat(wished),
        force=words.force,
        in_place=words.in_place,
        mode=words.permissions,
    )


def _succeed(output: Output, result: fleece.RestoreResult, what: str) -> None:
    where = f"{result.target} is disk {result.disk} at point {result.point}"
    count = result.written_bytes
    output.succeed(
        [output.work(f"wrote {human(count)}", count), f"{where}: root {result.root}, {what}"],
        **asdict(result),
    )
