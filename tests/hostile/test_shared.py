"""A store that several users write into: what one of them does stops no other."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from fleece.store.root import Root
from fleece.store.spool import spooled

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")

_OTHER = 65534


def test_another_users_import_stops_none() -> None:
    """Theirs is private until it is whole, so that it can be neither looked at nor removed."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o1777)
        theirs = folder / ".import-0123456789abcdef"
        theirs.touch(0o600)
        try:
            os.seteuid(_OTHER)
            with spooled(Root(folder, 0o660)) as file:
                assert file.path.exists()
        finally:
            os.seteuid(0)
        assert [*folder.iterdir()] == [theirs]
