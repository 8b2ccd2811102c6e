"""Many files are read with few descriptors: by any threads, and each stays the file that it was."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fleece.errors import DeltaError, StoreError
from fleece.fileblob import FileBlob, stored_file
from fleece.handles import Handle, Pool, Replaced


def _files(folder: Path, count: int) -> list[Path]:
    paths = [folder / str(number) for number in range(count)]
    for path in paths:
        path.write_text(path.name.zfill(100))
    return paths


class Opener:
    """Opens a file, and counts how often."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    def __call__(self) -> int:
        self.count += 1
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)


def _read(handle: Handle) -> bytes:
    descriptor = handle.take()
    try:
        return os.pread(descriptor, 100, 0)
    finally:
        handle.give()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_few_descriptors_do_for_many_files(tmp_path: Path) -> None:
    pool, before = Pool(5), _descriptors()
    openers = [Opener(path) for path in _files(tmp_path, 50)]
    handles = [Handle(opener, pool) for opener in openers]
    for number in random.Random(1).choices(range(50), k=500):
        assert int(_read(handles[number])) == number
        assert _descriptors() <= before + 5
    opened = openers[7].count
    for _ in range(9):
        assert int(_read(handles[7])) == 7
    assert openers[7].count <= opened + 1
    for handle in handles:
        handle.close()
        handle.close()
    assert _descriptors() == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        handles[0].take()


def test_what_is_being_read_is_not_closed_and_what_is_closed_meanwhile_ends_with_its_reader(
    tmp_path: Path,
) -> None:
    pool, before = Pool(1), _descriptors()
    one, two, three = (Handle(Opener(path), pool) for path in _files(tmp_path, 3))
    descriptor = one.take()
    for other in (two, three, two):
        _read(other)
        assert int(os.pread(descriptor, 100, 0)) == 0
    one.close()
    assert int(os.pread(descriptor, 100, 0)) == 0
    one.give()
    two.close()
    three.close()
    assert _descriptors() == before


def test_threads_that_read_at_once_get_the_files_they_ask_for(tmp_path: Path) -> None:
    """With fewer descriptors than threads: files are closed and opened all the while."""
    pool, before = Pool(2), _descriptors()
    handles = [Handle(Opener(path), pool) for path in _files(tmp_path, 12)]
    wrong: list[object] = []

    def read(seed: int) -> None:
        for number in random.Random(seed).choices(range(12), k=2000):
            try:
                if int(_read(handles[number])) != number:
                    wrong.append(number)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for handle in handles:
        handle.close()
    assert _descriptors() == before


def _replace(path: Path) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").rename(path)


def _lengthen(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


@pytest.mark.parametrize("change", [_replace, _lengthen, Path.unlink])
def test_another_file_is_not_taken_for_the_one_that_was_open(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    pool = Pool(1)
    path, other = _files(tmp_path, 2)
    handle = Handle(Opener(path), pool)
    change(path)
    assert int(_read(handle)) == 0  # it is still open
    _read(Handle(Opener(other), pool))
    with pytest.raises(Replaced):
        handle.take()


def test_a_delta_that_was_replaced_meanwhile_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(1)
    monkeypatch.setattr("fleece.handles.process_pool", lambda: pool)
    path, other = _files(tmp_path, 2)
    blob = stored_file(str(path))
    path.unlink()
    assert int(blob.read_at(0, 100)) == 0
    stored_file(str(other)).read_at(0, 1)
    for read in (lambda: blob.read_at(0, 1), lambda: blob.data_from(0)):
        with pytest.raises(StoreError, match=r"while it was read.*run it again") as caught:
            read()
        assert not isinstance(caught.value, DeltaError)  # it is not damaged


def test_where_no_more_files_can_be_opened_others_are_closed_for_it(tmp_path: Path) -> None:
    """Whatever the pool believes: other parts of a program have files open, too."""
    pool = Pool(100)
    openers = [Opener(path) for path in _files(tmp_path, 8)]
    handles = [Handle(opener, pool) for opener in openers[:7]]
    refusals = [OSError(24, "Too many open files")]

    def refused_once() -> int:
        if refusals:
            raise refusals.pop()
        return openers[7]()

    before = _descriptors()
    assert int(_read(Handle(refused_once, pool))) == 7
    assert _descriptors() == before - 6
    assert [int(_read(handle)) for handle in handles] == list(range(7))


def test_too_many_open_files_are_no_damage(tmp_path: Path) -> None:
    def refused() -> int:
        raise OSError(24, "Too many open files")

    with pytest.raises(StoreError, match="too many files are open; raise the limit") as caught:
        FileBlob("x", refused)
    assert not isinstance(caught.value, DeltaError)
