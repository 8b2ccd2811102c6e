"""What stands in for ssh: a program that runs on this host what it is to run on another."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def shell(folder: Path, *options: str) -> Path:
    """Make it; FLEECE_RSH takes its path.

    Args:
        folder: where to.
        options: of `fleece serve-store`, as a forced command of sshd would have them.
    """
    made = folder / "rsh"
    words = " ".join(options)
    made.write_text(
        f"""#!/bin/sh
shift  # the host
eval "set -- $1"
shift  # fleece
cd {_ROOT} && exec {sys.executable} -m fleece "$@" {words}
"""
    )
    made.chmod(0o755)
    return made
