"""The folder of a point's scratch files and sockets, held by a lock that dies with its engine.

It belongs to the engine's user, and nobody else can make a name in it: by that the next run knows
it. QEMU's user passes through it, owns the scratch files, and makes its socket in a folder of its
own in there. Whatever else bears the name of a work folder is a stranger's: nothing in it is read,
followed, waited for or removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleece.acl import admit
from fleece.closing import Closing
from fleece.errors import FleeceError, PointError, SourceError
from fleece.folder import PRIVATE_FOLDER, Folder
from fleece.source.place import candidates, opened_scratch

PREFIX = "fleece-"
"""What the names of all that fleece makes begin with."""
QEMU_FOLDER = "qemu"
"""The one folder in a point's work folder, for what QEMU makes itself."""
SOCKET = f"{QEMU_FOLDER}/nbd.sock"
SINK = "sink.nbd"
"""The socket of the engine's own NBD server, which QEMU pushes into."""
LOCK = "lock"
SERVER = "server"
JOINED = "joined"
"""Names the work folder of the run whose NBD server this run uses."""
FROZEN = "frozen"
STOPPED = "stopped"

_LONGEST_SOCKET = 107
_LONGEST_NOTE = 4096
_LONGEST_LOCK = 128
_MOST_NAMES = 10_000
_PASSED_THROUGH = 0o711
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NONE_OF_OURS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM)
"""What the kernel says of what is no folder, or not for us. All else is a failure."""

_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{8}}-[0-9a-f]{{10}}")
_NOTE = rf"{LOCK}|{SERVER}|{JOINED}|{FROZEN}|{STOPPED}"
_OWN_FILE = re.compile(rf"{_NOTE}|\.({_NOTE})\.new-[0-9a-f]{{16}}")
_SCRATCH_FILE = re.compile(r"s[0-9]+\.(qcow2|raw)")
_KEPT_BY_NFS = re.compile(r"\.nfs[0-9a-f]+")
"""What an NFS client calls a removed file that somebody has open."""


def folder_name(chain_id: str, point: str) -> str:
    """The name of a point's work folder, with which the names of all its things begin."""
    return f"{PREFIX}{chain_id}-{point}"


@dataclass(frozen=True)
class Owner:
    """The user of the QEMU that a work folder is made for."""

    uid: int
    gid: int


class Strange(Exception):
    """A work folder is not as fleece makes one; the message says in which way."""


