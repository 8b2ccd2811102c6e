"""Who uses an image, and keeping others from using one.

QEMU's programs lock bytes of an image that they open (block/file-posix.c), one for each kind of
access: 100 and up stand for what a program does with it, 200 and up for what it lets no other do.
Whoever opens the image looks at the locks of the others first. Which process holds a lock the
kernel does not tell; it is found by what each one has open, as far as this user may see that.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleece.errors import FleeceError

_USED = 100
_WRITTEN = 101
_ACCESSES = 4
_NO_WRITER, _NO_RESIZER = 201, 203

NO_IMAGE = "is neither a file nor a block device"

_VANISHED = frozenset(
    {
        errno.ENOENT,
        errno.ESRCH,
        errno.ENODEV,
        errno.ENXIO,
        errno.ENOTDIR,
        errno.EACCES,
        errno.EPERM,
    }
)
"""What the kernel answers about processes and devices that went meanwhile, or are not ours."""

_LOOK = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_LOCK = "hhqqi4x"
"""struct flock (fcntl(2)) of a 64-bit Linux: type, whence, start, length, process."""


class Hold(enum.Enum):
    """What QEMU's programs are kept from while an image is claimed, and what they are told."""

    NOTHING = frozenset[int]()
    """Nothing is locked: a program of QEMU's own will do it."""
    REPLACED = frozenset((_NO_WRITER, _NO_RESIZER))
    """Nobody may write to it."""
    OVERWRITTEN = frozenset((_WRITTEN, _NO_WRITER, _NO_RESIZER))
    """Nobody may write to it, because it is being written."""


@dataclass(frozen=True)
class User:
    """Who uses an image.

    Attributes:
        name: of the program, or what else uses it; None: it cannot be told.
        process: its id; None: it is no process, or it cannot be told.
    """

    name: str | None = None
    process: int | None = None

    def __str__(self) -> str:
        if self.name is None:
            return "a program that locked it as QEMU does"
        return self.name if self.process is None else f"{self.name}, process {self.process}"


class Claim:
    """An image that is claimed.

    Attributes:
        descriptor: of the image, to read.
    """

    def __init__(self, path: str, descriptor: int, failure: type[FleeceError]) -> None:
        self.descriptor = descriptor
        self._path = path
        self._failure = failure

    def check(self) -> None:
        """Raise if somebody else uses it.

        Raises:
            FleeceError: somebody does.
        """
        try:
            user = _user(self._path, self.descriptor)
        except OSError as error:
            raise self._failure(
                f"whether it is in use cannot be told ({error.strerror}: {error.filename})",
                where=self._path,
            ) from error
        if user is not None:
            raise self._failure(
                f"is in use ({user})", where=self._path, hint="end that first, or name another"
            )


@contextlib.contextmanager
def claimed(path: str, failure: type[FleeceError], hold: Hold) -> Iterator[Claim]:
    """An image file or a block device that nobody else uses, for as long as the context lasts.

    A device that is mounted, or part of something, is refused by the kernel.

    Args:
        path: of it.
        failure: the family of errors about it.
        hold: what others are kept from meanwhile.

    Raises:
        FleeceError: of that family; it is in use, or cannot be opened.
    """
    try:
        descriptor = _opened(path)
    except OSError as error:
        busy = "unmount it, or end what it is a part of" if error.errno == errno.EBUSY else None
        raise failure(error.strerror or str(error), where=path, hint=busy) from error
    try:
        try:
            usable = is_image(descriptor)
        except OSError as error:
            raise failure(error.strerror or str(error), where=path) from error
        if not usable:
            raise failure(NO_IMAGE, where=path)
        for byte in sorted(hold.value):
            _lock(descriptor, byte)
        claim = Claim(path, descriptor, failure)
        claim.check()
        yield claim
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claimed_output(descriptor: int, failure: type[FleeceError]) -> Iterator[None]:
    """A file or a block device that is open to be written, and that no program of QEMU's uses.

    Whoever started this process may have it open as well: only locks count.

    Args:
        descriptor: of it.
        failure: the family of errors about it.

    Raises:
        FleeceError: of that family; it is in use.
    """
    path = f"/proc/self/fd/{descriptor}"
    with contextlib.ExitStack() as stack:
        try:
            own = os.open(path, _LOOK)
            stack.callback(os.close, own)
        except OSError:  # it may be written and not read: asked it can be, and locked it cannot
            own = descriptor
        for byte in sorted(Hold.OVERWRITTEN.value):
            _lock(own, byte)
        if _locked(own, _USED, _ACCESSES):
            raise failure(
                f"the output is in use ({_any_process(path)})", where=os.path.realpath(path)
            )
        yield


