"""The verb `files`: lists volumes and files of a point, and copies files out of it."""

from __future__ import annotations

import datetime
import stat
from collections.abc import Iterator
from dataclasses import asdict

import fleece
from fleece import events
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.stream import data_output
from fleece.cli.words import CpWords, LsWords
from fleece.errors import StoreError, TargetError, UsageError
from fleece.terminal import counted, human

_TYPES = {
    fleece.FileKind.FILE: stat.S_IFREG,
    fleece.FileKind.FOLDER: stat.S_IFDIR,
    fleece.FileKind.LINK: stat.S_IFLNK,
    fleece.FileKind.PIPE: stat.S_IFIFO,
    fleece.FileKind.SOCKET: stat.S_IFSOCK,
    fleece.FileKind.CHARACTER: stat.S_IFCHR,
    fleece.FileKind.BLOCK: stat.S_IFBLK,
}


class _Problems:
    """Passes events on and counts what went wrong."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.count = 0

    def listen(self, event: events.Event) -> None:
        """A listener for the library's events."""
        self.count += isinstance(event, events.Problem)
        self._output.listen(event)


def ls(output: Output, cancel: CancelToken, words: LsWords) -> None:
    """`fleece files STORE POINT DISK ls [PATH]...`."""
    place = fleece.open_store(words.store, words.secret, cancel)
    with fleece.open_files(
        place, words.point, words.disk, guest=words.guest, cancel=cancel
    ) as files:
        if not words.paths:
            if words.volume is not None or words.long or words.recursive:
                raise UsageError("--volume, -l and -r need a PATH", hint="/ is the root")
            _list_volumes(output, files)
            return
        chosen = files.volume(words.volume)
        _warn(output, files, chosen)
        problems, count = _Problems(output), 0
        for path in words.paths:
            for entry in _entries(files, chosen, path, words.recursive, problems):
                cancel.check()
                count += 1
                _row(output, entry, words.long)
    if problems.count:
        raise StoreError(
            f"{counted(problems.count, 'problem')} in the file system", where=f"disk {words.disk}"
        )
    output.succeed("", point=files.point, disk=words.disk, volume=chosen.number, entries=count)


def _list_volumes(output: Output, files: fleece.PointFiles) -> None:
    for warning in files.warnings:
        output.listen(events.Warned(warning))
    for volume in files.volumes:
        start = "-" if volume.start is None else str(volume.start)
        said = f"  ({volume.obstacle})" if volume.obstacle else ""
        output.row(
            "volume",
            f"{volume.number:>3}  {volume.type:10}  {human(volume.size):>10}  {start:>14}  "
            f"{fleece.shown(volume.label) or '-':16}  {fleece.shown(volume.name) or '-'}{said}",
            **asdict(volume),
        )
    output.succeed("", point=files.point, disk=files.disk, volumes=len(files.volumes))


def _warn(output: Output, files: fleece.PointFiles, volume: fleece.Volume) -> None:
    for warning in files.warnings:
        if warning.startswith(f"volume {volume.number}:"):
            output.listen(events.Warned(warning))


def _entries(
    files: fleece.PointFiles,
    volume: fleece.Volume,
    path: str,
    recursive: bool,
    problems: _Problems,
) -> Iterator[fleece.FileEntry]:
    found = files.find(volume, path)
    if found.kind is not fleece.FileKind.FOLDER:
        yield found
    elif recursive:
        yield from files.walk(found, problems.listen)
    else:
        yield from files.children(found, problems.listen)


def _row(output: Output, entry: fleece.FileEntry, long: bool) -> None:
    text = fleece.shown(entry.path)
    if long:
        owner = "-" if entry.uid is None else f"{entry.uid}/{entry.gid}"
        link = "" if entry.target is None else f" -> {fleece.shown(entry.target)}"
        text = f"{_mode(entry)} {owner:>11} {entry.size:>12} {_time(entry.mtime):>19} {text}{link}"
    fields = asdict(entry) | {"type": entry.kind}
    for name in ("id", "kind", "volume"):
        del fields[name]
    output.row("entry", text, **fields)


def _mode(entry: fleece.FileEntry) -> str:
    """As of `ls -l`; what the file system does not say is `?`."""
    shown = stat.filemode(_TYPES.get(entry.kind, 0) | (entry.mode or 0))
    return shown if entry.mode is not None else shown[0] + "?" * 9


def _time(mtime: int | None) -> str:
    """In UTC, to the second."""
    try:
        when = datetime.datetime.fromtimestamp((mtime or 0) // 10**9, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return "?"
    return "-" if mtime is None else f"{when:%Y-%m-%d %H:%M:%S}"


def cp(output: Output, cancel: CancelToken, words: CpWords) -> None:
    """`fleece files STORE POINT DISK cp PATH... DEST`."""
    place = fleece.open_store(words.store, words.secret, cancel)
    if words.target == "-" and (len(words.paths) != 1 or words.force):
        raise UsageError("standard output takes one file, and no --force")
    with fleece.open_files(
        place, words.point, words.disk, guest=words.guest, cancel=cancel
    ) as files:
        chosen = files.volume(words.volume)
        _warn(output, files, chosen)
        if words.target == "-":
            entry = files.find(chosen, words.paths[0])
            with data_output("a file", TargetError, cancel) as sink:
                size = fleece.copy_stream(files, entry, sink, cancel=cancel)
            output.succeed("", point=files.point, disk=words.disk, volume=chosen.number, bytes=size)
            return
        result = fleece.copy_files(
            files,
            chosen,
            words.paths,
            words.target,
            force=words.force,
            listener=output.listen,
            cancel=cancel,
        )
    fields: dict[str, object] = {"point": files.point, "disk": words.disk, "volume": chosen.number}
    fields |= asdict(result) | {"target": words.target}
    if result.failed:
        failed = StoreError(
            f"{result.failed} of what was asked for could not be copied", where=f"disk {words.disk}"
        )
        failed.fields = fields
        raise failed
    output.succeed(
        f"{counted(result.files, 'file')} ({human(result.bytes)}), "
        f"{counted(result.folders, 'folder')} and "
        f"{counted(result.links, 'link')} copied to {words.target}",
        **fields,
    )
