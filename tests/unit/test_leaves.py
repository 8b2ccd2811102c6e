"""Runs of leaves: zeros told apart from data, every leaf hashed, the short tail padded."""

from __future__ import annotations

import itertools

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fleece.tree import Geometry, LeafHasher, Run, leaf_hashes

_LEAF = 64
_FIRST = 7 * _LEAF

_leaf = st.sampled_from(
    [bytes(_LEAF), b"\x01" + bytes(_LEAF - 1), bytes(_LEAF - 1) + b"\x01", b"x" * _LEAF]
)
_tail = st.integers(0, _LEAF - 1).flatmap(
    lambda length: st.sampled_from([bytes(length), b"y" * length, bytes(length)[1:] + b"\x01"])
)
_data = st.builds(lambda leaves, tail: b"".join(leaves) + tail, st.lists(_leaf, max_size=9), _tail)


def _naive(data: bytes) -> list[tuple[int, int, bytes | None]]:
    """(offset, length, hash) of every leaf; no hash for zeros."""
    leaves = [(at, data[at : at + _LEAF]) for at in range(0, len(data), _LEAF)]
    return [
        (
            _FIRST + at,
            len(leaf),
            xxhash.xxh3_128_digest(leaf.ljust(_LEAF, b"\0")) if any(leaf) else None,
        )
        for at, leaf in leaves
    ]


def _runs(data: bytes | bytearray | memoryview) -> list[Run]:
    return list(LeafHasher(Geometry(_FIRST + len(data), _LEAF)).runs(_FIRST, data))


@given(_data)
def test_runs_are_the_leaves_joined_as_long_as_they_are_of_one_kind(data: bytes) -> None:
    expected = []
    for blank, group in itertools.groupby(_naive(data), key=lambda leaf: leaf[2] is None):
        leaves = list(group)
        hashes = None if blank else b"".join(leaf[2] or b"" for leaf in leaves)
        expected.append(Run(leaves[0][0], sum(leaf[1] for leaf in leaves), hashes))
    assert _runs(data) == expected


@given(_data)
def test_any_kind_of_buffer_gives_the_same_runs(data: bytes) -> None:
    assert _runs(bytearray(data)) == _runs(memoryview(data)) == _runs(data)


@given(_data)
def test_the_reader_hashes_leaves_as_the_writer_does(data: bytes) -> None:
    geometry = Geometry(len(data), _LEAF)
    blank = xxhash.xxh3_128_digest(bytes(_LEAF))
    expected = b"".join(found or blank for _, _, found in _naive(data))
    assert leaf_hashes(data, geometry) == expected


def test_an_empty_buffer_has_no_runs() -> None:
    assert _runs(b"") == []


def test_one_byte_in_the_last_place_of_a_leaf_makes_it_data() -> None:
    (run,) = _runs(bytes(_LEAF - 1) + b"\x01")
    assert run.hashes is not None
