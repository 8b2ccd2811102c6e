"""A disk of any size and any tree goes into a stream as it is."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

import fleece
from fleece.extents import Extents
from fleece.tree import BlankDisk
from tests.unit.kit import LEAF, header, write_delta


@pytest.mark.parametrize("fan_out", [2, 16])
@pytest.mark.parametrize("size", [0, 1, LEAF, 16 * LEAF, 16 * LEAF + 1, 600 * LEAF + 7])
def test_a_stream_gets_every_byte(size: int, fan_out: int, tmp_path: Path) -> None:
    """With a fan-out of 2 the regions in which it is hashed are smaller than the pieces read."""
    content = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    store = fleece.init(tmp_path / "store")
    head = header(size, fan_out=fan_out)
    with store.locked("web"):
        partial = store.begin("web", head.point.id, 1)
        base = BlankDisk(head.geometry)
        write_delta(partial.create("vda"), head, base, content, Extents.whole(size))
        partial.commit()
    sink = io.BytesIO()
    result = fleece.restore_stream(store, "latest", "vda", sink)
    assert sink.getvalue() == content
    assert result.root == store.catalogue().find("latest").disk("vda").root
