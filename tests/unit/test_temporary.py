"""A folder of a process that was killed is removed by the next one that makes a folder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleece.temporary import temporary_folder

_WAITING = """
from fleece.temporary import temporary_folder
with temporary_folder() as folder:
    (folder / "nbd.sock").touch()
    print(folder, flush=True)
    input()
"""


@contextmanager
def _other_process() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    words = [sys.executable, "-c", _WAITING]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_it_goes_when_its_process_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sooner; and nothing else goes, however it is called."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    kept = {"fleece-passing-file1234", "fleece-passing-link1234", "fleece-passing-other"}
    (tmp_path / "fleece-passing-file1234").touch()
    (tmp_path / "fleece-passing-other").mkdir()
    (tmp_path / "fleece-passing-link1234").symlink_to(tmp_path / "fleece-passing-other")
    with _other_process() as (process, theirs):
        with temporary_folder() as mine:
            assert theirs.exists()
            assert mine.parent == tmp_path
        assert not mine.exists()
        process.kill()
        process.wait()
        assert theirs.exists()
        with temporary_folder():
            assert not theirs.exists()
    assert {path.name for path in tmp_path.iterdir()} == kept
