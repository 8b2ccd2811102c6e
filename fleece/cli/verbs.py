"""The verbs: each calls the library and prints what it gives."""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, replace
from pathlib import Path

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.cli import salvage
from fleece.cli.output import Output, human
from fleece.cli.stream import data_output
from fleece.cli.words import BackupWords, CleanWords, InfoWords, InitWords, ListWords, RootWords
from fleece.errors import UsageError
from fleece.terminal import counted


def source_options(
    scratch: str | None,
    scratch_limit: str | None = None,
    fleecing: str = fleece.Fleecing.CLASSIC,
    guest_agent: str | None = None,
    require_freeze: bool = False,
) -> fleece.SourceOptions:
    """How a command line wants its source to be opened."""
    limit = None if scratch_limit is None else _bytes("--scratch-limit", scratch_limit)
    folder = None if scratch is None else Path(scratch)
    return fleece.SourceOptions(
        folder, limit, fleece.Fleecing(fleecing), guest_agent, require_freeze
    )


def _bytes(option: str, text: str) -> int:
    """A number of bytes, with K, M, G or T for powers of 1024."""
    found = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", text)
    if found is None:
        raise UsageError(f"{option} takes a number of bytes, like 500M or 20G", where=text)
    return int(found[1]) << (10 * " KMGT".index(found[2] or " "))


def init(
    output: Output,
    cancel: CancelToken,
    words: InitWords,
) -> None:
    """`fleece init STORE`."""
    choice = None if words.hash_name is None else fleece.HashChoice(words.hash_name)
    made = fleece.init(
        words.store,
        words.secret,
        fleece.StoreWishes(choice, words.encrypt, words.permissions),
        words.like,
    )
    marker = made.marker
    kind = "encrypted" if marker.encrypted else "not encrypted"
    output.succeed(
        f"{words.store} is a store now: {kind}, hash {marker.hash}, "
        f"files of mode {marker.mode:04o}",
        store=words.store,
        id=made.id,
        hash=marker.hash,
        encrypted=marker.encrypted,
        key=None if marker.terms is None else marker.terms.derivation.name.lower(),
        mode=f"{marker.mode:04o}",
    )


def backup(
    output: Output,
    cancel: CancelToken,
    words: BackupWords,
) -> None:
    """`fleece backup SOURCE STORE`."""
    options = fleece.BackupOptions(
        fleece.ModeWish(words.mode),
        words.guest,
        tuple(words.disks),
        audit=words.audit,
        resume=words.resume,
        transport=fleece.TransportWish(words.transport),
        rate=None if words.rate is None else _bytes("--rate", words.rate),
        adopt=words.adopt,
    )
    if words.jobs is not None:
        options = replace(options, workers=words.jobs)
    if words.level is not None:
        if not 1 <= words.level <= 19:
            raise UsageError("--level must be from 1 to 19")
        options = replace(options, level=words.level)
    way = source_options(
        words.scratch, words.scratch_limit, words.fleecing, words.guest_agent, words.require_freeze
    )
    with contextlib.ExitStack() as stack:
        sink = None
        if words.stream:
            sink = stack.enter_context(data_output("a delta", fleece.StoreError, cancel))
        place = fleece.open_store(words.store, words.secret)
        opened = stack.enter_context(fleece.open_source(words.source, way, cancel))
        result = fleece.backup(opened, place, options, output.listen, cancel, sink)
    lines = [
        f"{disk.disk}: {disk.mode}, {human(disk.dirty_bytes)} dirty of {human(disk.size)}, "
        f"{human(disk.stored_bytes)} stored, root {disk.root}"
        for disk in result.disks
    ]
    end = "is written to the output" if words.stream else "is committed"
    if result.resumed:
        lines.append("an interrupted backup took this point: later changes are in the next one")
    output.succeed(
        [*lines, f"point {result.point} of {result.guest} {end}"],
        **asdict(result),
    )


