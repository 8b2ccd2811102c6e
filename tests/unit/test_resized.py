"""A delta whose parent has another size: what one end cuts off never comes back."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleece.compare import TreeComparison
from fleece.delta.header import ParentRef
from fleece.errors import DeltaError
from fleece.extents import Extents
from tests.unit.kit import (
    LEAF,
    OpenChain,
    differing,
    full_check,
    header,
    naive_root,
    read_back,
    resized_disks,
    store_states,
    write_delta,
)

_ROOT = Path(__file__).parents[2]


def _paths(folder: Path, disks: list[bytes], fan_out: int) -> list[Path]:
    """The files of a chain of these states, newest first."""
    return [item.path for item in reversed(store_states(folder, disks, fan_out))]


@settings(deadline=None)
@given(disks=resized_disks(), fan_out=st.sampled_from([2, 4, 16]))
def test_every_point_of_a_disk_that_is_cut_and_grown_is_exact(
    disks: list[bytes], fan_out: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    paths = _paths(tmp_path_factory.mktemp("resized"), disks, fan_out)
    full_check(paths)
    for number, disk in enumerate(reversed(disks)):
        with OpenChain(paths[number:]) as chain:
            assert chain.root == naive_root(disk, fan_out)
            assert read_back(chain) == disk
            if (leaves := chain.geometry.leaves) > 0:
                hashes = chain.leaf_hashes(0, leaves)
                digest = chain.geometry.algorithm.digest
                assert hashes.tobytes() == b"".join(
                    digest(disk[at : at + LEAF].ljust(LEAF, b"\0"))
                    for at in range(0, len(disk), LEAF)
                )


@settings(deadline=None, max_examples=40)
@given(disks=resized_disks())
def test_what_changed_between_points_of_any_size_is_found(
    disks: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    paths = _paths(tmp_path_factory.mktemp("resized"), disks, 4)
    for (old, new), at in zip(itertools.pairwise(disks), itertools.count()):
        below = len(paths) - 1 - at
        with OpenChain(paths[below:]) as before, OpenChain(paths[below - 1 :]) as after:
            size = max(len(old), len(new))
            wide = differing(old.ljust(size, b"\0"), new.ljust(size, b"\0"), size)
            assert Extents.joined([*TreeComparison(before, after)]) == wide


@pytest.mark.parametrize("sizes", [(9 * LEAF + 5, 30 * LEAF), (30 * LEAF, 9 * LEAF + 5)])
def test_a_reader_by_the_documents_reads_it(sizes: tuple[int, int], tmp_path: Path) -> None:
    disks = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    disks.append(disks[1][: 5 * LEAF] + disks[0][5 * LEAF :])
    paths = _paths(tmp_path, disks, 4)
    target = tmp_path / "raw"
    words = [_ROOT / "tools/read_delta.py", target, *paths]
    subprocess.run([sys.executable, *map(str, words)], check=True)
    assert target.read_bytes() == disks[-1]


@pytest.mark.parametrize("size", [5 * LEAF, 20 * LEAF])
def test_a_delta_that_lacks_what_its_parent_has_not_is_refused(size: int, tmp_path: Path) -> None:
    paths = _paths(tmp_path, [b"a" * (10 * LEAF), b"a" * size], 4)
    with OpenChain(paths[1:]) as chain:
        head = header(size, 2, ParentRef(f"{1:010x}", chain.root.hex(), 10 * LEAF), fan_out=4)
        with paths[0].open("wb") as sink:
            write_delta(sink, head, chain, b"a" * size, Extents.of([(0, LEAF)]))
    with pytest.raises(DeltaError, match="lacks parts"):
        full_check(paths)
