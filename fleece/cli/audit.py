"""The verb `audit`."""

from __future__ import annotations

from dataclasses import asdict, replace

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.sources import source_options, split_disks
from fleece.cli.words import AuditWords
from fleece.terminal import human


def audit(output: Output, cancel: CancelToken, words: AuditWords) -> None:
    """`fleece audit SOURCE STORE`."""
    place = fleece.open_store(words.store, words.secret, cancel)
    disks, places = split_disks(words.disks)
    options = replace(
        source_options(words.scratch, words.connect, words.scratch_limit, words.fleecing),
        places=places,
        bitmap=tuple(words.bitmap),
        since=words.since,
    )
    with fleece.open_source(words.source, options, cancel) as opened:
        result = fleece.audit(opened, place, words.guest, disks, output.listen, cancel)
    lines = [
        f"{disk.disk}: {human(disk.compared_bytes)} of {human(disk.size)} are unchanged since "
        f"point {disk.against}, as the source says"
        for disk in result.disks
    ]
    output.succeed(lines, **asdict(result))