def clean(output: Output, cancel: CancelToken, words: CleanWords) -> None:
    """`fleece clean SOURCE`."""
    with fleece.open_source(words.source, source_options(words.scratch), cancel) as opened:
        removed = list(opened.recover())
        doubts = opened.doubts
    for doubt in doubts:
        output.listen(events.Warned(doubt))
    for item in removed:
        output.row("removed", f"removed {item.kind} {item.item}", kind=item.kind, item=item.item)
    output.succeed("" if removed else "nothing was left behind", removed=len(removed))


def list_points(output: Output, cancel: CancelToken, words: ListWords) -> None:
    """`fleece list STORE`."""
    catalogue = fleece.open_store(words.store, words.secret).catalogue()
    for point in catalogue.points:
        for name, entry in sorted(point.disks.items()):
            head = entry.header
            parent = head.parent.point if head.parent else None
            state = f"  gone: {', '.join(head.gone)}" if head.gone else ""
            state += "" if point.complete else f"  INCOMPLETE: lacks {', '.join(point.missing)}"
            output.row(
                "point",
                f"{point.guest}  {point.id}  {point.time}  {name}  {head.mode:12}  "
                f"{human(head.size):>10}  {human(entry.stored_bytes):>10}  {entry.root}{state}",
                guest=point.guest,
                point=point.id,
                sequence=point.sequence,
                time=point.time,
                disk=name,
                mode=head.mode,
                size=head.size,
                parent=parent,
                gone=[*head.gone],
                identity=_identity(head.identity),
                root=entry.root,
                stored_bytes=entry.stored_bytes,
                complete=point.complete,
                path=entry.where,
            )
    for trouble in catalogue.damaged:
        error = trouble.error
        output.row("damaged", f"DAMAGED: {error}", where=error.where, what=error.what)
    if catalogue.damaged:
        raise fleece.StoreError(
            f"{counted(len(catalogue.damaged), 'damaged file')}",
            where=words.store,
            hint="'fleece verify' tells which points need them",
        )
    output.succeed("", points=len(catalogue.points))


def _identity(told: fleece.GuestIdentity | None) -> dict[str, str | None] | None:
    """A guest's identity for machine output."""
    return None if told is None else asdict(told)


def info(output: Output, cancel: CancelToken, words: InfoWords) -> None:
    """`fleece info FILE`."""
    saved = fleece.describe(words.file, words.secret)
    if saved is not None:
        salvage.info(output, saved)
        return
    with fleece.open_delta(words.file, words.secret) as delta:
        head, last = delta.header, delta.footer
        parent = asdict(head.parent) if head.parent else None
        fields: dict[str, object] = {
            "file": words.file,
            "guest": head.guest,
            "disk": head.disk,
            "chain": head.chain,
            "point": head.point.id,
            "sequence": head.point.sequence,
            "time": head.point.time,
            "mode": head.mode,
            "size": head.size,
            "parent": parent,
            "root": last.root.hex(),
            "disks": [*head.disks],
            "gone": [*head.gone],
            "identity": _identity(head.identity),
            "hash": head.algorithm.name,
            "encrypted": delta.protection is not None and delta.protection.encrypted,
            "leaf_size": head.leaf_size,
            "fan_out": head.fan_out,
            "level": head.level,
            "granularity": head.granularity,
            "records": last.records,
            "data_bytes": last.data_bytes,
            "zero_bytes": last.zero_bytes,
            "compressed_bytes": last.frame_bytes,
            "stored_bytes": delta.length,
            "producer": {**head.producer},
        }
    lines = (f"{name.replace('_', ' '):17} {value}" for name, value in fields.items())
    output.succeed(lines, **fields)


def root(output: Output, cancel: CancelToken, words: RootWords) -> None:
    """`fleece root IMAGE`."""
    algorithm = {known.name: known for known in (fleece.XXH3_128, fleece.BLAKE3)}[words.hash_name]
    with fleece.open_image(
        words.image, words.image_format, listener=output.listen, cancel=cancel
    ) as disk:
        geometry = fleece.Geometry(disk.size, algorithm=algorithm)
        found = fleece.disk_root(disk, output.listen, cancel, geometry).hex()
        size = disk.size
    output.succeed(found, root=found, size=size, image=words.image)
