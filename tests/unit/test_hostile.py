"""Files that mean harm: refused by their measures, before anything is made of them.

More of this kind is in test_delta.py (lengths, bombs, bounds) and in tests/fuzz.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fleece.delta import header as header_module
from fleece.delta import pages
from fleece.delta.layout import MAX_PAGE, Tag, seal
from fleece.errors import DeltaError, StoreError
from fleece.hashing import XXH3_128
from fleece.store.init import init
from fleece.store.loose import open_delta
from fleece.store.names import MARKER
from fleece.store.open import open_store
from fleece.tree import Geometry, Level
from tests.unit.kit import LEAF, header

_FIXED = header_module._FIXED


def _with_text(text: bytes, path: Path) -> Path:
    """A file that begins with a header of this text, every hash and length right."""
    fixed = _FIXED.pack(b"fleece delta v1\n", 1, 1, 0, 0, 0, len(text))
    path.write_bytes(seal(Tag.HEADER, fixed + text, XXH3_128))
    return path


def _text() -> str:
    frame = header_module.pack(header(LEAF))
    return frame[12 + _FIXED.size : -16].decode()


@pytest.mark.parametrize("count", [16, 500_000])
@pytest.mark.parametrize("bracket", ["[", '{"a":', "[[],"])
def test_json_that_is_nested_too_deep_is_refused_before_it_is_parsed(
    bracket: str, count: int, tmp_path: Path
) -> None:
    """Whatever the interpreter's recursion limit is: the parser's stack is C's."""
    nested = (bracket * count)[:900_000] + "0"
    text = _text().rstrip().removesuffix("}") + f', "more": {nested}'
    path = _with_text(text.encode(), tmp_path / "delta")
    script = (
        "import sys; from fleece.store.loose import open_delta; sys.setrecursionlimit(1 << 30)\n"
        "open_delta(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1].endswith("nested more than 16 deep)")


def test_brackets_in_a_text_are_no_nesting(tmp_path: Path) -> None:
    said = json.loads(_text()) | {"guest": "[" * 99 + '\\"{' * 99}
    path = _with_text(json.dumps(said).encode(), tmp_path / "delta")
    with pytest.raises(DeltaError, match="incomplete or cut"):
        open_delta(path)


@pytest.mark.parametrize("number", ["9" * 5000, "1e999", "NaN", "-0", "true"])
def test_numbers_that_are_none_are_refused(number: str, tmp_path: Path) -> None:
    text = _text().replace(f'"size": {LEAF}', f'"size": {number}')
    assert number in text
    with pytest.raises(DeltaError, match=r"is not valid|incomplete or cut") as caught:
        open_delta(_with_text(text.encode(), tmp_path / "delta"))
    assert ("incomplete" in str(caught.value)) == (number == "-0")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    with pytest.raises(DeltaError, match=r"not a regular file|directory"):
        open_delta(Path("/dev/zero") if kind == "device" else place)


def test_a_marker_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    store = init(tmp_path / "store")
    with open(Path(store.where) / MARKER, "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(StoreError, match="marker cannot be read"):
        open_store(Path(store.where))


def test_tree_pages_are_within_their_limit_whatever_the_fan_out() -> None:
    shape = Geometry(1 << 40, LEAF, 256)
    level = Level(1, np.arange(5000), np.zeros((5000, 256, 16), np.uint8))
    made = list(pages.tree_pages((level,), shape))
    assert all(len(frame) <= MAX_PAGE for frame, _ in made)
    read = [pages.parse_tree(frame, page, shape, "test").nodes for frame, page in made]
    assert np.concatenate(read).tolist() == list(range(5000))
