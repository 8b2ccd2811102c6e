"""The verbs that change what a store keeps."""

from __future__ import annotations

from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli.choosing import guest_choice
from fleece.cli.output import Output
from fleece.cli.table import Column, table
from fleece.cli.words import MergeWords, PinWords, PruneWords, StatsWords, TagWords
from fleece.terminal import counted, human, local_time, local_times

_MERGING = {"auto": None, "always": True, "never": False}


def merge(output: Output, cancel: CancelToken, words: MergeWords) -> None:
    """`fleece merge STORE POINT [--from FIRST]`."""
    place = fleece.open_store(words.store, words.secret, cancel)
    output.charge(place.usage)
    result = fleece.merge(
        place,
        words.point,
        words.first,
        guest=words.guest,
        listener=output.listen,
        cancel=cancel,
    )
    lines = [
        f"{disk.disk}: stands for {counted(disk.deltas, 'delta')}, "
        f"{counted(disk.frames, 'frame')} copied, {disk.cut} "
        f"cut, {human(disk.stored_bytes)} stored, root {disk.root}"
        for disk in result.disks
    ]
    output.succeed([*lines, f"point {result.point} is merged"], **asdict(result))


def rules_of(words: PruneWords | StatsWords) -> fleece.KeepRules:
    """What a command line says is to be kept."""
    return fleece.KeepRules(
        last=words.last,
        hourly=words.hourly,
        daily=words.daily,
        weekly=words.weekly,
        monthly=words.monthly,
        yearly=words.yearly,
        within=None if words.within is None else fleece.Duration.parse(words.within),
        tags=tuple(words.keep_tags),
        only=tuple(words.tags),
    )


def prune(output: Output, cancel: CancelToken, words: PruneWords) -> None:
    """`fleece prune STORE --keep-...`."""
    rules = rules_of(words)
    place = fleece.open_store(words.store, words.secret, cancel)
    output.charge(place.usage)
    result = fleece.prune(
        place,
        rules,
        guest_choice(words.guest, words.shard),
        dry_run=words.dry_run,
        merging=_MERGING[words.merge],
        listener=output.listen,
        cancel=cancel,
    )
    if output.machine:
        for point in result.points:
            output.row("pruned", "", kept=bool(point.reasons), **asdict(point))
    elif result.points:
        output.listing(table(_PLANNED, [*map(_planned, result.points)], output.width()))
    fields = {name: value for name, value in asdict(result).items() if name != "points"}
    if result.freed_bytes is None:
        text = f"would remove {result.removed} of {counted(len(result.points), 'point')} "
        text += f"and free at most {human(result.removed_bytes)}"
    else:
        text = f"removed {result.removed} of {counted(len(result.points), 'point')}, the store "
        text += f"shrank by {human(result.freed_bytes)}"
    output.succeed(text, points=len(result.points), **fields)


_PLANNED = (
    Column("GUEST", gives_way=True),
    Column("POINT"),
    Column("TIME"),
    Column("STORED", right=True),
    Column("WHAT"),
)


def _planned(point: fleece.PlannedPoint) -> tuple[str, ...]:
    reasons = ", ".join(map(local_times, point.reasons))
    verdict = f"kept: {reasons}" if reasons else "removed"
    merged = "".join(f"; {disk} takes in {n - 1}" for disk, n in sorted(point.merges.items()))
    stored = human(point.stored_bytes)
    return point.guest, point.point, local_time(point.time), stored, verdict + merged


def pin(output: Output, cancel: CancelToken, words: PinWords) -> None:
    """`fleece pin STORE POINT`."""
    store = fleece.open_store(words.store, words.secret, cancel)
    found = fleece.set_pin(store, words.point, words.guest)
    output.succeed(f"point {found.id} is pinned", point=found.id, guest=found.guest, pinned=True)


def unpin(output: Output, cancel: CancelToken, words: PinWords) -> None:
    """`fleece unpin STORE POINT`."""
    found = fleece.set_pin(
        fleece.open_store(words.store, words.secret, cancel), words.point, words.guest, pinned=False
    )
    text = f"point {found.id} is not pinned"
    output.succeed(text, point=found.id, guest=found.guest, pinned=False)


def tag(output: Output, cancel: CancelToken, words: TagWords) -> None:
    """`fleece tag STORE POINT --add TAG --remove TAG`."""
    found, tags = fleece.set_tags(
        fleece.open_store(words.store, words.secret, cancel),
        words.point,
        words.guest,
        add=_each(words.add_tags),
        remove=_each(words.remove_tags),
        only=_each(words.set_tags) if words.set_tags else None,
    )
    named = f"the {'tag' if len(tags) == 1 else 'tags'} {', '.join(tags)}" if tags else "no tags"
    output.succeed(f"point {found.id} has {named}", point=found.id, guest=found.guest, tags=tags)


def _each(lists: list[tuple[str, ...]]) -> list[str]:
    return [tag for tags in lists for tag in tags]
