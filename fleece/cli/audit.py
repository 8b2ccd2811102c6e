"""The verb `audit`."""

from __future__ import annotations

from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output, human
from fleece.cli.sources import source_options
from fleece.cli.words import AuditWords


def audit(output: Output, cancel: CancelToken, words: AuditWords) -> None:
    """`fleece audit SOURCE STORE`."""
    place = fleece.open_store(words.store, words.secret, cancel)
    options = source_options(words.scratch, words.connect, words.scratch_limit, words.fleecing)
    with fleece.open_source(words.source, options, cancel) as opened:
        result = fleece.audit(opened, place, words.guest, tuple(words.disks), output.listen, cancel)
    lines = [
        f"{disk.disk}: {human(disk.compared_bytes)} of {human(disk.size)} are unchanged since "
        f"point {disk.against}, as the source says"
        for disk in result.disks
    ]
    output.succeed(lines, **asdict(result))
