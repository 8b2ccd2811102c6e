"""The verb `bitmap`: which segments a source keeps, for which store; and dropping those of none."""

from __future__ import annotations

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.words import BitmapWords
from fleece.terminal import counted, human


def bitmap(output: Output, cancel: CancelToken, words: BitmapWords) -> None:
    """`fleece bitmap SOURCE [STORE]... [--drop CHAIN]`."""
    places = [fleece.open_store(store, words.secret, cancel) for store in words.stores]
    with fleece.open_source(
        words.source, fleece.SourceOptions(connect=words.connect), cancel
    ) as opened:
        if words.drop is None:
            found = fleece.segments(opened, places, words.guest)
            said = "" if found else "there are no segments"
        else:
            found = fleece.drop_segments(opened, words.drop, places, words.guest)
            said = f"{counted(len(found), 'segment')} of chain {words.drop} dropped"
    for kept in found:
        _row(output, kept, dropped=words.drop is not None)
    output.succeed(said, segments=len(found), dropped=len(found) if words.drop is not None else 0)


def _row(output: Output, kept: fleece.KeptSegment, *, dropped: bool) -> None:
    held = kept.bitmap
    needed = f"needed by {', '.join(kept.stores)}" if kept.stores else "needed by no STORE given"
    dirty = "" if held.changed is None else f", {human(held.changed)} dirty"
    whose = "" if held.own else "begun for another disk, so the next backup reads all  "
    output.row(
        "segment",
        f"{held.disk}  chain {held.chain_id}  since point {held.point}  {held.state}"
        f"{dirty}  {whose}{'dropped' if dropped else needed}",
        disk=held.disk,
        chain=held.chain_id,
        point=held.point,
        sequence=held.sequence,
        bitmap=held.name,
        state=held.state,
        own=held.own,
        count=held.changed,
        granularity=held.granularity,
        stores=list(kept.stores),
        dropped=dropped,
    )
