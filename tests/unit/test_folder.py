"""A folder that somebody else writes into: nothing in it is followed, waited for or believed."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleece.folder import Folder, Found, Kind


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with Folder.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the host that nobody may reach through the folder."""
    path = tmp_path_factory.mktemp("elsewhere") / "victim"
    path.write_bytes(b"precious")
    return path


def _plant(folder: Folder, what: str, victim: Path) -> None:
    path = folder.path / "x"
    if what == "link":
        path.symlink_to(victim)
    elif what == "dangling link":
        path.symlink_to(victim.with_name("none"))
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


_PLANTED = ["link", "dangling link", "pipe", "socket", "folder", "device"]


@pytest.mark.parametrize("what", _PLANTED)
def test_what_is_no_regular_file_is_not_opened(folder: Folder, victim: Path, what: str) -> None:
    _plant(folder, what, victim)
    calls = (
        lambda: folder.file("x"),
        lambda: folder.file("x", os.O_RDWR),
        lambda: folder.lasting_file("x"),
        lambda: folder.new_file("x"),
        lambda: folder.read("x", 100),
    )
    for call in calls:
        with pytest.raises(OSError, match=r"regular file|link|exists|directory") as caught:
            call()
        assert caught.value.filename == str(folder.path / "x")
    assert victim.read_bytes() == b"precious"
    assert not victim.with_name("none").exists()


@pytest.mark.parametrize("what", [w for w in _PLANTED if w != "folder"])
def test_a_small_file_takes_the_place_of_whatever_has_its_name(
    folder: Folder, victim: Path, what: str
) -> None:
    _plant(folder, what, victim)
    folder.put("x", b"new")
    assert folder.read("x", 3) == b"new"
    assert folder.entries() == [Found("x", Kind.FILE)]
    assert victim.read_bytes() == b"precious"
    assert not victim.with_name("none").exists()


def test_a_link_to_a_folder_is_no_folder(folder: Folder, victim: Path) -> None:
    (folder.path / "x").symlink_to(victim.parent)
    with pytest.raises(OSError, match="symbolic link") as caught:
        folder.folder("x")
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(OSError, match="symbolic link"):
        folder.remove_folder("x")
    assert victim.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd"])
def test_a_name_is_no_path(folder: Folder, name: str) -> None:
    with pytest.raises(OSError, match="no name"):
        folder.file(name)


def test_a_file_that_is_too_long_is_refused(folder: Folder) -> None:
    folder.put("x", b"1234")
    assert folder.read("x", 4) == b"1234"
    with pytest.raises(OSError, match="longer than the 3 bytes"):
        folder.read("x", 3)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_modes_do_not_follow_the_umask(folder: Folder, umask: int) -> None:
    before = os.umask(umask)
    try:
        os.close(folder.new_file("a"))
        os.close(folder.new_file("b", 0o640))
        folder.put("c", b"")
        folder.make_folder("d").close()
    finally:
        os.umask(before)
    found = {name: stat.S_IMODE(folder.stat(name).st_mode) for name in "abcd"}
    assert found == {"a": 0o600, "b": 0o640, "c": 0o600, "d": 0o700}


def test_a_folder_goes_with_the_links_in_it_and_not_with_what_they_lead_to(
    folder: Folder, victim: Path
) -> None:
    with folder.make_folder("d") as made:
        (made.path / "link").symlink_to(victim)
        made.put("file", b"x")
    folder.remove_folder("d")
    assert folder.entries() == []
    assert victim.exists()


def test_what_fails_to_be_put_leaves_nothing(folder: Folder) -> None:
    (folder.path / "x").mkdir()
    with pytest.raises(OSError, match="directory"):
        folder.put("x", b"new")
    assert folder.entries() == [Found("x", Kind.FOLDER)]


def test_a_lasting_file_is_made_once(folder: Folder) -> None:
    first = folder.lasting_file("x")
    os.write(first, b"kept")
    os.close(first)
    os.close(folder.lasting_file("x"))
    assert folder.read("x", 10) == b"kept"
