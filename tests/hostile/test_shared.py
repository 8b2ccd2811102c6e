"""Several users of one host: what one of them does stops no other, and may be closed to them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

import fleece
from fleece.engine.work.needs import examine_host
from fleece.store.folder.backend import FolderBackend

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
            with FolderBackend(folder, 0o660).spool() as draft:
                draft.sink.write(b"theirs stays, ours is there")
                assert len([*folder.iterdir()]) == 2
        finally:
            os.seteuid(0)
        assert [*folder.iterdir()] == [theirs]


@pytest.mark.parametrize("name", ["closed/inner", "x" * 300], ids=["closed", "too long"])
def test_a_path_that_cannot_be_looked_at_is_no_bug(name: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        folder = Path(place)
        folder.chmod(0o1777)
        (folder / "closed" / "inner").mkdir(parents=True)
        (folder / "closed").chmod(0o700)
        try:
            os.seteuid(_OTHER)
            with pytest.raises(fleece.StoreError):
                fleece.init(folder / "new", like=folder / name)
            needs = {need.name: need for need in examine_host(folder / name)}
            assert needs["scratch"].trouble is not None
        finally:
            os.seteuid(0)
