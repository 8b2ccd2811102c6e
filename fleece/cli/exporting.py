"""The verb `export`: holds a point for another program, until it is told what becomes of it."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict, replace
from pathlib import Path

import fleece
from fleece.cancel import CancelToken
from fleece.cli.http import http_door
from fleece.cli.output import Output
from fleece.cli.sources import source_options
from fleece.cli.words import ExportWords
from fleece.errors import UsageError

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def export(output: Output, cancel: CancelToken, words: ExportWords) -> None:
    """`fleece export SOURCE`."""
    if words.commit is not None or words.drop is not None:
        token = words.commit or words.drop or ""
        wish = fleece.Order.DROP if words.commit is None else fleece.Order.COMMIT
        _succeed(output, token, fleece.order(words.source, token, wish, cancel))
        return
    way = replace(
        source_options(words.scratch, words.connect, words.scratch_limit),
        guest_agent=words.guest_agent,
        freeze=words.freeze,
        require_freeze=words.require_freeze,
    )
    options = _options(words)
    options.check()
    with (
        fleece.open_source(words.source, way, cancel) as opened,
        fleece.export(opened, options, output.listen, cancel) as held,
        fleece.Orders(held, words.source, _input(), output.listen) as orders,
    ):
        fields = asdict(held.told)
        output.row("exported", json.dumps(fields, indent=2).splitlines(), **fields)
        base = orders.obey(cancel)
    _succeed(output, held.told.token, base)


def _succeed(output: Output, token: str, base: str | None) -> None:
    if not output.machine:  # even a quiet run: it is what a script keeps
        output.listing(["dropped" if base is None else f"committed {base}"])
    output.succeed("", token=token, committed=base is not None, base=base)


def _options(words: ExportWords) -> fleece.ExportOptions:
    x509, psk = (None if text is None else Path(text) for text in (words.tls_x509, words.tls_psk))
    options = fleece.ExportOptions(
        disks=tuple(words.disks),
        since=words.since,
        full=words.full,
        doors=fleece.Doors(words.socket, words.listen, x509, psk),
        http=http_door(words),
    )
    if words.consumer is not None:
        options = replace(options, consumer=words.consumer)
    if words.keep_bases is not None:
        options = replace(options, keep_bases=words.keep_bases)
    return options if words.ttl is None else replace(options, ttl=_seconds(words.ttl))


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,9})(s|min|h|d)", text)
    if found is None:
        raise UsageError("--ttl takes a time, like 90s, 30min, 2h or 3d", where=text)
    return float(int(found[1]) * _SECONDS[found[2]])


def _input() -> int | None:
    """Standard input, if somebody is there who could write a line; None: nobody is."""
    kind = os.fstat(0).st_mode
    return 0 if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(0) else None
