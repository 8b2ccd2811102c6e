"""The verbs that bring points from one store into another."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime

import fleece
from fleece.amounts import bytes_of
from fleece.cancel import CancelToken
from fleece.cli.choosing import shard_of
from fleece.cli.output import Output
from fleece.cli.secret import secret_of
from fleece.cli.table import Column, table
from fleece.cli.words import CopyWords, ServeStoreWords
from fleece.errors import StoreError, UsageError, WrongKey
from fleece.terminal import counted, human, local_time

_STDIN, _STDOUT = 0, 1

_TO_SEND = (
    Column("GUEST", gives_way=True),
    Column("POINT"),
    Column("TIME"),
    Column("STORED", right=True),
)


def copy(output: Output, cancel: CancelToken, words: CopyWords) -> None:
    """`fleece copy FROM TO`."""
    options = fleece.CopyOptions(
        guests=tuple(dict.fromkeys(words.guests)),
        shard=shard_of(words.shard),
        tags=tuple(words.tags),
        last=words.last,
        since=None if words.since is None else _moment(words.since),
        newer=words.newer,
        follow=words.follow,
        dry_run=words.dry_run,
        rate=None if words.rate is None else bytes_of("--rate", words.rate),
        workers=words.jobs,
    )
    options.check()
    source = fleece.open_store(words.store, words.secret, cancel)
    target = _target(words, cancel)
    for place in (source, target):
        output.charge(place.usage)
    report = fleece.copy(source, target, options, output.listen, cancel)
    sent = sum(point.stored_bytes for point in report.points)
    fields = {
        "points": [asdict(point) for point in report.points],
        "had": report.had,
        "sent_bytes": sent,
        "dry_run": report.dry_run,
    }
    if report.errors:
        failed = StoreError(
            f"{counted(len(report.errors), 'problem')}; {counted(len(report.points), 'point')} "
            f"sent; not all that was asked for is in {words.to}: {report.errors[0]}",
            where=words.store,
        )
        failed.fields = {"errors": list(report.errors)} | fields
        raise failed
    if report.dry_run and output.machine:
        for point in report.points:
            output.row("to-send", "", **asdict(point))
    elif report.dry_run and report.points:
        rows = [
            (sent.guest, sent.point, local_time(sent.time), human(sent.stored_bytes))
            for sent in report.points
        ]
        output.listing(table(_TO_SEND, rows, output.width()))
    text = "would send" if report.dry_run else "sent"
    text += f" {counted(len(report.points), 'point')}, {human(sent)}; {_had(report.had)}"
    took = [output.work(f"sent {human(sent)}", sent)] if sent and not report.dry_run else []
    output.succeed([*took, text], errors=[], **fields)


def _had(count: int) -> str:
    return f"{count} {'was' if count == 1 else 'were'} there"


def serve_store(output: Output, cancel: CancelToken, words: ServeStoreWords) -> None:
    """`fleece serve-store STORE`."""
    if os.isatty(_STDIN) or os.isatty(_STDOUT):
        raise UsageError(
            "speaks with another fleece, not with a terminal",
            hint=f"name the store there: ssh://HOST{words.store}",
        )
    fleece.serve_store(words.store, _STDIN, _STDOUT, append_only=words.append_only, cancel=cancel)


def _target(words: CopyWords, cancel: CancelToken) -> fleece.Store:
    """TO, with its own key, or that of FROM if it has one and none is given."""
    if words.to_key_file is not None or words.to_passphrase_file is not None:
        secret = secret_of(words.to_key_file, words.to_passphrase_file, {}, cancel)
        return fleece.open_store(words.to, secret, cancel)
    try:
        return fleece.open_store(words.to, cancel=cancel)
    except WrongKey as error:
        if words.secret is not None:
            return fleece.open_store(words.to, words.secret, cancel)
        hint = "give it with --to-key-file or --to-passphrase-file"
        raise WrongKey(error.what, where=error.where, hint=hint) from error


def _moment(text: str) -> datetime:
    """A time, or how long ago it was."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    try:
        return fleece.Duration.parse(text).before(datetime.now(UTC))
    except UsageError:
        raise UsageError(
            f"--since takes a time, like 2026-11-30 or 2026-11-30T18:00, or a duration, like 7d: "
            f"{text} is neither"
        ) from None
