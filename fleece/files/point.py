"""The files of a point's disk: which volumes it has, and what is in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fleece import events
from fleece.cancel import CancelToken
from fleece.disk.chain import ChainDisk
from fleece.errors import StoreError, UsageError
from fleece.files.model import FileEntry, FileKind, Volume
from fleece.files.names import possible
from fleece.files.session import FilesError, MissingError, Session
from fleece.files.wire import Head
from fleece.store.store import Store
from fleece.terminal import shown

MOST_DEPTH = 256
"""Folders in folders; more is a loop, or meant to do harm."""

_LATEST = 10**21
"""Nanoseconds since 1970, in the year 33658: what is later, or earlier by as much, is nonsense."""

_MOST_ENTRIES = 1 << 23
"""Entries of one folder, all of which are held in memory."""

_MOST_PROBLEMS = 1 << 16
"""Entries of one folder that cannot be told. Each is a line to somebody, and a folder can have as
many as its volume has room for, or all of them in one block that it shows again and again."""


@contextlib.contextmanager
def open_files(
    store: Store,
    point: str,
    disk: str,
    *,
    guest: str | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[PointFiles]:
    """Look into a disk of a point, without mounting it and without any privilege.

    Args:
        store: that holds the point. It is only read.
        point: an id, a prefix of one, or `latest`.
        disk: the disk's name.
        guest: which guest, if `latest` could mean several.
        cancel: stops it.

    Raises:
        StoreError: the point is not there, or a chain is broken.
        UsageError: the library for file systems is not installed, or there is no such disk.
    """
    with contextlib.closing(Session(cancel or CancelToken())) as session:
        catalogue = store.catalogue()
        entry = catalogue.find(point, guest, disk).disk(disk)
        with catalogue.chain(entry) as chain:
            session.open(ChainDisk(chain))
            yield PointFiles(session, entry.header.point.id, disk)


class PointFiles:
    """The volumes of a disk, and their files. For one thread.

    Attributes:
        point, disk: which.
        volumes: what was found; a volume may have no readable file system.
        warnings: what is to be known of them.
    """

    def __init__(self, session: Session, point: str, disk: str) -> None:
        self._session = session
        self.point = point
        self.disk = disk
        self.warnings: list[str] = []
        self.volumes = tuple(self._volumes())

    def _volumes(self) -> Iterator[Volume]:
        with self._about("the partition table"):
            answers = list(self._session.ask({"do": "volumes"}))
        for head, _ in answers:
            told = dict(head["volume"])
            self.warnings += [f"volume {told['number']}: {text}" for text in told.pop("warnings")]
            obstacle = told.pop("obstacle")
            yield Volume(**told, obstacle=None if obstacle is None else shown(obstacle))

    def volume(self, name: str | None = None) -> Volume:
        """The volume that a number, a name, `group/volume` or a label means.

        Args:
            name: None: the only one with a file system.

        Raises:
            UsageError: there is none, or more than one.
            FilesError: it has no file system that can be read.
        """
        if name is None:
            found = [volume for volume in self.volumes if volume.obstacle is None]
            found = found or [*self.volumes]
        else:
            found = [volume for volume in self.volumes if str(volume.number) == name]
            found = found or [v for v in self.volumes if name in (v.name, v.label)]
        if len(found) != 1:
            what = "no volume" if not found else "more than one volume"
            raise UsageError(
                f"{what} matches" if name is None else f"{what} is called {name}",
                where=f"disk {self.disk}",
                hint="'fleece files STORE POINT DISK ls' lists them; choose one with --volume",
            )
        (volume,) = found
        if volume.obstacle is not None:
            raise FilesError(volume.obstacle, where=self._where(volume))
        return volume

    def find(self, volume: Volume, path: str) -> FileEntry:
        """What is at a path, from the root of the volume's file system. Links are not followed.

        Raises:
            UsageError: nothing is, or the path is none.
            FilesError: the file system is damaged.
            DeltaError: the store is.
        """
        names = [name for name in path.split("/") if name not in ("", ".")]
        if ".." in names:
            raise UsageError("a path in a file system cannot contain '..'", where=path)
        with self._about(self._where(volume, path)):
            try:
                ((head, _),) = self._session.ask(
                    {"do": "find", "volume": volume.number, "names": names}
                )
            except MissingError as error:
                raise self._missing(error, volume, path) from None
        return _entry(head["entry"], volume, "" if not names else "/")

    def _missing(self, error: MissingError, volume: Volume, path: str) -> UsageError:
        at = shown(error.at)
        if error.link is None:
            what = f"{at} has no {shown(error.what)}"
            return UsageError(what, where=self._where(volume, path))
        return UsageError(
            f"{at} is a link to {shown(error.link)}",
            where=self._where(volume, path),
            hint="name the path that it leads to",
        )

    def children(
        self, folder: FileEntry, listener: events.Listener = events.ignore
    ) -> list[FileEntry]:
        """What is in a folder, by name.

        Args:
            folder: of this disk.
            listener: hears `Problem` for each entry that cannot be told, or has a name that no
                file can have; such an entry is left out.

        Raises:
            FilesError: the folder is damaged, or has too many such entries.
            DeltaError: the store is.
        """
        where = self._place(folder)
        found: dict[str, FileEntry] = {}
        problems = 0
        request = {"do": "list", "volume": folder.volume, "id": folder.id}
        with self._about(where):
            for head, _ in self._session.ask(request):
                told = head.get("entry", head)
                name = str(told.get("name", head.get("bad")))
                problem = self._trouble(head, name, found)
                if problem is not None:
                    listener(events.Problem(f"{where}: {shown(name)}", problem))
                    problems += 1
                else:
                    base = folder.path.rstrip("/") + "/"
                    found[name] = _entry(told, folder.volume, base)
                self._check_count(len(found), problems)
        return [found[name] for name in sorted(found)]

    def _check_count(self, found: int, problems: int) -> None:
        """Give a folder up that has more entries than anybody wants to hear of.

        Raises:
            FilesError: it has.
        """
        for count, most, what in (
            (problems, _MOST_PROBLEMS, "entries that cannot be read"),
            (found, _MOST_ENTRIES, "entries"),
        ):
            if count > most:
                self._session.give_up()
                raise FilesError(f"a folder of more than {most} {what}; it is given up")

    def _trouble(self, head: Head, name: str, found: dict[str, FileEntry]) -> str | None:
        """What is wrong with an entry of a folder, if anything."""
        if "bad" in head:
            try:
                self._session.check()
            except StoreError as error:
                return str(error)
            return f"damaged or not supported ({shown(head['what'])})"
        if not possible(name):
            return "this is not a valid file name; it is refused"
        return "the folder has this name twice" if name in found else None

    def walk(
        self, folder: FileEntry, listener: events.Listener = events.ignore
    ) -> Iterator[FileEntry]:
        """All that is in a folder and below, each folder before what is in it.

        A folder that cannot be read, lies in itself, or is `MOST_DEPTH` deep is a `Problem`.
        """
        yield from self._walk(folder, listener, (folder.id,))

    def _walk(
        self, folder: FileEntry, listener: events.Listener, above: tuple[int, ...]
    ) -> Iterator[FileEntry]:
        for entry in self.contents(folder, listener, above):
            yield entry
            if entry.kind is FileKind.FOLDER:
                yield from self._walk(entry, listener, (*above, entry.id))

    def contents(
        self, folder: FileEntry, listener: events.Listener, above: tuple[int, ...]
    ) -> list[FileEntry]:
        """`children` of a folder that is reached through others; what fails is a `Problem`.

        Args:
            folder: to list.
            listener: hears of it.
            above: ids of the folders that lead to it, its own the last.
        """
        try:
            if folder.id in above[:-1]:
                raise FilesError("the folder lies in itself: the file system is damaged")
            if len(above) > MOST_DEPTH:
                raise FilesError(f"more than {MOST_DEPTH} folders in one another")
            return self.children(folder, listener)
        except StoreError as error:
            listener(events.Problem(error.where or self._place(folder), error.what))
            return []

    def pieces(self, file: FileEntry) -> Iterator[tuple[int, bytearray]]:
        """The data of a file in order: (offset, bytes). What is between reads as zeros.

        Take all of it, or no more of this disk.

        Raises:
            FilesError: the file is damaged, or encrypted, or its data is elsewhere.
            DeltaError: the store is damaged where the file is.
        """
        done = 0
        request = {"do": "data", "volume": file.volume, "id": file.id}
        with self._about(self._place(file)):
            for head, blob in self._session.ask(request):
                offset = int(head["data"])
                if offset < done or offset + len(blob) > file.size:
                    raise FilesError("the file has data where it has no place")
                done = offset + len(blob)
                yield offset, blob

    def _place(self, entry: FileEntry) -> str:
        (volume,) = (v for v in self.volumes if v.number == entry.volume)
        return self._where(volume, entry.path)

    def _where(self, volume: Volume, path: str = "") -> str:
        place = f"disk {self.disk} volume {volume.number} ({volume.type})"
        return place if not path else f"{place} {shown(path)}"

    @contextlib.contextmanager
    def _about(self, where: str) -> Iterator[None]:
        """Say of an error where in the file system it was met."""
        try:
            yield
        except FilesError as error:
            error.where = error.where or where
            raise
        except StoreError as error:
            raise type(error)(f"{where}: {error.what}", where=error.where) from error


def _entry(told: Head, volume: Volume | int, base: str) -> FileEntry:
    fields = {key: value for key, value in told.items() if key != "name"}
    number = volume if isinstance(volume, int) else volume.number
    kind = FileKind(fields.pop("kind"))
    if abs(fields["mtime"] or 0) > _LATEST:
        fields["mtime"] = None
    path = base + told["name"] or "/"
    return FileEntry(volume=number, path=path, kind=kind, **fields)
