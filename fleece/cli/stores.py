"""The verbs that make a store and tell what is in it: `init`, `list` and `info`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli import salvage
from fleece.cli.output import Output
from fleece.cli.table import Column, table
from fleece.cli.words import InfoWords, InitWords, ListWords
from fleece.terminal import counted, human, local_time, local_times


def init(output: Output, cancel: CancelToken, words: InitWords) -> None:
    """`fleece init STORE`."""
    choice = None if words.hash_name is None else fleece.HashChoice(words.hash_name)
    made = fleece.init(
        words.store,
        words.secret,
        fleece.StoreWishes(
            choice,
            words.encrypt,
            words.permissions,
            fleece.Site(words.create_bucket, words.single_writer, words.lock_days),
        ),
        words.like,
        cancel,
    )
    marker = made.marker
    kind = "encrypted" if marker.encrypted else "not encrypted"
    days = marker.lock_days
    locked = "" if days is None else f", points locked for {counted(days, 'day')}"
    output.succeed(
        f"{words.store} is a store now: {kind}, hash {marker.hash}, "
        f"files of mode {marker.mode:04o}{locked}",
        store=words.store,
        id=made.id,
        hash=marker.hash,
        encrypted=marker.encrypted,
        key=None if marker.terms is None else marker.terms.derivation.name.lower(),
        mode=f"{marker.mode:04o}",
        lock_days=days,
    )


def list_points(output: Output, cancel: CancelToken, words: ListWords) -> None:
    """`fleece list STORE`."""
    place = fleece.open_store(words.store, words.secret, cancel)
    output.charge(place.usage)
    catalogue = place.catalogue()
    points = catalogue.named(words.guest)
    marks = fleece.marks(catalogue, points, locks=words.long)
    # One whose tags are unknown may be meant, and is told as damaged below.
    shown = [
        (point, mark)
        for point, mark in zip(points, marks, strict=True)
        if mark.trouble is not None or mark.meant(words.tags)
    ]
    if output.machine:
        for point, mark in shown:
            for entry in _deltas(point):
                _tell_delta(output, point, entry, mark)
    elif shown and words.long:
        rows = [_long_row(point, entry, mark) for point, mark in shown for entry in _deltas(point)]
        output.listing(table(_LONG, rows, output.width()))
    elif shown:
        output.listing(table(_SHORT, [_short_row(*each) for each in shown], output.width()))
    damage: list[fleece.StoreError] = [file.error for file in catalogue.damaged]
    damage += [mark.trouble for mark in marks if mark.trouble is not None]
    for error in damage:
        output.row("damaged", f"DAMAGED: {error}", where=error.where, what=error.what)
    if damage:
        raise fleece.StoreError(
            f"{counted(len(damage), 'damaged file')}",
            where=words.store,
            hint="'fleece verify' tells which points need them",
        )
    stored = sum(_stored(point) for point, _ in shown)
    output.succeed(f"{counted(len(shown), 'point')}, {human(stored)} stored", points=len(shown))


_SHORT = (
    Column("GUEST", gives_way=True),
    Column("POINT"),
    Column("TIME"),
    Column("MODE", gives_way=True),
    Column("SIZE", right=True),
    Column("STORED", right=True),
    Column("DISKS", gives_way=True),
    Column("TAGS", gives_way=True),
    Column("NOTE"),
)

_LONG = (
    Column("GUEST"),
    Column("POINT"),
    Column("TIME"),
    Column("DISK"),
    Column("MODE"),
    Column("SIZE", right=True),
    Column("STORED", right=True),
    Column("ROOT"),
    Column("TAGS", gives_way=True),
    Column("NOTE"),
)


def _short_row(point: fleece.StoredPoint, said: fleece.Marks) -> tuple[str, ...]:
    heads = [entry.header for entry in point.disks.values()]
    disks = ", ".join(sorted(point.disks))
    if point.parts:
        disks += f" and {counted(len(point.parts), 'part')}"
    return (
        point.guest,
        point.id,
        local_time(point.time),
        ", ".join(sorted({head.mode for head in heads})),
        human(sum(head.size for head in heads)),
        human(_stored(point)),
        disks,
        ", ".join(said.tags),
        _note(point, heads[0] if heads else None, said),
    )


def _long_row(
    point: fleece.StoredPoint, entry: fleece.Entry, said: fleece.Marks
) -> tuple[str, ...]:
    head = entry.header
    return (
        point.guest,
        point.id,
        local_time(point.time),
        head.disk,
        head.mode,
        human(head.size),
        human(entry.stored_bytes),
        entry.root,
        ", ".join(said.tags),
        _note(point, head if head.part is None else None, said),
    )


def _note(point: fleece.StoredPoint, head: fleece.Header | None, said: fleece.Marks) -> str:
    notes = [] if point.complete else [f"INCOMPLETE: lacks {', '.join(point.missing)}"]
    if said.trouble is not None:
        notes.append("TAGS UNKNOWN")
    if said.pinned:
        notes.append("pinned")
    if said.kept is not None:
        notes.append(local_times(str(said.kept)))
    if head is not None and head.gone:
        notes.append(f"gone: {', '.join(head.gone)}")
    return "; ".join(notes)


def _deltas(point: fleece.StoredPoint) -> Iterator[fleece.Entry]:
    for _, entry in (*sorted(point.disks.items()), *sorted(point.parts.items())):
        yield entry


def _stored(point: fleece.StoredPoint) -> int:
    return sum(entry.stored_bytes for entry in point.deltas.values())


def _tell_delta(
    output: Output, point: fleece.StoredPoint, entry: fleece.Entry, said: fleece.Marks
) -> None:
    """Tell a program of one disk or part of a point."""
    head = entry.header
    fields: dict[str, object] = {"disk": head.disk}
    if head.part is not None:
        fields = {"part": head.part, "name": head.disk}
    output.row(
        "point" if head.part is None else "part",
        "",
        guest=point.guest,
        point=point.id,
        sequence=point.sequence,
        time=point.time,
        **fields,
        mode=head.mode,
        size=head.size,
        parent=head.parent.point if head.parent else None,
        gone=[*head.gone],
        identity=_identity(head.identity),
        root=entry.root,
        stored_bytes=entry.stored_bytes,
        complete=point.complete,
        tags=said.tags,
        pinned=said.pinned,
        path=entry.where,
    )


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
            "part": head.part,
            "parts": [*head.parts],
            "gone": [*head.gone],
            "tags": [*head.tags],
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
    output.answer(lines)
    output.succeed("", **fields)