class WorkFolder(Closing):
    """An open work folder of our own. Use it as a context manager, or `close` it.

    Attributes:
        folder: it.
        path: of it, without links, as QEMU is told of it.
        foreign: a file is in it that this user put there, and fleece did not.
    """

    def __init__(self, folder: Folder, parent: Folder) -> None:
        self.folder = folder
        self.path = folder.path
        self.foreign = False
        self._parent = parent
        self._lock = -1

    @staticmethod
    def open(path: Path) -> WorkFolder:
        """Open one that was made before.

        Raises:
            Strange: it is none of ours.
            OSError: there is none, or it cannot be opened.
        """
        with contextlib.ExitStack() as undo:
            parent = undo.enter_context(Folder.open(path.parent))
            found = WorkFolder(undo.enter_context(parent.folder(path.name)), parent)
            found.check()
            undo.pop_all()
        return found

    @staticmethod
    def make(scratch: Path, name: str, owner: Owner, holder: str) -> WorkFolder:
        """Make one in a scratch folder, and hold it. If it fails, nothing of it stays.

        Args:
            scratch: the folder.
            name: its own.
            owner: who may go in.
            holder: what holds its point, for `holder` to tell.

        Raises:
            Strange: the file system does not keep owners and modes.
            SourceError: a part of it cannot be given to QEMU's user.
            OSError: it cannot be made.
        """
        with contextlib.ExitStack() as undo:
            parent = undo.enter_context(opened_scratch(scratch))
            mode = _PASSED_THROUGH if _is_other(owner) else PRIVATE_FOLDER
            made = WorkFolder(undo.enter_context(parent.make_folder(name, mode)), parent)
            undo.callback(made._remove_new)
            made.check()
            with made.folder.make_folder(QEMU_FOLDER) as theirs:
                made._share(theirs, owner)
            made._lock = made.folder.new_file(LOCK)
            undo.callback(os.close, made._lock)
            fcntl.flock(made._lock, fcntl.LOCK_EX)
            os.write(made._lock, holder.encode())
            undo.pop_all()
        return made

    def _remove_new(self) -> None:
        for remove, name in (
            (self.folder.remove_empty, QEMU_FOLDER),
            (self.folder.remove, LOCK),
            (self._parent.remove_empty, self.path.name),
        ):
            with contextlib.suppress(OSError):
                remove(name)

    def close(self) -> None:
        """Let go of it; safe to repeat."""
        self.folder.close()
        self._parent.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            with contextlib.suppress(OSError):  # it is closed then too
                os.close(self._lock)
            self._lock = -1

    @property
    def socket(self) -> Path:
        """Where QEMU's NBD server listens, if it was started for this point."""
        return self.path / SOCKET

    def check(self) -> None:
        """Raise `Strange` unless only our user can have made it and all that is in it."""
        state = os.fstat(self.folder.descriptor)
        if state.st_uid != os.geteuid():
            raise Strange(f"it is user {state.st_uid}'s")
        mode = stat.S_IMODE(state.st_mode) & ~stat.S_ISGID
        if mode not in (PRIVATE_FOLDER, _PASSED_THROUGH):
            raise Strange(f"its mode is {mode:04o}")
        for number, name in enumerate(self.folder.names()):
            if number == _MOST_NAMES:
                raise Strange(f"it holds more than {_MOST_NAMES} files")
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                if not _fits(name, self.folder.stat(name)):
                    raise Strange("it holds what fleece does not make there")
                self.foreign |= not is_known(name)

    def hold(self) -> bool:
        """Hold its lock for as long as this process lives; whether nobody else does.

        Raises:
            OSError: there is none, or it cannot be locked.
        """
        descriptor = self.folder.file(LOCK, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor
        return True

    def is_held(self) -> bool:
        """Whether a living engine holds it."""
        if self._lock >= 0:
            return True
        with contextlib.suppress(OSError):
            if not self.hold():
                return True
            self._unlock()
        return False

    def holder(self) -> str | None:
        """What holds its point, as it was made for that; None: it was not noted."""
        return _line(self, LOCK)

    def server_of(self) -> str | None:
        """What runs the server that was started in it; None: it was not noted."""
        return _line(self, SERVER)

    def give(self, name: str, owner: Owner) -> None:
        """Let QEMU's user own what QEMU must open, where this process may give it away.

        Raises:
            SourceError: its file system does not let it.
        """
        if os.geteuid() != 0 or owner.uid == 0:
            return
        try:
            os.chown(
                name,
                owner.uid,
                owner.gid,
                dir_fd=self.folder.descriptor,
                follow_symlinks=False,
            )
        except OSError as error:
            raise SourceError(
                f"this cannot be given to QEMU's user ({error.strerror})",
                where=self.path / name,
                hint="choose another folder with --scratch",
            ) from error

    def _share(self, theirs: Folder, owner: Owner) -> None:
        """Let QEMU's user make its socket in a folder, and this user connect to it."""
        if os.geteuid() == 0:
            self.give(QEMU_FOLDER, owner)
        elif _is_other(owner):
            try:
                admit(theirs.descriptor, owner.uid)
            except OSError as error:
                raise SourceError(
                    f"QEMU's user cannot be let in here ({error.strerror})",
                    where=theirs.path,
                    hint="run fleece as root, or choose another folder with --scratch",
                ) from error

    def new_scratch_file(self, name: str) -> int:
        """Make a scratch file again, whatever an earlier try left of it; gives its descriptor.

        Raises:
            OSError: it cannot be made.
        """
        with contextlib.suppress(FileNotFoundError):
            self.folder.remove(name)
        return self.folder.new_file(name)

    def scratch_files(self) -> Iterator[os.stat_result]:
        """What each of its scratch files is now.

        Raises:
            OSError: it cannot be looked at.
        """
        for name in self.folder.names():
            if _SCRATCH_FILE.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):
                    yield self.folder.stat(name)

    def remove_itself(self) -> None:
        """Remove it, when nothing is in it.

        Raises:
            OSError: something is.
        """
        self._parent.remove_empty(self.path.name)


