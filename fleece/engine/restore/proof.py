"""Which leaves of a disk can be proven from what is left of its deltas.

A point's root proves the top node, a node's hash proves its list of children wherever that is
found, and a leaf's hash proves a leaf, whichever delta holds it: so nothing stale can pass for the
disk. Where no tree is left, order decides: what the newest delta holds is right, and what an older
one holds is right if every newer one is known not to hold that part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleece.delta.salvage import Survey
from fleece.delta.wreck import Wreck
from fleece.extents import Extents, Int64Array
from fleece.tree import BlankDisk, Geometry, HashArray, Tree, build

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Source:
    """One file and what it proves."""

    wreck: Wreck
    survey: Survey


@dataclass(frozen=True)
class Leaves:
    """Leaves that hold data, and where each is.

    Attributes:
        number: int64[n], ascending.
        owner: int64[n], position in the list of sources.
        hashes: uint8[n, hash size].
    """

    number: Int64Array
    owner: Int64Array
    hashes: HashArray

    def within(self, extents: Extents) -> Leaves:
        """Those in ranges of leaf numbers."""
        return self.picked(extents.contains(self.number, self.number + 1))

    def picked(self, keep: Flags) -> Leaves:
        """Those that are flagged."""
        return Leaves(self.number[keep], self.owner[keep], self.hashes[keep])

    @staticmethod
    def joined(parts: Sequence[Leaves]) -> Leaves:
        """All of the parts, which have no leaf in common."""
        number = np.concatenate([part.number for part in parts])
        order = np.argsort(number, kind="stable")
        owner = np.concatenate([part.owner for part in parts])
        hashes = np.concatenate([part.hashes for part in parts])
        return Leaves(number[order], owner[order], hashes[order])


@dataclass(frozen=True)
class Proof:
    """What can be restored.

    Attributes:
        leaves: that hold data. All others are zeros, or are in one of the two sets below.
        lost: whose content is gone, in leaf numbers.
        uncertain: of which nothing left says what they hold, in leaf numbers.
        root: of a disk that has these leaves and zeros in all other places.
    """

    leaves: Leaves
    lost: Extents
    uncertain: Extents
    root: bytes


def prove(members: Sequence[Source], others: Sequence[Source], root: bytes | None) -> Proof:
    """Find what can be proven of a disk at a point.

    Args:
        members: the deltas that lead to the point, newest first, down to a full if it is there.
        others: more files of the same disk, in which parts may be found.
        root: of the disk at the point; None: unknown.
    """
    shape = members[0].wreck.geometry
    sources = [*members, *others]
    seen = _overlay(shape, members)
    built = _build(shape, seen.leaves)
    said = _ask_tree(shape, built, sources, root)
    found, gone = _found(shape, said, sources)
    sure = said.silent.intersect(seen.sure)
    leaves = Leaves.joined([seen.leaves.within(said.proven.union(sure)), found])
    doubted = said.silent.subtract(seen.sure)
    lost = gone.union(doubted.intersect(seen.lost))
    uncertain = doubted.subtract(seen.lost)
    return Proof(leaves, lost, uncertain, _build(shape, leaves).root)


@dataclass(frozen=True)
class _Overlay:
    """The line's deltas laid over one another, as if no tree were there; in leaf numbers.

    Attributes:
        leaves: the newest that is left of each.
        sure: no newer delta can hold these parts.
        lost: the newest delta that holds these has lost them.
    """

    leaves: Leaves
    sure: Extents
    lost: Extents


def _overlay(shape: Geometry, members: Sequence[Source]) -> _Overlay:
    """What was cut off from the disk is left out; what was added to it, a newer delta holds."""
    covered = doubt = sure = lost = Extents.empty()
    parts = []
    for owner, source in enumerate(members):
        survey = source.survey
        visible = _in_leaves(shape, survey.held()).subtract(covered)
        number = survey.leaves
        mine = Leaves(number, np.full(len(number), owner), survey.hashes)
        parts.append(mine.within(visible))
        gone = _in_leaves(shape, survey.lost).subtract(covered)
        sure, lost = sure.union(visible.subtract(doubt)), lost.union(gone)
        covered = covered.union(visible).union(gone)
        doubt = doubt.union(_in_leaves(shape, survey.uncertain))
    return _Overlay(Leaves.joined(parts), sure, lost)


def _in_leaves(shape: Geometry, extents: Extents) -> Extents:
    size = shape.leaf_size
    leaves = Extents.normal(extents.start // size, -(-extents.end // size))
    return leaves.clip(0, shape.leaves)


def _build(shape: Geometry, leaves: Leaves) -> Tree:
    """The tree of a disk with these leaves and zeros in all other places."""
    return build(shape, leaves.number, leaves.hashes, Extents.empty(), BlankDisk(shape))


@dataclass(frozen=True)
class _Answer:
    """What the trees that are left say of the overlay; in leaf numbers.

    Attributes:
        proven: here the overlay is the disk.
        silent: here no tree is left.
        number, hashes: the leaves that the overlay has wrong, and the hashes that they must have.
    """

    proven: Extents
    silent: Extents
    number: Int64Array
    hashes: HashArray


def _ask_tree(
    shape: Geometry, built: Tree, sources: Sequence[Source], root: bytes | None
) -> _Answer:
    """Go down from the root, only to where the overlay differs."""
    none = np.empty(0, np.int64)
    top = None if root is None else _top(shape, built, sources, root)
    if top is None:
        nothing = np.empty((0, shape.algorithm.size), np.uint8)
        return _Answer(Extents.empty(), Extents.whole(shape.leaves), none, nothing)
    nodes, wanted = np.zeros(1, np.int64), np.frombuffer(top, np.uint8).reshape(1, -1)
    proven = silent = Extents.empty()
    for level in range(shape.height, -1, -1):
        same = np.all(_hashes(shape, built, level, nodes) == wanted, axis=1)
        proven = proven.union(_under(shape, level, nodes[same]))
        nodes, wanted = nodes[~same], wanted[~same]
        if level > 0:
            children, known = _children(shape, level, nodes, wanted, sources)
            silent = silent.union(_under(shape, level, nodes[~known]))
            first = nodes[known, np.newaxis] * shape.fan_out
            nodes = (first + np.arange(shape.fan_out)).reshape(-1)
            inside = nodes * shape.fan_out ** (level - 1) < shape.leaves
            nodes = nodes[inside]
            wanted = children[known].reshape(-1, shape.algorithm.size)[inside]
    return _Answer(proven, silent, nodes, wanted)


def _top(shape: Geometry, built: Tree, sources: Sequence[Source], root: bytes) -> bytes | None:
    """The hash of the top node: the one from which the root follows."""
    said = [built.top, shape.zeros[shape.height]]
    said += [source.wreck.top for source in sources if source.wreck.top is not None]
    for source in sources:
        for _, children in source.wreck.nodes(shape.height, np.zeros(1, np.int64)):
            said += [shape.node(shape.height, children.tobytes())] if len(children) else []
    return next((top for top in said if shape.root(top) == root), None)


def _hashes(shape: Geometry, built: Tree, level: int, nodes: Int64Array) -> HashArray:
    """uint8[n, hash size]: the hashes of nodes (ascending) of a built tree."""
    if level == shape.height:
        return np.frombuffer(built.top, np.uint8).reshape(1, -1)[: len(nodes)]
    result = shape.zero_hashes(level, len(nodes)).copy()
    for above in built.levels:
        if above.level == level + 1:
            parent = nodes // shape.fan_out
            at = np.minimum(np.searchsorted(above.nodes, parent), len(above.nodes) - 1)
            hit = above.nodes[at] == parent
            result[hit] = above.children[at[hit], nodes[hit] % shape.fan_out]
    return result


def _children(
    shape: Geometry, level: int, nodes: Int64Array, wanted: HashArray, sources: Sequence[Source]
) -> tuple[HashArray, Flags]:
    """The children of nodes (ascending), from whichever file has a list with the node's hash.

    Returns:
        (children, known): uint8[n, fan-out, hash size], bool[n]: which nodes were found.
    """
    blank = shape.zero_hashes(level - 1, len(nodes) * shape.fan_out)
    result = blank.reshape(len(nodes), shape.fan_out, shape.algorithm.size).copy()
    known = np.all(wanted == shape.zero_hashes(level, len(nodes)), axis=1)
    for source in sources:
        if np.all(known):
            break
        for rows, lists in source.wreck.nodes(level, nodes):
            for row, children in zip(rows.tolist(), lists, strict=True):
                fits = shape.node(level, children.tobytes()) == wanted[row].tobytes()
                if fits and not known[row]:
                    result[row], known[row] = children, True
    return result, known


def _under(shape: Geometry, level: int, nodes: Int64Array) -> Extents:
    """The leaves under nodes."""
    span = shape.fan_out**level
    return Extents.normal(nodes * span, np.minimum((nodes + 1) * span, shape.leaves))


def _found(shape: Geometry, said: _Answer, sources: Sequence[Source]) -> tuple[Leaves, Extents]:
    """The leaves that the overlay has wrong, where any file has the right ones; and the others.

    Right ones of zeros need not be found.
    """
    owner = np.full(len(said.number), -1)
    for at, source in enumerate(sources):
        leaves, hashes = source.survey.leaves, source.survey.hashes
        if len(leaves):
            row = np.minimum(np.searchsorted(leaves, said.number), len(leaves) - 1)
            same = (leaves[row] == said.number) & np.all(hashes[row] == said.hashes, axis=1)
            owner[same & (owner < 0)] = at
    zero = np.all(said.hashes == shape.zero_hashes(0, len(said.number)), axis=1)
    gone = said.number[(owner < 0) & ~zero]
    found = Leaves(said.number, owner, said.hashes).picked(owner >= 0)
    return found, Extents.normal(gone, gone + 1)
