"""The verbs `backup`, and `clean`, which takes down what an interrupted one left."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace

import fleece
from fleece import events
from fleece.amounts import bytes_of
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.sources import source_options, split_disks
from fleece.cli.stream import data_output
from fleece.cli.words import BackupWords, CleanWords
from fleece.errors import UsageError
from fleece.terminal import human


def backup(output: Output, cancel: CancelToken, words: BackupWords) -> None:
    """`fleece backup SOURCE STORE`."""
    disks, places = split_disks(words.disks)
    options = _options(words, disks)
    way = replace(
        source_options(words.scratch, words.connect, words.scratch_limit, words.fleecing),
        guest_agent=words.guest_agent,
        freeze=words.freeze,
        require_freeze=words.require_freeze,
        places=places,
        bitmap=tuple(words.bitmap),
        since=words.since,
    )
    with contextlib.ExitStack() as stack:
        sink = None
        if words.stream:
            sink = stack.enter_context(data_output("a delta", fleece.StoreError, cancel))
        place = fleece.open_store(words.store, words.secret, cancel)
        output.charge(place.usage)
        opened = stack.enter_context(fleece.open_source(words.source, way, cancel))
        result = fleece.backup(opened, place, options, output.listen, cancel, sink)
    lines = _lines(result)
    read = sum(disk.read_bytes for disk in result.disks)
    stored = sum(disk.stored_bytes for disk in result.disks)
    lines.append(output.work(f"read {human(read)}, stored {human(stored)}", read))
    end = "is written to the output" if words.stream else "is committed"
    if result.resumed:
        lines.append("an interrupted backup took this point: later changes are in the next one")
    output.succeed(
        [*lines, f"point {result.point} of {result.guest} {end}"],
        **asdict(result),
    )


def _options(words: BackupWords, disks: tuple[str, ...]) -> fleece.BackupOptions:
    """How the point is made, of which disks."""
    options = fleece.BackupOptions(
        fleece.ModeWish(words.mode),
        words.guest,
        disks,
        audit=words.audit,
        resume=words.resume,
        transport=fleece.TransportWish(words.transport),
        rate=None if words.rate is None else bytes_of("--rate", words.rate),
        adopt=words.adopt,
        tags=tuple(sorted({tag for tags in words.tags for tag in tags})),
    )
    if words.jobs is not None:
        options = replace(options, workers=words.jobs)
    if words.level is not None:
        if not 1 <= words.level <= 19:
            raise UsageError("--level must be from 1 to 19")
        options = replace(options, level=words.level)
    return options


def _lines(result: fleece.BackupResult) -> list[str]:
    """What came of each disk, and of the machine."""
    lines = [
        f"{disk.disk}: {disk.mode}, {human(disk.dirty_bytes)} dirty of {human(disk.size)}, "
        f"{human(disk.stored_bytes)} stored, root {disk.root}"
        for disk in result.disks
    ]
    if result.parts:
        lines.append(f"machine: {', '.join(result.parts)}")
    return lines


def clean(output: Output, cancel: CancelToken, words: CleanWords) -> None:
    """`fleece clean SOURCE`."""
    way = source_options(words.scratch, words.connect)
    with fleece.open_source(words.source, way, cancel) as opened:
        if isinstance(opened, fleece.HeldElsewhere):
            raise UsageError("nothing is ever left in this kind of source", where=words.source)
        removed = list(opened.recover())
        doubts = opened.doubts
    for doubt in doubts:
        output.listen(events.Warned(doubt))
    for item in removed:
        output.row("removed", f"removed {item.kind} {item.item}", kind=item.kind, item=item.item)
    output.succeed("" if removed else "nothing was left behind", removed=len(removed))
