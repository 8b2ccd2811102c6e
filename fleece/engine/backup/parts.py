"""Store what a point's source tells of the machine: each part in a delta of its own.

Parts are stored before the first disk, and durably: a point whose disks can be resumed has them
all, as they were told when it was taken.
"""

from __future__ import annotations

from collections.abc import Mapping

from fleece.delta.chain import Chain
from fleece.delta.writer import Packer
from fleece.engine.backup.filling import Filling, Opening
from fleece.engine.backup.task import Task
from fleece.engine.backup.unchanged import HeldLeaves
from fleece.engine.work.part import read_part
from fleece.store.catalogue import Entry
from fleece.store.partial_point import PartialPoint, UnfinishedPoint

_BESIDE = 1 << 20
"""Bytes that a part's delta has at most besides what is in it."""


def store_parts(filling: Filling, partial: PartialPoint) -> None:
    """Store the parts of a new point; when this returns, they are durable."""
    below = _below(filling)
    for part in filling.taken.parts:
        with filling.chain(below.get(part.name)) as base:
            head = filling.part_head(part, base)
            made = partial.create(part.name, len(part.data) + _BESIDE)
            writer = filling.writer(head, Opening(made), base)
            packer = Packer(writer)
            same = 0 if base is None else head.covers_from
            if base is not None and same:
                packer.store(0, part.data[:same], HeldLeaves(base, same).hashes(0, same))
            packer.store(same, part.data[same:])
            writer.finish()
            made.sync()


def _below(filling: Filling) -> Mapping[str, Entry]:
    """What parts' deltas build on, by name: those of the newest point that one of the disks has.

    So a part needs no point that its disks do not need, and its line is no longer than theirs.
    """
    lineage = filling.task.lineage
    parents = [made.parent.header.point for made in filling.taken.decisions if made.parent]
    newest = max(parents, key=lambda ref: ref.sequence, default=None)
    for point in lineage.catalogue.of_chain(lineage.guest, lineage.chain_id):
        if newest is not None and point.id == newest.id:
            found = point.parts.items()
            return {name: entry for name, entry in found if lineage.usable(entry) is not None}
    return {}


def prove_parts(task: Task, left: UnfinishedPoint) -> None:
    """Prove the parts that an interrupted backup has stored, each by its root.

    Raises:
        StoreError: one is not whole, or what it builds on is damaged or missing.
    """
    catalogue = task.lineage.catalogue
    for head in left.parts:
        with task.store.part_of(left, head.disk) as delta:
            parents = catalogue.line(Entry.of(delta, delta.where))[1:]
            if parents:
                with catalogue.chain(parents[0]) as older:
                    read_part(older.on(delta))
            else:
                read_part(Chain([delta]))
