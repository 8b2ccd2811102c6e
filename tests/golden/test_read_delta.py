"""tools/read_delta.py, which knows the format's page alone, agrees with fleece."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden.make import CASES, Case, line
from tests.golden.test_golden import FULL, HERE
from tests.unit.kit import (
    History,
    histories,
    naive_root,
    reassembled,
    records_of,
    store_history,
)
from tools.read_delta import TROUBLE, main

TOOL = Path(__file__).parents[2] / "tools" / "read_delta.py"
ALLOWED = {"__future__", "collections", "json", "os", "struct", "sys", "typing"}


def _read(target: Path, *deltas: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-I", *map(str, (TOOL, target, *deltas))]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def _refused(target: Path, *deltas: Path) -> None:
    done = _read(target, *deltas)
    assert done.returncode == 1, done
    assert done.stderr.startswith("read_delta: ")
    assert done.stderr.count("\n") == 1
    assert not target.exists()


def test_it_is_short_and_stands_alone() -> None:
    """150 lines at most, blank ones not counted."""
    text = TOOL.read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 150
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".", maxsplit=1)[0])
    assert names <= ALLOWED | {"xxhash", "zstandard"}


CHILD = HERE / "child.fleece"
ITS_OWN = [case for case in CASES if case.secret is None and case.algorithm.name == "xxh3-128"]
OTHERS = [case for case in CASES if case not in ITS_OWN]


@pytest.mark.parametrize("case", ITS_OWN, ids=[case.name for case in ITS_OWN])
def test_it_reads_the_golden_files(case: Case, tmp_path: Path) -> None:
    target = tmp_path / "raw"
    done = _read(target, *(HERE / f"{part.name}.fleece" for part in line(case.name)))
    assert (done.stderr, target.read_bytes()) == ("", case.disk)
    assert done.stdout == naive_root(case.disk, 16, 65536).hex() + "\n"


@pytest.mark.parametrize("case", OTHERS, ids=[case.name for case in OTHERS])
def test_it_refuses_what_needs_another_hash_or_a_key(case: Case, tmp_path: Path) -> None:
    _refused(tmp_path / "raw", HERE / f"{case.name}.fleece")


@given(history=histories(), turn=st.integers(0, 3))
def test_it_reads_any_chain(history: History, turn: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = store_history(folder, history)
        paths = [str(item.path) for item in stored]
        at = turn % len(paths)
        main(str(folder / "raw"), *paths[at:], *paths[:at])
        assert (folder / "raw").read_bytes() == stored[-1].disk


@pytest.mark.parametrize("which", [FULL, CHILD], ids=["full", "child"])
def test_damage_is_refused(which: Path, tmp_path: Path) -> None:
    """In the header, in records, frames and the footer; pages it does not read."""
    sound = which.read_bytes()
    records = sound.index(records_of(which)[0])
    pages = sound.index(b"FTRE")
    places = [
        *range(0, records, 97),
        *range(records, pages - 4, 31),
        *range(len(sound) - 172, len(sound), 13),
    ]
    broken = tmp_path / "broken"
    other = [FULL] if which == CHILD else []
    for place in places:
        broken.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(TROUBLE):
            main(str(tmp_path / "raw"), str(broken), *map(str, other))
        assert not (tmp_path / "raw").exists()
    for length in (0, 7, 40, records, pages, len(sound) - 1):
        broken.write_bytes(sound[:length])
        _refused(tmp_path / "raw", broken, *other)


def test_a_root_that_is_not_the_disks_is_refused(tmp_path: Path) -> None:
    """A well-made file that lost a record."""
    broken = tmp_path / "broken"
    broken.write_bytes(reassembled(CHILD, records_of(CHILD)[:-1]))
    assert "another root" in _read(tmp_path / "raw", broken, FULL).stderr
    _refused(tmp_path / "raw", broken, FULL)


def test_what_is_no_chain_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "raw"
    _refused(target, CHILD)
    _refused(target)
    again = tmp_path / "again"
    shutil.copy(FULL, again)
    _refused(target, FULL, again)
    _refused(target, FULL, tmp_path / "missing")


def test_a_target_that_exists_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "raw"
    target.write_text("mine")
    assert _read(target, FULL).returncode == 1
    assert target.read_text() == "mine"
