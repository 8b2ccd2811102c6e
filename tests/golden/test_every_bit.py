"""No change of a store's bytes, however small, passes: `verify` and `restore` fail each time.

The chain is as small as the format allows and has all there is in it: a full and a delta, data and
zeros in both, records that the newer one covers, tree pages that no restore needs. Each byte is
changed once here, in one bit or in all; with FLEECE_EVERY_BIT=1 both ways
(docs/internals/format.rst, "Every bit counts", has the counts).
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import fleece
from fleece.store.init import init
from fleece.store.store import Store
from tests.rig.process import LIMIT
from tests.unit.kit import LEAF, Change, History, Stored, reassembled, records_of, store_history

_HISTORY = History(
    3 * LEAF + 5,
    2,
    (
        (Change(0, 9, 1), Change(2 * LEAF, 3 * LEAF + 5, 2)),
        (Change(0, LEAF, 3), Change(2 * LEAF, 3 * LEAF, 0)),
    ),
)


_NEWEST = f"{len(_HISTORY.steps):010x}"
_Family = tuple[type[fleece.FleeceError], ...]
_STORE: _Family = (fleece.StoreError,)
_BOTH_WAYS = os.environ.get("FLEECE_EVERY_BIT") == "1"


@dataclass(frozen=True)
class Small:
    """The chain in a store."""

    store: Store
    files: tuple[Path, ...]
    disk: bytes
    target: Path

    def whole(self) -> None:
        """Check that it is sound as it stands."""
        catalogue = self.store.catalogue()
        assert fleece.verify_store(catalogue).errors == ()
        fleece.restore(self.store, _NEWEST, "vda", str(self.target))
        assert self.target.read_bytes() == self.disk
        self.target.unlink()

    def refused(self, what: str, family: _Family = _STORE) -> None:
        """Check that both fail as one of a family of errors, and leave nothing."""
        catalogue = self.store.catalogue()
        assert fleece.verify_store(catalogue).errors, f"verify: {what}"
        self.unusable(what, family)

    def unusable(self, what: str, family: _Family = _STORE) -> None:
        """Check that the newest point cannot be restored."""
        with suppress(*family):
            fleece.restore(self.store, _NEWEST, "vda", str(self.target))
            pytest.fail(f"restore: {what}")
        with suppress(*family):
            fleece.restore_stream(self.store, _NEWEST, "vda", io.BytesIO())
            pytest.fail(f"restore to a stream: {what}")
        assert os.listdir(self.target.parent) == [], what


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    return store_history(tmp_path_factory.mktemp("small"), _HISTORY, longest=1)


@pytest.fixture
def small(stored: list[Stored], tmp_path: Path) -> Small:
    store = init(tmp_path / "store")
    files = []
    for item in stored:
        folder = tmp_path / "store" / "web" / item.path.stem
        folder.mkdir(parents=True)
        files.append(Path(shutil.copy(item.path, folder / "vda.fleece")))
    (tmp_path / "out").mkdir()
    made = Small(store, tuple(files), stored[-1].disk, tmp_path / "out" / "target")
    made.whole()
    return made


_FILES = pytest.mark.parametrize("number", [0, 1], ids=["the full", "the child"])


@_FILES
def test_a_flip_in_any_byte_is_found(small: Small, number: int) -> None:
    path = small.files[number]
    with path.open("r+b", buffering=0) as file:
        for at, byte in enumerate(path.read_bytes()):
            masks = (0xFF, 1 << at % 8)
            for mask in masks if _BOTH_WAYS else masks[at % 2 :][:1]:
                os.pwrite(file.fileno(), bytes([byte ^ mask]), at)
                small.refused(f"byte {at} xor {mask:#x}")
            os.pwrite(file.fileno(), bytes([byte]), at)
    small.whole()


@_FILES
def test_a_cut_at_any_length_is_found(small: Small, number: int) -> None:
    path = small.files[number]
    raw = path.read_bytes()
    for length in range(len(raw) - 1, -1, -1):
        os.truncate(path, length)
        small.refused(f"cut to {length} bytes")
    path.write_bytes(raw)
    small.whole()


@_FILES
def test_a_byte_too_many_anywhere_is_found(small: Small, number: int) -> None:
    path = small.files[number]
    raw = path.read_bytes()
    for at in range(0, len(raw) + 1, 1 if _BOTH_WAYS else 7):
        path.write_bytes(raw[:at] + b"\0" + raw[at:])
        small.refused(f"a byte put in at {at}")


def _moved(own: list[bytes], foreign: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Every way to move one whole record."""
    count = range(len(own))
    for a, b in itertools.combinations(count, 2):
        swapped = list(own)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        yield f"records {a} and {b} swapped", swapped
    for a in count:
        yield f"record {a} dropped", own[:a] + own[a + 1 :]
        for b in range(len(own) + 1):
            yield f"record {a} doubled at {b}", [*own[:b], own[a], *own[b:]]
    for a, (n, other) in itertools.product(range(len(own) + 1), enumerate(foreign)):
        yield f"record {n} of another delta put in at {a}", [*own[:a], other, *own[a:]]
        yield f"record {n} of another delta put over {a}", [*own[:a], other, *own[a + 1 :]]


