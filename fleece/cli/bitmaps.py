"""The verb `bitmap`: which segments a QEMU keeps, for which store; and dropping those of none."""

from __future__ import annotations

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output, human
from fleece.cli.verbs import open_source
from fleece.terminal import counted


def bitmap(
    output: Output,
    cancel: CancelToken,
    source: str,
    stores: list[str],
    drop: str | None,
    guest: str | None,
    secret: fleece.Secret | None,
) -> None:
    """`fleece bitmap SOURCE [STORE]... [--drop CHAIN]`."""
    places = [fleece.open_store(store, secret) for store in stores]
    with open_source(source, cancel, None) as opened:
        if drop is None:
            found = fleece.segments(opened, places, guest)
            said = "" if found else "there are no segments"
        else:
            found = fleece.drop_segments(opened, drop, places, guest)
            said = f"{counted(len(found), 'segment')} of chain {drop} dropped"
    for kept in found:
        _row(output, kept, dropped=drop is not None)
    output.succeed(said, segments=len(found), dropped=len(found) if drop is not None else 0)


def _row(output: Output, kept: fleece.KeptSegment, *, dropped: bool) -> None:
    segment, held = kept.segment, kept.bitmap
    needed = f"needed by {', '.join(kept.stores)}" if kept.stores else "needed by no STORE given"
    own = segment.is_of(kept.disk)
    whose = "" if own else "begun for another disk, so the next backup reads all  "
    output.row(
        "segment",
        f"{kept.disk}  chain {segment.chain}  since point {segment.point}  {held.state}, "
        f"{human(held.count)} dirty  {whose}{'dropped' if dropped else needed}",
        disk=kept.disk,
        chain=segment.chain,
        point=segment.point,
        sequence=segment.sequence,
        bitmap=held.name,
        state=held.state,
        own=own,
        count=held.count,
        granularity=held.granularity,
        stores=list(kept.stores),
        dropped=dropped,
    )
