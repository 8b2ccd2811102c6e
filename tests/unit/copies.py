"""Stores that are backed up into without a QEMU, and what is true of their points."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import uuid

from fleece.delta.header import PointRef
from fleece.delta.part import PartKind, is_part
from fleece.engine.check.verify import verify_store
from fleece.extents import Extents
from fleece.store.store import Store
from fleece.tree import BlankDisk, NodeSource
from tests.unit.kit import LEAF, header, read_back, write_delta

SIZE = 6 * LEAF + 7


class Site:
    """A store that is backed up into, and what is true of each of its points."""

    def __init__(
        self,
        store: Store,
        guest: str = "web",
        disks: tuple[str, ...] = ("vda",),
        size: int = SIZE,
    ) -> None:
        self.store = store
        self.guest = guest
        self.live = dict.fromkeys(disks, bytes(size))
        self.true: dict[str, dict[str, bytes]] = {}
        self.roots: dict[str, dict[str, str]] = {}
        self._numbers = itertools.count(1)

    def back_up(self, seed: int = 0, time: str = "2024-01-01T00:00:00Z") -> str:
        """A point in which a leaf or two of each disk changed."""
        number = next(self._numbers)
        chance = random.Random(f"{self.guest} {number} {seed}")
        store = self.store
        names = tuple(name for name in self.live if not is_part(name))
        parts = tuple(name for name in self.live if is_part(name))
        with store.locked(self.guest):
            catalogue = store.catalogue()
            older = catalogue.of_guest(self.guest)
            partial = store.begin(self.guest, f"{number:010x}", number)
            roots = {}
            for disk in self.live:
                dirty = self._change(disk, chance, full=not older)
                parent = older[-1].deltas[disk] if older else None
                head = dataclasses.replace(
                    header(
                        len(self.live[disk]),
                        number,
                        parent.as_parent() if parent else None,
                        guest=self.guest,
                        disk=disk,
                        disks=names,
                    ),
                    algorithm=store.algorithm,
                    part=PartKind(disk[1:]) if is_part(disk) else None,
                    parts=parts,
                    file_id=uuid.UUID(int=chance.getrandbits(128)),
                    point=PointRef(f"{number:010x}", number, time),
                )
                with contextlib.ExitStack() as stack:
                    base: NodeSource = BlankDisk(head.geometry)
                    if parent is not None:
                        base = stack.enter_context(catalogue.chain(parent))
                    sink, content = partial.create(disk), self.live[disk]
                    made, _ = write_delta(
                        sink, head, base, content, dirty, protection=store.protection
                    )
                roots[disk] = made.root.hex()
            partial.commit(known=catalogue)
        self.true[f"{number:010x}"] = dict(self.live)
        self.roots[f"{number:010x}"] = roots
        return f"{number:010x}"

    def _change(self, disk: str, chance: random.Random, *, full: bool) -> Extents:
        content = bytearray(self.live[disk])
        every = range(-(-len(content) // LEAF))
        leaves = every if full else chance.sample(every, len(every) // 3)
        ranges = [(leaf * LEAF, min((leaf + 1) * LEAF, len(content))) for leaf in leaves]
        for start, end in ranges:
            fill = chance.randbytes(LEAF) * chance.choice([0, 1, 1])
            content[start:end] = fill.ljust(LEAF, b"\0")[: end - start]
        self.live[disk] = bytes(content)
        return Extents.of(ranges)

    def judge(self, store: Store) -> list[str]:
        """All in a store verifies and is what it was at its point; gives the points' ids."""
        catalogue = store.catalogue()
        assert verify_store(catalogue).errors == ()
        mine = [point for point in catalogue.points if point.guest == self.guest]
        for point in mine:
            roots = {name: entry.root for name, entry in point.deltas.items()}
            assert roots == self.roots[point.id]
            for name, entry in point.deltas.items():
                with catalogue.chain(entry) as chain:
                    assert read_back(chain) == self.true[point.id][name]
        return [point.id for point in mine]