class Note:
    """A small file in a work folder that tells the next run of something."""

    def __init__(self, work: WorkFolder, name: str) -> None:
        self._work = work
        self._name = name

    @property
    def path(self) -> Path:
        """For messages."""
        return self._work.path / self._name

    def write(self, text: bytes) -> None:
        """Write it. The host's crash ends what it tells of, so it need not be durable.

        Raises:
            OSError: it cannot be written.
        """
        self._work.folder.put(self._name, text, durable=False)

    def read(self) -> bytes | None:
        """What it says; None: there is none of ours."""
        try:
            return self._work.folder.read(self._name, _LONGEST_NOTE)
        except OSError:
            return None

    def drop(self) -> None:
        """Remove it, if it is there.

        Raises:
            SourceError: it cannot be removed.
        """
        try:
            self._work.folder.remove(self._name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SourceError(
                f"this note cannot be removed ({error.strerror})", where=self.path
            ) from error


@contextmanager
def held_folder(scratch: Path, name: str, owner: Owner, holder: str) -> Iterator[WorkFolder]:
    """Make a point's work folder; it is locked for as long as this process lives.

    Args:
        scratch: the folder that it is made in.
        name: its own.
        owner: QEMU's user.
        holder: what holds the point.

    Raises:
        PointError: there is no room for it.
        SourceError: it cannot be made. In any case it is gone again.
    """
    place = Path(os.path.realpath(scratch)) / name
    if len(os.fsencode(place / SOCKET)) > _LONGEST_SOCKET:
        raise SourceError(
            "the path is too long for a unix socket",
            where=place / SOCKET,
            hint="choose a shorter folder with --scratch",
        )
    try:
        work = WorkFolder.make(scratch, name, owner, holder)
    except Strange as error:
        raise SourceError(
            f"the scratch folder cannot be used: what is made in it is not private ({error})",
            where=scratch,
            hint="choose another one with --scratch",
        ) from error
    except OSError as error:
        raise _unusable(scratch, error) from error
    with work:
        yield work


@contextmanager
def held_again(place: Path) -> Iterator[WorkFolder]:
    """Hold the lock of the work folder of an interrupted backup's point, to resume it.

    Raises:
        PointError: it is not as it was made, or another backup holds it.
    """
    try:
        work = WorkFolder.open(place)
    except Strange as error:
        raise PointError(f"its work folder is not as it was made: {error}", where=place) from error
    except OSError as error:
        raise PointError(
            f"its work folder cannot be opened ({error.strerror})", where=place
        ) from error
    with work:
        try:
            held = work.hold()
        except OSError as error:
            raise PointError(
                f"its work folder has no lock ({error.strerror})", where=place
            ) from error
        if not held:
            raise PointError("another backup holds it", where=place)
        yield work


def _unusable(scratch: Path, error: OSError) -> FleeceError:
    family = PointError if error.errno in _FULL else SourceError
    return family(
        f"the scratch folder cannot be used ({error.strerror})",
        where=scratch,
        hint="choose another one with --scratch",
    )


class Strangers:
    """What bears the name of a work folder and is none of ours: told of once, and left alone."""

    _SHOWN = 3

    def __init__(self) -> None:
        self._count = 0
        self._first: list[str] = []

    def add(self, path: Path, why: str) -> None:
        """Count one; only of the first few is kept what they are."""
        self._count += 1
        if len(self._first) < self._SHOWN:
            self._first.append(f"{path} ({why})")

    @property
    def warning(self) -> str | None:
        """A line for the user; None: there are none."""
        if not self._count:
            return None
        more = self._count - len(self._first)
        others = f" and {more} more" if more else ""
        return (
            "what looks like a backup's work folder, but was not made by this user's fleece, is "
            f"left alone: {', '.join(self._first)}{others}"
        )


def work_folders(scratch: Path, start: str, strangers: Strangers) -> Iterator[WorkFolder]:
    """Our own work folders in a scratch folder, each open until the next one is asked for.

    Args:
        scratch: the folder. If there is none, or it is not for us, there are none in it.
        start: what their names begin with.
        strangers: is told of the others.

    Raises:
        SourceError: it cannot be looked at.
    """
    mine = []
    with _looking(), Folder.open(os.path.realpath(scratch)) as place:
        for name, state in candidates(place, start):
            if not _NAME.fullmatch(name):
                continue
            if state.st_uid == os.geteuid():
                mine.append(place.path / name)
            else:
                strangers.add(place.path / name, f"it is user {state.st_uid}'s")
    for path in sorted(mine):
        work = believed(path, strangers)
        if work is not None:
            with work:
                yield work


@contextmanager
def _looking() -> Iterator[None]:
    """Pass over what is none of ours; what else fails is a `SourceError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NONE_OF_OURS:
            raise SourceError(
                f"the scratch folder cannot be looked at ({error.strerror})",
                where=error.filename,
                hint="choose another one with --scratch",
            ) from error


def believed(path: Path, strangers: Strangers) -> WorkFolder | None:
    """Open a work folder if it is one of ours; None: it is not, or it is gone.

    Raises:
        SourceError: it cannot be looked at.
    """
    with _looking():
        try:
            return WorkFolder.open(path)
        except Strange as error:
            strangers.add(path, str(error))
        except FileNotFoundError:
            pass
        except OSError as error:
            strangers.add(path, error.strerror or str(error))
            raise
    return None


def may_be_held(path: Path) -> bool:
    """Whether a living engine, of whatever user, may hold a work folder that QEMU names.

    Only one whose lock is seen to be free, or that has none, is not.
    """
    try:
        with Folder.open(path) as folder:
            descriptor = folder.file(LOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def is_known(name: str) -> bool:
    """Whether a name is one of those that fleece and QEMU make in a work folder."""
    patterns = (_OWN_FILE, _SCRATCH_FILE, _KEPT_BY_NFS)
    return name in (QEMU_FOLDER, SINK) or any(each.fullmatch(name) for each in patterns)


def _is_other(owner: Owner) -> bool:
    """Whether QEMU's user is kept out of what is this user's alone: not root."""
    return owner.uid not in (0, os.geteuid())


def _fits(name: str, state: os.stat_result) -> bool:
    """Whether something is what fleece or its QEMU makes under this name in a work folder."""
    if name == QEMU_FOLDER:
        return stat.S_ISDIR(state.st_mode)
    if name == SINK:
        return stat.S_ISSOCK(state.st_mode)
    if not stat.S_ISREG(state.st_mode):
        return False
    if _SCRATCH_FILE.fullmatch(name) or _KEPT_BY_NFS.fullmatch(name):
        return True
    return state.st_uid == os.geteuid() and state.st_nlink == 1


def _line(work: WorkFolder, name: str) -> str | None:
    try:
        return work.folder.read(name, _LONGEST_LOCK).decode() or None
    except (OSError, ValueError):
        return None