@_FILES
@pytest.mark.parametrize("forged", [False, True], ids=["as it is", "index and footer forged"])
def test_records_that_were_moved_dropped_doubled_or_spliced_in_are_found(
    small: Small, number: int, forged: bool
) -> None:
    path = small.files[number]
    own, foreign = records_of(path), records_of(small.files[1 - number])
    raw = path.read_bytes()
    start = raw.index(own[0])
    end = start + sum(map(len, own))
    for what, records in _moved(own, foreign):
        made = raw[:start] + b"".join(records) + raw[end:]
        if forged:
            path.write_bytes(raw)
            made = reassembled(path, records)
        path.write_bytes(made)
        small.refused(what, (fleece.StoreError, fleece.VerifyError) if forged else _STORE)


@_FILES
@pytest.mark.parametrize("padding", [(b"x", b""), (b"", b"x")], ids=["pages", "directory"])
def test_bytes_hidden_between_frames_are_found_though_all_was_forged_to_fit(
    small: Small, number: int, padding: tuple[bytes, bytes]
) -> None:
    path = small.files[number]
    path.write_bytes(reassembled(path, records_of(path), padding=padding))
    small.refused("bytes between the frames")


def test_deltas_that_only_exchanged_their_names_are_the_same_chain(small: Small) -> None:
    one, other = small.files
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])
    small.whole()


def test_a_delta_in_place_of_another_is_found(small: Small, tmp_path: Path) -> None:
    """Of the same store, and of another line with the same guest, disk, points and sizes."""
    full, child = small.files
    steps = ((Change(0, 9, 7), Change(2 * LEAF, 3 * LEAF + 5, 2)), _HISTORY.steps[1])
    (tmp_path / "line").mkdir()
    line = store_history(tmp_path / "line", replace(_HISTORY, steps=steps), longest=1)
    content = full.read_bytes(), child.read_bytes()
    for path, what, made in (
        (full, "the child", content[1]),
        (full, "the other line's full", line[0].path.read_bytes()),
        (full, "nothing", b""),
        (child, "the other line's child", line[1].path.read_bytes()),
        (child, "nothing", b""),
    ):
        path.write_bytes(made)
        small.refused(f"{what} in place of {path}")
        full.write_bytes(content[0])
        child.write_bytes(content[1])
    small.whole()


def test_that_the_newest_delta_is_gone_is_found_by_its_name_alone(small: Small) -> None:
    """Nothing in a store names its newest point: a whole older store cannot be told from it."""
    full, child = small.files
    for made in (full.read_bytes(), None):
        child.unlink()
        if made is not None:
            child.write_bytes(made)
        catalogue = small.store.catalogue()
        with pytest.raises(fleece.StoreError, match="no such point"):
            catalogue.find(_NEWEST)
        small.unusable("the newest is gone")
        child.touch()


@pytest.mark.parametrize("place", [100, 800, 1300])
@_FILES
def test_the_command_line_says_so_in_one_line_and_by_its_exit_code(
    small: Small, number: int, place: int
) -> None:
    raw = bytearray(small.files[number].read_bytes())
    raw[place] ^= 0x20
    small.files[number].write_bytes(raw)
    for words in (
        ("verify", Path(small.store.where)),
        ("restore", Path(small.store.where), _NEWEST, "vda", small.target),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "fleece", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == fleece.ExitCode.STORE
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("fleece: ")
    assert os.listdir(small.target.parent) == []


def test_the_latest_point_is_not_guessed_while_a_damaged_file_may_be_newer(small: Small) -> None:
    whole = small.files[1].stat().st_size
    for length in (10, whole - 1):
        os.truncate(small.files[1], length)
        with pytest.raises(fleece.StoreError, match="which point is the latest is unknown"):
            fleece.restore(small.store, "latest", "vda", str(small.target))


def test_a_damaged_file_that_is_older_leaves_no_doubt_which_point_is_the_latest(
    small: Small,
) -> None:
    os.truncate(small.files[0], small.files[0].stat().st_size - 1)
    assert small.store.catalogue().find("latest").id == _NEWEST
