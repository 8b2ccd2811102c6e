"""Names that a guest has chosen: which can be a file's."""

from __future__ import annotations

import os


def possible(name: str) -> bool:
    """Whether a file of this system can have a name that a guest has chosen."""
    return possible_link(name) and name not in (".", "..") and "/" not in name


def possible_link(target: str) -> bool:
    """Whether a link of this system can have a target that a guest has chosen."""
    try:
        os.fsencode(target)
    except UnicodeEncodeError:
        return False
    return target != "" and "\0" not in target
