"""Folders of this host that are one user's alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fleece.folder import Folder


@contextlib.contextmanager
def private_folder(path: Path) -> Iterator[Folder]:
    """A folder, made if it is not there.

    Raises:
        OSError: it cannot be made, it is somebody else's, or others may look into it.
    """
    with Folder.open(path.parent) as parent:
        with contextlib.suppress(FileExistsError):
            parent.make_folder(path.name).close()
        with parent.folder(path.name) as folder:
            found = os.fstat(folder.descriptor)
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise PermissionError(1, "is not this user's alone", str(path))
            yield folder


def runtime_folder() -> Path:
    """The folder of what this user's processes share until the end of the system's run."""
    user = os.geteuid()
    if user == 0:
        return Path("/run/fleece")
    own = Path(f"/run/user/{user}")  # of all this user's sessions, and of cron's
    return own / "fleece" if own.is_dir() else Path(f"/tmp/fleece-{user}")