def writer_of(path: str) -> User | None:
    """Who has an image open to write to it, or has it mounted; None: nobody, as far as is known.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, _LOOK)
    try:
        locked = _locked(descriptor, _WRITTEN, 1)
    finally:
        os.close(descriptor)
    user = _writing_process(path) or (_any_process(path) if locked else None)
    return user or _loop_device(path, writable=True) or _mount(path)


@contextlib.contextmanager
def kept_still(path: str, failure: type[FleeceError], *, alone: bool = True) -> Iterator[bool]:
    """An image that nobody writes to, and that no program of QEMU's begins to write to meanwhile.

    Others may read it. What holds it is gone when this process is.

    Gives whether its file system has the locks that keep QEMU's programs from it.

    Args:
        path: of the file or the block device.
        failure: the family of errors about it.
        alone: the kernel shall refuse a device that is mounted or part of something, and keep it
            from becoming that; no other can hold it so meanwhile.

    Raises:
        FleeceError: of that family; somebody writes to it, or it cannot be opened.
    """
    try:
        descriptor = _opened(path) if alone else os.open(path, _LOOK)
    except OSError as error:
        busy = "unmount it, or end what it is a part of" if error.errno == errno.EBUSY else None
        raise failure(error.strerror or str(error), where=path, hint=busy) from error
    try:
        locked = [_lock(descriptor, byte) for byte in (_NO_WRITER, _NO_RESIZER)]
        try:
            user = writer_of(path)
        except OSError as error:
            raise failure(
                f"whether it is in use cannot be told ({error.strerror})", where=path
            ) from error
        if user is not None:
            raise failure(f"is in use ({user})", where=path, hint="end that first")
        yield all(locked)
    finally:
        os.close(descriptor)


def is_image(descriptor: int) -> bool:
    """Whether what is open can be an image at all: a regular file or a block device."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _opened(path: str) -> int:
    flags = _LOOK
    if stat.S_ISBLK(os.stat(path).st_mode):
        flags |= os.O_EXCL
    return os.open(path, flags)


def _user(path: str, descriptor: int) -> User | None:
    """Whoever locked it, writes to it without a lock, or is the loop device that it is behind."""
    if _locked(descriptor, _USED, _ACCESSES):
        return _any_process(path)
    return _writing_process(path) or _loop_device(path)


def _lock(descriptor: int, byte: int) -> bool:
    wish = struct.pack(_LOCK, fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
    # A file system without locks has none of QEMU's either; one that is taken, `check` tells.
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wish)
        return True
    return False


def _locked(descriptor: int, first: int, count: int) -> bool:
    """Whether anybody else has locked any of these bytes."""
    wish = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wish)
    except OSError:  # a file system without locks: QEMU could set none
        return False
    return bool(struct.unpack(_LOCK, found)[0] != fcntl.F_UNLCK)


def _any_process(path: str) -> User:
    """A process that has it open, those first that have locked it, then those that may write."""
    found = sorted(_processes(path), key=lambda item: (item.locks, item.writes), reverse=True)
    return _named(found[0].process) if found else User()


def _writing_process(path: str) -> User | None:
    return next((_named(found.process) for found in _processes(path) if found.writes), None)


def _named(process: int) -> User:
    try:
        said = Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
    except OSError:
        return User()
    # A process calls itself what it likes.
    return User("".join(letter if letter.isprintable() else "?" for letter in said), process)


@dataclass(frozen=True)
class _Opener:
    """A process that has a file open, whether it may write to it, and whether it has locked it."""

    process: int
    writes: bool
    locks: bool


def _processes(path: str) -> Iterator[_Opener]:
    """The other processes that have a file open, once for each time that they have."""
    wanted = os.stat(path)
    name = os.path.basename(os.path.realpath(path))
    for process in _numbers("/proc"):
        if process == os.getpid():
            continue
        for number in _numbers(f"/proc/{process}/fd"):
            with _vanishing():
                if _has(f"/proc/{process}/fd/{number}", name, wanted):
                    yield _opener(process, number)


def _has(place: str, name: str, wanted: os.stat_result) -> bool:
    """Whether a process' descriptor is a file with that name and state."""
    # Names first: to ask for the state of any file at all may hang where a server does.
    if os.path.basename(os.readlink(place)) != name:
        return False
    try:
        return _same(os.stat(place), wanted)
    except OSError:  # what its server no longer tells is not what was asked just now
        return False


def _numbers(folder: str) -> list[int]:
    names: list[str] = []
    with _vanishing():
        names = os.listdir(folder)
    return [int(name) for name in names if name.isdecimal()]


@contextlib.contextmanager
def _vanishing() -> Iterator[None]:
    """A look at what may end or be detached meanwhile, or be another user's: then it counts not."""
    try:
        yield
    except OSError as error:
        if error.errno not in _VANISHED:
            raise


def _same(found: os.stat_result, wanted: os.stat_result) -> bool:
    if stat.S_ISBLK(wanted.st_mode) and stat.S_ISBLK(found.st_mode):
        return found.st_rdev == wanted.st_rdev
    return os.path.samestat(found, wanted)


def _opener(process: int, number: int) -> _Opener:
    """What proc_pid_fdinfo(5) says of a descriptor."""
    writes = locks = False
    for line in Path(f"/proc/{process}/fdinfo/{number}").read_text(errors="replace").splitlines():
        if line.startswith("flags:"):
            writes = int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
        locks = locks or line.startswith("lock:")
    return _Opener(process, writes, locks)


def _mount(path: str) -> User | None:
    """The file system that is mounted from a block device, if it may be written."""
    found = os.stat(path)
    if not stat.S_ISBLK(found.st_mode):
        return None
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        words = line.split()
        if words[2] == number and words[-1].split(",")[0] == "rw":
            return User(f"the file system at {words[4]}")
    return None


def _loop_device(path: str, *, writable: bool = False) -> User | None:
    """The loop device that a file is behind: the kernel has it open, no process.

    Args:
        path: of the file.
        writable: only one that takes writes.
    """
    place = os.path.realpath(path)
    for item in Path("/sys/block").glob("loop*/loop/backing_file"):
        with _vanishing():
            same = item.read_bytes().rstrip(b"\n") == os.fsencode(place)
            if same and not (writable and (item.parents[1] / "ro").read_bytes() == b"1\n"):
                return User(f"/dev/{item.parents[1].name}")
    return None
