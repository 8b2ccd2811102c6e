"""Stores written without any QEMU: the points of a guest whose disks are known byte by byte."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from fleece.delta.header import ParentRef
from fleece.delta.sink import Sink
from fleece.extents import Extents
from fleece.store.folder.create import is_free
from fleece.store.init import init
from fleece.store.open import open_store
from fleece.tree import BlankDisk, NodeSource
from tests.unit.kit import LEAF, Change, OpenChain, applied, header, write_delta


@dataclass
class Guest:
    """A guest's points in a store.

    Attributes:
        store: the store's folder.
        name: of the guest.
        states: of each disk, its bytes at each point, oldest first.
        points: the points' ids.
        paths: of each disk, its deltas, oldest first.
    """

    store: Path
    name: str = "web"
    states: dict[str, list[bytes]] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)
    paths: dict[str, list[Path]] = field(default_factory=dict)
    _refs: dict[str, ParentRef] = field(default_factory=dict)

    def disk(self, name: str, point: int = -1) -> bytes:
        """A disk's bytes at a point."""
        return self.states[name][point]

    def full(self, sizes: Mapping[str, int]) -> None:
        """The first point: disks of these sizes, all zeros."""
        self.holding({name: bytes(size) for name, size in sizes.items()})

    def holding(self, contents: Mapping[str, bytes]) -> None:
        """The first point: disks of these contents."""
        self.states = {name: [content] for name, content in contents.items()}
        self._point({name: Extents.whole(len(content)) for name, content in contents.items()})

    def change(self, **changes: Sequence[Change]) -> None:
        """One more point, after these changes of disks; the other disks have empty deltas."""
        dirty = {}
        for name, states in self.states.items():
            state, dirty[name] = applied(states[-1], changes.get(name, ()))
            states.append(state)
        self._point(dirty)

    def become(self, **contents: bytes) -> None:
        """One more point, at which these disks hold these bytes; the others have empty deltas."""
        dirty = {}
        for name, states in self.states.items():
            old, new = states[-1], contents.get(name, states[-1])
            states.append(new)
            changed = (
                at for at in range(0, len(new), LEAF) if old[at : at + LEAF] != new[at : at + LEAF]
            )
            dirty[name] = Extents.of((at, min(at + LEAF, len(new))) for at in changed)
        self._point(dirty)

    def _point(self, dirty: Mapping[str, Extents]) -> None:
        sequence = len(self.points) + 1
        store = init(self.store) if is_free(self.store) else open_store(self.store)
        with store.locked(self.name):
            partial = store.begin(self.name, f"{sequence:010x}", sequence)
            for name, extents in dirty.items():
                self._delta(partial.create(name), name, extents, sequence)
            partial.commit()
        self.points.append(f"{sequence:010x}")
        for name in dirty:
            self.paths.setdefault(name, []).append(Path(partial.place(name)))

    def _delta(self, sink: Sink, name: str, dirty: Extents, sequence: int) -> None:
        state = self.states[name][-1]
        disks = tuple(self.states)
        ref = self._refs.get(name)
        head = header(
            len(state), sequence, ref, fan_out=16, guest=self.name, disk=name, disks=disks
        )
        with ExitStack() as stack:
            base: NodeSource = BlankDisk(head.geometry)
            if ref is not None:
                base = stack.enter_context(OpenChain([*reversed(self.paths[name])]))
            summary, _ = write_delta(sink, head, base, state, dirty, sequence, longest=1)
        self._refs[name] = ParentRef(head.point.id, summary.root.hex(), len(state))


def random_changes(chance: random.Random, size: int, count: int) -> list[Change]:
    """Changes of up to four leaves each, a third of them to zeros."""
    made = []
    for _ in range(count):
        start = chance.randrange(size)
        end = min(size, start + chance.randint(1, 4 * LEAF))
        made.append(Change(start, end, chance.choice((0, chance.randint(1, 255), 255))))
    return made


def deep_guest(store: Path, depth: int, sizes: Mapping[str, int], seed: int = 1) -> Guest:
    """A guest with a chain of `depth` points, each of which changed something on every disk."""
    chance = random.Random(seed)
    guest = Guest(store)
    guest.full(sizes)
    for _ in range(depth - 1):
        guest.change(**{name: random_changes(chance, size, 6) for name, size in sizes.items()})
    return guest
