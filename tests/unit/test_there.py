"""What is at a path, on every Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleece.there import is_file, is_folder, is_taken


def test_what_is_at_a_path_is_told(tmp_path: Path) -> None:
    file, link, loop = tmp_path / "file", tmp_path / "link", tmp_path / "loop"
    file.touch()
    link.symlink_to(tmp_path)
    loop.symlink_to(loop)
    found = {path: (is_taken(path), is_folder(path), is_file(path)) for path in (file, link)}
    assert found == {file: (True, False, True), link: (True, True, False)}
    for ask in (is_taken, is_folder, is_file):
        assert not ask(tmp_path / "none")
        assert not ask(file / "none")
        for path in (tmp_path / ("n" * 256), loop):
            with pytest.raises(OSError, match=r"too long|Too many levels"):
                ask(path)
