"""Deltas are read out of whatever holds their bytes: no path but a store's root leads to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fleece.delta.reader import DeltaReader
from fleece.delta.wreck import Wreck
from fleece.errors import DeltaError, StoreError
from fleece.fileblob import FileBlob, named_file, stored_file
from fleece.store.catalogue import Access, Catalogue, Damaged, Entry
from fleece.store.damaged_line import line_of
from fleece.store.folder.backend import FolderBackend
from tests.unit.kit import Change, History, store_history


class Held:
    """A blob that is in memory."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.length = data, name, len(data)

    def read_at(self, position: int, length: int) -> bytes:
        if position + length > self.length:
            raise DeltaError("the file is cut", where=self.name)
        return self.data[position : position + length]

    def data_from(self, position: int) -> int:
        return position

    def close(self) -> None:
        pass


def _two(folder: Path) -> list[Path]:
    """A full, and a delta that builds on it."""
    history = History(8 * 4096, 2, ((Change(0, 9999, 7),), (Change(0, 4096, 8),)))
    return [item.path for item in store_history(folder, history, 1)]


def test_a_delta_is_read_out_of_memory_as_out_of_a_file(tmp_path: Path) -> None:
    for path in _two(tmp_path):
        with DeltaReader(named_file(path)) as one, DeltaReader(Held(path.read_bytes(), "x")) as two:
            assert Entry.of(one, "y") == Entry.of(two, "y")
            assert two.where == "x"
        with Wreck(named_file(path)) as left, Wreck(Held(path.read_bytes(), "x")) as right:
            assert [*left.remnants()] == [*right.remnants()]


def test_damaged_files_are_opened_by_their_keys_and_not_by_their_names_in_messages(
    tmp_path: Path,
) -> None:
    """A store need not call a file in messages what it opens it by."""
    held = {f"key {n}": path.read_bytes() for n, path in enumerate(_two(tmp_path))}
    held["key 1"] = held["key 1"][:-1]  # no footer

    class InMemory(FolderBackend):
        def open(self, key: str) -> Held:
            return Held(held[key], f"the file with {key}")

    access = Access(InMemory("store"))
    entry = access.read_entry("key 0")
    with pytest.raises(DeltaError, match="the file with key 1: ") as caught:
        access.open("key 1")
    catalogue = Catalogue([entry], [Damaged("key 1", caught.value)], "store", access)
    said = access.header("key 1")
    assert said is not None
    with pytest.raises(StoreError, match="may be newer"):
        catalogue.find("latest")
    line = line_of(catalogue, said.point.id, "vda")
    assert [part.key for part in line.members] == ["key 1", "key 0"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_regular_file_of_the_store_is_not_opened(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "d.fleece"
    if kind == "link":
        (tmp_path / "victim").write_bytes(b"precious")
        place.symlink_to("victim")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(DeltaError, match=r"symbolic link|regular file") as caught:
        Access(FolderBackend(tmp_path)).open(place.name)
    assert caught.value.where == str(place)


def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    path = _two(tmp_path)[0]
    (tmp_path / "link").symlink_to(path)
    with DeltaReader(named_file(tmp_path / "link")) as delta:
        assert delta.header.parent is None


def test_a_file_gives_just_what_is_asked_for(tmp_path: Path) -> None:
    place = tmp_path / "x"
    place.write_bytes(b"0123456789")
    os.truncate(place, 1 << 20)
    for blob in (stored_file(str(place)), named_file(place)):
        assert isinstance(blob, FileBlob)
        assert (blob.length, blob.read_at(3, 4), blob.read_at(9, 0)) == (1 << 20, b"3456", b"")
        assert blob.data_from(5) == 5
        assert blob.data_from(1 << 19) == 1 << 20
        with pytest.raises(DeltaError, match="the file is cut"):
            blob.read_at((1 << 20) - 1, 2)
        blob.close()
        blob.close()
