"""A dry run of prune refuses what the real one would refuse, with the same words."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import fleece
from tests.engine.scene import INTACT, ROOT
from tests.unit import long

_NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> fleece.Store:
    made = fleece.init(tmp_path / "store")
    long.fill(made, 5)
    return made


def _deltas(store: fleece.Store) -> list[Path]:
    return sorted(Path(store.where).rglob("*.fleece"))


def _cut(store: fleece.Store) -> None:
    os.truncate(_deltas(store)[1], 1000)


def _remove(store: fleece.Store) -> None:
    _deltas(store)[1].unlink()


def _two_in_a_folder(store: fleece.Store) -> None:
    first, second, *_ = _deltas(store)
    first.rename(second.with_name("other.fleece"))


def _in_use(store: fleece.Store) -> AbstractContextManager[None]:
    return store.locked(long.GUEST)


_FAULTS: dict[str, tuple[Callable[[fleece.Store], object], str]] = {
    "cut": (_cut, "damaged or unreadable"),
    "missing": (_remove, "is not in the store"),
    "two in a folder": (_two_in_a_folder, "folder of its own"),
    "in use": (_in_use, "another"),
}


def _state(store: fleece.Store) -> dict[str, int]:
    return {
        str(path): path.lstat().st_ino for path in Path(store.where).rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(("spoil", "words"), _FAULTS.values(), ids=_FAULTS.keys())
def test_a_dry_run_refuses_what_the_real_one_refuses(
    spoil: Callable[[fleece.Store], object], words: str, store: fleece.Store
) -> None:
    with store.locked(long.GUEST):
        pass  # the lock's file is there
    done = spoil(store)
    with done if isinstance(done, AbstractContextManager) else contextlib.nullcontext():
        before = _state(store)
        said = {}
        for option in ("--dry-run", "--json"):
            ran = INTACT.run("prune", Path(store.where), "--keep-last", 2, "--json", option)
            ran.failed(5, words)
            said[option] = ran.result["error"]
        assert said["--dry-run"] == said["--json"]
        assert _state(store) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_both_say_first_that_a_folder_cannot_be_written(
    store: fleece.Store, tmp_path: Path
) -> None:
    """Not when one point is merged, and the next one cannot be."""
    with store.locked(long.GUEST):
        pass
    for path in [Path(store.where), *Path(store.where).rglob("*")]:
        os.chown(path, _NOBODY, _NOBODY)
    for path in [tmp_path, *tmp_path.parents]:
        if path != Path("/"):
            path.chmod(path.stat().st_mode | 0o005)
    closed = _deltas(store)[0].parent
    closed.chmod(0o500)
    before = _state(store)
    code = f"import os, sys; os.setgid({_NOBODY}); os.setuid({_NOBODY}); " + (
        "from fleece.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    for option in ("--dry-run", "--json"):
        words = [sys.executable, "-c", code, "prune", str(Path(store.where)), "--keep-last", "2"]
        done = subprocess.run(
            [*words, "--json", option], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 5, done.stdout + done.stderr
        assert "cannot be written" in done.stdout
        assert str(closed) in done.stdout
        assert _state(store) == before
