"""The verb `audit`."""

from __future__ import annotations

from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output, human
from fleece.cli.verbs import source_options


def audit(
    output: Output,
    cancel: CancelToken,
    source: str,
    store: str,
    guest: str | None,
    disks: list[str],
    scratch: str | None,
    scratch_limit: str | None,
    fleecing: str,
    secret: fleece.Secret | None,
) -> None:
    """`fleece audit SOURCE STORE`."""
    place = fleece.open_store(store, secret)
    options = source_options(scratch, scratch_limit, fleecing)
    with fleece.open_source(source, options, cancel) as opened:
        result = fleece.audit(opened, place, guest, tuple(disks), output.listen, cancel)
    lines = [
        f"{disk.disk}: {human(disk.compared_bytes)} of {human(disk.size)} are unchanged since "
        f"point {disk.against}, as the source says"
        for disk in result.disks
    ]
    output.succeed(lines, **asdict(result))
