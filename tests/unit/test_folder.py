"""A folder that somebody else writes into: nothing in it is followed, waited for or believed."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleece.folder import Folder, Found, Kind

_NOBODY = 65534


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
    folder.put("mine", b"x")
    calls = (
        lambda: folder.file(name),
        lambda: folder.new_file(name),
        lambda: folder.folder(name),
        lambda: folder.make_folder(name),
        lambda: folder.stat(name),
        lambda: folder.has(name),
        lambda: folder.remove(name),
        lambda: folder.remove_empty(name),
        lambda: folder.rename(name, "x"),
        lambda: folder.rename("mine", name),
    )
    for call in calls:
        with pytest.raises(OSError, match="is not a file's name"):
            call()
    assert folder.read("mine", 1) == b"x"


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


def test_the_umask_keeps_nobody_out_of_a_folder_of_their_own() -> None:
    """As a user whom permissions bind."""
    script = """
import os, sys, tempfile
from fleece.folder import Folder
with tempfile.TemporaryDirectory() as place, Folder.open(place) as folder:
    os.umask(0o777)
    with folder.make_folder("d") as made:
        made.put("file", b"x")
        print(made.entries()[0].name)
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", script],
        user=_NOBODY if os.geteuid() == 0 else None,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("file\n", "")


def test_a_folder_whose_files_have_its_group_hands_that_on(folder: Folder) -> None:
    os.fchmod(folder.descriptor, 0o2770)
    folder.make_folder("d", 0o770).close()
    assert stat.S_IMODE(folder.stat("d").st_mode) == 0o2770


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_modes_takes_files(
    folder: Folder, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fchmod(descriptor: int, mode: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fchmod", fchmod)
    before = os.umask(0o077)
    try:
        if error == errno.EIO:
            with pytest.raises(OSError, match="Input/output"):
                folder.put("x", b"1", 0o640)
            return
        folder.put("x", b"1", 0o640)
        folder.make_folder("d", 0o750).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat("x").st_mode) == 0o600


def test_a_file_with_two_names_is_not_opened_where_that_matters(
    folder: Folder, victim: Path
) -> None:
    folder.put("x", b"1")
    os.close(folder.file("x", os.O_RDWR, sole=True))
    os.link(folder.path / "x", folder.path / "y")
    with pytest.raises(OSError, match="other names"):
        folder.file("x", os.O_RDWR, sole=True)
    assert folder.read("y", 1) == b"1"


def test_kinds_are_told_without_following(folder: Folder, victim: Path) -> None:
    for name in _PLANTED:
        _plant(folder, name, victim)
        (folder.path / "x").rename(folder.path / name)
    folder.put("file", b"")
    kinds = {found.name: found.kind for found in folder.entries()}
    assert kinds == {
        "file": Kind.FILE,
        "folder": Kind.FOLDER,
        "pipe": Kind.OTHER,
        "socket": Kind.OTHER,
        **dict.fromkeys(("link", "dangling link", "device"), Kind.LINK),
    }


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
