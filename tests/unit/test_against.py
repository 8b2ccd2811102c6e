"""An image compared with a point: exactly the leaves that differ are told, and its root."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from fleece.disk.raw import RawDisk
from fleece.engine.check import verify
from fleece.engine.check.verify import compare_image
from fleece.engine.work import scan
from fleece.errors import TargetError
from fleece.extents import Extents
from tests.unit.kit import LEAF, History, OpenChain, histories, naive_root, store_history


@settings(max_examples=200)
@given(
    history=histories(most_leaves=40),
    spoiled=st.sets(st.floats(0, 1, exclude_max=True), max_size=4),
    level=st.sampled_from([1, 2, 4]),
)
def test_an_image_differs_where_it_was_spoiled_and_nowhere_else(
    history: History, spoiled: set[float], level: int
) -> None:
    """In one region of the disk or in many, whatever its tree's height."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        stored = store_history(Path(name), history)
        image = bytearray(stored[-1].disk)
        wrong = {int(part * len(image)) // LEAF * LEAF for part in spoiled if image}
        for at in wrong:
            image[at] ^= 1
        path = Path(name) / "image"
        path.write_bytes(image)
        for module in (scan, verify):
            stack.enter_context(mock.patch.object(module, "REGION_LEVEL", level))
        chain = stack.enter_context(OpenChain([item.path for item in reversed(stored)]))
        disk = stack.enter_context(contextlib.closing(RawDisk(str(path), TargetError)))
        found = compare_image(chain, disk)
    assert found.differing == Extents.of((at, min(at + LEAF, len(image))) for at in wrong)
    assert found.root == naive_root(bytes(image), history.fan_out).hex()
