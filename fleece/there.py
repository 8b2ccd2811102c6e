"""What is at a path, and an error if that cannot be told.

From Python 3.14 on, `Path.exists`, `is_dir` and `is_file` say no where they may not look, or where
the name is too long; before, they raise (docs.python.org/3.14/library/pathlib.html).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def is_taken(path: Path) -> bool:
    """Whether anything is there, links followed. Raises `OSError` if that cannot be told."""
    return _mode(path) != 0


def is_folder(path: Path) -> bool:
    """Whether a folder is there, links followed. Raises `OSError` if that cannot be told."""
    return stat.S_ISDIR(_mode(path))


def is_file(path: Path) -> bool:
    """Whether a regular file is there, links followed; raises `OSError` if that cannot be told."""
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
