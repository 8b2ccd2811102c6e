"""Copy files out of a point."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.sink import Sink
from fleece.errors import StoreError, TargetError, UsageError
from fleece.events import Phase, Progress
from fleece.files.model import FileEntry, FileKind, Volume
from fleece.files.names import possible_link
from fleece.files.point import PointFiles
from fleece.files.session import FilesError
from fleece.files.target import Folder, UnfitError
from fleece.terminal import shown
from fleece.there import is_folder

_ZEROS = bytes(1 << 20)
_LARGE = 1 << 44
_MOST_SPARSE = 1024
"""A file of more than 16 TiB that is this many times larger than its volume is not believed."""


@dataclass
class CopyResult:
    """What was copied.

    Attributes:
        files, folders, links: how many.
        bytes: of the files' sizes.
        skipped: devices, pipes and sockets.
        failed: what could not be copied; each was a `Problem`.
    """

    files: int = 0
    folders: int = 0
    links: int = 0
    bytes: int = 0
    skipped: int = 0
    failed: int = 0


def copy_files(
    files: PointFiles,
    volume: Volume,
    paths: Sequence[str],
    target: str | os.PathLike[str],
    *,
    force: bool = False,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> CopyResult:
    """Copy files and folders, with all that is in them, as `cp -r` does.

    Into `target` if that is a folder; else `target` is the copy's name. Times and permissions are
    copied, owners and set-id bits are not. Links are copied as links. A file that cannot be read
    whole is a `Problem`, is not there, and the rest is copied.

    Args:
        files: of a disk.
        volume: of it.
        paths: from the root of the volume's file system; `/` is all that is in it.
        target: a folder, or the name of a copy in one.
        force: replace files that exist; folders never are, nor a folder by a file. A file that
            this call has made is not replaced by another of the same name: that is a `Problem`.
        listener: hears `Copied`, `Progress`, `Warned` and `Problem`.
        cancel: stops it; whole files stay.

    Raises:
        UsageError: there is no such path.
        TargetError: something exists already, or cannot be written. Whole files stay.
        StoreError: a path itself cannot be looked up.
    """
    entries = [files.find(volume, path) for path in paths]
    where = Path(target)
    run = _Copying(files, listener, cancel or CancelToken())
    if _is_folder(where):
        with Folder.open(where, force=force) as folder:
            for entry in entries:
                run.into(folder, entry, entry.name)
            folder.sync()
        return run.result
    if len(entries) != 1:
        raise UsageError("several paths can only be copied into a folder that exists", where=where)
    if not _is_folder(where.parent) or not where.name:
        raise TargetError("the folder does not exist", where=where.parent)
    with Folder.open(where.parent, force=force) as folder:
        run.into(folder, entries[0], where.name)
        folder.sync()
    return run.result


def _is_folder(path: Path) -> bool:
    try:
        return is_folder(path)
    except OSError as error:
        raise TargetError(error.strerror or str(error), where=path) from error


class _Copying:
    """One run of copying."""

    def __init__(self, files: PointFiles, listener: events.Listener, cancel: CancelToken) -> None:
        self._files = files
        self._listener = listener
        self._cancel = cancel
        self.result = CopyResult()

    def into(self, folder: Folder, entry: FileEntry, name: str) -> None:
        """Copy what the caller has named into a folder; the root without a name is its content."""
        if name:
            self._copy(folder, entry, name, ())
        else:
            self._content(folder, entry, (entry.id,))

    def _copy(self, folder: Folder, entry: FileEntry, name: str, above: tuple[int, ...]) -> None:
        self._cancel.check()
        try:
            match entry.kind:
                case FileKind.FOLDER:
                    self._folder(folder, entry, name, (*above, entry.id))
                case FileKind.FILE:
                    self._file(folder, entry, name)
                case FileKind.LINK:
                    self._link(folder, entry, name)
                case _:
                    self.result.skipped += 1
                    self._listener(events.Warned(f"{shown(entry.path)} is a {entry.kind}; skipped"))
                    return
        except (StoreError, UnfitError) as error:
            self._problem(events.Problem(error.where or shown(entry.path), error.what))
            return
        self._listener(events.Copied(entry.path, entry.kind, entry.size))

    def _folder(self, folder: Folder, entry: FileEntry, name: str, above: tuple[int, ...]) -> None:
        with folder.folder(name) as made:
            self._content(made, entry, above)
            made.finish(entry.mode, entry.mtime)
        self.result.folders += 1

    def _content(self, folder: Folder, entry: FileEntry, above: tuple[int, ...]) -> None:
        for child in self._files.contents(entry, self._problem, above):
            self._copy(folder, child, child.name, above)

    def _file(self, folder: Folder, entry: FileEntry, name: str) -> None:
        _check_size(self._files, entry)
        with folder.file(name, entry.mode, entry.mtime) as file:
            for offset, data in self._files.pieces(entry):
                self._cancel.check()
                file.write(offset, data)
                done = offset + len(data)
                self._listener(Progress(Phase.FILES, shown(entry.path), done, entry.size))
            file.end_at(entry.size)
        self.result.files += 1
        self.result.bytes += entry.size

    def _link(self, folder: Folder, entry: FileEntry, name: str) -> None:
        target = entry.target or ""
        if not possible_link(target):
            raise FilesError("no link can have this target", where=shown(entry.path))
        folder.link(name, target, entry.mtime)
        self.result.links += 1

    def _problem(self, event: events.Event) -> None:
        self.result.failed += 1
        self._listener(event)


def copy_stream(
    files: PointFiles,
    entry: FileEntry,
    sink: Sink,
    *,
    cancel: CancelToken | None = None,
) -> int:
    """Write a file to a stream, its holes as zeros; gives the number of bytes.

    What is written before damage is met is right; an error says that it is not all.

    Args:
        files: of the disk.
        entry: a file of it.
        sink: where the bytes go.
        cancel: stops it.

    Raises:
        UsageError: it is not a file.
        FilesError: the file system is damaged.
        DeltaError: the store is.
        TargetError: the stream takes no more.
    """
    if entry.kind is not FileKind.FILE:
        raise UsageError(f"is a {entry.kind}, not a file", where=shown(entry.path))
    _check_size(files, entry)
    token = cancel or CancelToken()
    done = 0
    for offset, data in files.pieces(entry):
        _zeros(sink, offset - done, token)
        _write(sink, memoryview(data), token)
        done = offset + len(data)
    _zeros(sink, entry.size - done, token)
    return entry.size


def _check_size(files: PointFiles, file: FileEntry) -> None:
    """Refuse a file that is larger than any sparse file in its volume is likely to be.

    Raises:
        FilesError: it is.
    """
    (volume,) = (known for known in files.volumes if known.number == file.volume)
    if file.size > max(_LARGE, _MOST_SPARSE * volume.size):
        raise FilesError(f"a file of {file.size} bytes: damaged", where=shown(file.path))


def _zeros(sink: Sink, count: int, cancel: CancelToken) -> None:
    while count > 0:
        part = min(count, len(_ZEROS))
        _write(sink, memoryview(_ZEROS)[:part], cancel)
        count -= part


def _write(sink: Sink, view: memoryview, cancel: CancelToken) -> None:
    while len(view):
        cancel.check()
        try:
            taken = sink.write(view)
        except OSError as error:
            raise TargetError(f"the output takes no more ({error.strerror})") from error
        if not taken:
            raise TargetError("the output takes no bytes; it must block until it can")
        view = view[taken:]
