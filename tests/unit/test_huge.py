"""A delta of a full disk of 16 TiB: nothing is read but what a look-up needs.

The file is sparse: every page and record but the chosen ones is missing, so that touching one
more would be an error (`tests.unit.huge`). tools/bench measures the time and the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fleece.delta.chain import Chain, steps
from fleece.delta.layout import TREE_PAGE_NODES
from fleece.delta.reader import DeltaReader
from fleece.disk.chain import WINDOW, ChainDisk
from fleece.errors import DeltaError
from fleece.store.loose import open_delta
from tests.unit import huge
from tests.unit.huge import MIB

SIZE = 16 << 40
RECORDS = tuple(huge.spread(SIZE, 4))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("huge") / "huge.fleece"
    huge.write(made, SIZE, RECORDS)
    return made


@pytest.fixture
def delta(path: Path) -> Iterator[DeltaReader]:
    with open_delta(path) as opened:
        yield opened


def test_the_index_is_that_of_a_full_disk_of_sixteen_tebibytes(delta: DeltaReader) -> None:
    assert delta.footer.records == SIZE // MIB
    assert sum(page.count for page in delta.pages if page.level == 0) == SIZE // MIB


@pytest.mark.parametrize("number", RECORDS)
def test_a_row_is_found_in_one_page(delta: DeltaReader, number: int) -> None:
    (row,) = delta.rows_within(number * MIB + 4096, number * MIB + 8192)
    assert int(row["offset"]) == number * MIB
    assert not delta.is_zeroed(np.array([number * MIB]))[0]


def test_a_page_that_is_not_needed_is_missing(delta: DeltaReader) -> None:
    """The judge can say no."""
    other = RECORDS[1] * MIB + (4 << 40) // 2
    with pytest.raises(DeltaError, match="no INDEX frame"):
        delta.rows_within(other, other + 1)
    with pytest.raises(DeltaError, match="no INDEX frame"):
        delta.rows()


@pytest.mark.parametrize("number", RECORDS)
def test_a_leaf_is_read_by_decoding_one_frame(delta: DeltaReader, number: int) -> None:
    disk = ChainDisk(Chain([delta]))
    for offset in (number * MIB, number * MIB + 65536 * 7 + 13, (number + 1) * MIB - 4096):
        at = offset - number * MIB
        assert disk.read(offset, 4096) == huge.content(number)[at : at + 4096]
    assert disk.decoded == 1


@pytest.mark.parametrize("number", RECORDS)
def test_the_map_of_a_part_needs_that_part_alone(delta: DeltaReader, number: int) -> None:
    start = number * MIB // WINDOW * WINDOW
    picture = Chain([delta]).map(start, start + WINDOW)
    assert picture.start.tolist() == [*range(start, start + WINDOW, MIB)]
    assert not picture.zero.any()


@pytest.mark.parametrize("number", RECORDS)
def test_a_leafs_hash_is_found_by_one_page_of_each_level(delta: DeltaReader, number: int) -> None:
    geometry = delta.geometry
    for level in range(1, geometry.height + 1):
        node = number * MIB // geometry.leaf_size // geometry.fan_out**level
        first = node // TREE_PAGE_NODES * TREE_PAGE_NODES
        count = min(TREE_PAGE_NODES, -(-geometry.leaves // geometry.fan_out**level) - first)
        found = Chain([delta]).children(level, np.array([node]))
        assert np.array_equal(found[0], huge.children(geometry, level, first, count)[node - first])


def test_parts_of_a_map_hold_a_bounded_number_of_records(delta: DeltaReader) -> None:
    parts = list(steps([delta]))
    assert [end for _, end in parts[:-1]] == [start for start, _ in parts[1:]]
    assert (parts[0][0], parts[-1][1]) == (0, SIZE)
    assert all(end - start <= 256 << 30 for start, end in parts), "a record for each MiB"
    assert len(parts) <= 128
