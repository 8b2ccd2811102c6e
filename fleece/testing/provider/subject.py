"""The provider that is tested, as its tests use it."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleece.cancel import CancelToken
from fleece.disk.nbd import NbdDisk
from fleece.environment import child_environment
from fleece.errors import SourceError
from fleece.extents import Extents
from fleece.nbd.connection import DIRTY_BITMAP, Connection
from fleece.source.point_name import PointName
from fleece.source.provider.answers import Begun, BegunDisk, Described, Hello, ProviderDisk
from fleece.source.provider.answers import begun as read_begun
from fleece.source.provider.answers import described as read_described
from fleece.source.provider.answers import hello as read_hello
from fleece.source.provider.point import listed
from fleece.source.provider.program import Program, Refused
from fleece.source.provider.text import Command
from fleece.source.provider.words import PROTOCOL, Word

_AT_ONCE = 8 << 20


class Broken(Exception):
    """A promise is not kept."""


class Skipped(Exception):
    """A promise that is not this provider's, or cannot be tested here."""


@dataclass
class Subject:
    """The provider that is tested.

    Attributes:
        command: how it is started.
        write: the words of a program that has the guest write: a disk, an offset and a length, in
            bytes, come after them. None: nobody can.
        chain_id: of the tests' points.
    """

    command: Command
    write: Sequence[str] | None
    chain_id: str

    @contextlib.contextmanager
    def started(self) -> Iterator[Talk]:
        """The provider, started, and greeted."""
        with Program(self.command, CancelToken()) as program:
            said = read_hello(program.ask(Word.HELLO, protocols=[PROTOCOL]))
            program.limits = said.limits
            yield Talk(program, said, self.chain_id)

    @contextlib.contextmanager
    def with_bases(self) -> Iterator[Talk]:
        """As `started`, if it keeps bases, and without those of these tests at the end."""
        with self.started() as talk:
            if not talk.hello.bases:
                raise Skipped("it keeps no bases")
            yield talk
            talk.forget_all()

    def written(self, disk: str, offset: int, length: int) -> None:
        """Have the guest write.

        Raises:
            Skipped: nobody can.
            Broken: that failed.
        """
        if self.write is None:
            raise Skipped("nobody can write to the disk: say how with --write")
        words = [*self.write, disk, str(offset), str(length)]
        if subprocess.run(words, check=False, env=child_environment()).returncode != 0:
            raise Broken(f"{self.write[0]}, which is to write to the disk, failed")


@dataclass
class Talk:
    """A provider that runs.

    Attributes:
        program: it.
        hello: what it said that it is.
        chain_id: of the tests' points.
    """

    program: Program
    hello: Hello
    chain_id: str

    def describe(self) -> Described:
        """What there is."""
        return read_described(self.program.ask(Word.DESCRIBE), self.hello.bases)

    def disks(self) -> tuple[ProviderDisk, ...]:
        """Those that are backed up."""
        found = tuple(disk for disk in self.describe().disks if not disk.read_only)
        if not found:
            raise Broken("there is no disk that the guest can write")
        return found

    def token(self, sequence: int) -> PointName:
        """A new token of the tests' chain."""
        return PointName(self.chain_id, sequence, secrets.token_hex(5))

    def begin(self, token: PointName | None, base: PointName | None = None) -> Begun:
        """Begin a point of all disks, each since a base or as a whole."""
        disks = self.disks()
        asked = [{"name": disk.name, "base": None if base is None else str(base)} for disk in disks]
        text = None if token is None else str(token)
        said = self.program.ask(Word.BEGIN, token=text, disks=asked, freeze="no")
        made = read_begun(said, [(disk, base) for disk in disks])
        for disk, each in zip(disks, made.disks, strict=True):
            if each.size != disk.size:
                raise Broken(f"disk {disk.name} has another size in 'begin' than in 'describe'")
        return made

    def kept(self, sequence: int) -> PointName:
        """The token of a point that was begun and committed."""
        token = self.token(sequence)
        self.begin(token)
        self.program.ask(Word.COMMIT)
        return token

    def forget(self, token: PointName) -> None:
        """Have a base of all disks forgotten."""
        bases = [{"disk": disk.name, "token": str(token)} for disk in self.disks()]
        self.program.ask(Word.FORGET, bases=bases)

    def forget_all(self) -> None:
        """Have all bases of the tests' chain forgotten."""
        for token in {each for disk in self.disks() for each in disk.of(self.chain_id).values()}:
            self.forget(token)

    def refuses(self, what: str, word: Word | str, **more: object) -> None:
        """Ask for what cannot be done.

        Raises:
            Broken: it was done.
        """
        try:
            self.program.ask(Word(word), **more)
        except Refused:
            return
        raise Broken(f"{what} was not refused")


def content(disk: BegunDisk) -> Iterator[bytes]:
    """All that an export shows."""
    with Connection(disk.place.uri) as export:
        for start in range(0, export.size, _AT_ONCE):
            yield bytes(export.read(start, min(_AT_ONCE, export.size - start)))


def dirty(talk: Talk, disk: BegunDisk) -> Extents:
    """What was written on a disk of a point since its base, in bytes of disk.

    Raises:
        Broken: its export lacks a bitmap.
    """
    if disk.listed:
        return listed(talk.program, disk)
    export, found = NbdDisk(disk.place.uri), Extents.empty()
    for name in disk.bitmaps or ():
        told = export.dirty_extents(f"{DIRTY_BITMAP}{name}", Extents.whole(export.size))
        if told is None:
            raise Broken(f"the export of disk {disk.place.name} lacks bitmap {name}")
        found = found.union(told)
    return found


def check_gone(begun: Begun, when: str) -> None:
    """Check that no export is there any more.

    Raises:
        Broken: one is.
    """
    for disk in begun.disks:
        with contextlib.suppress(SourceError), Connection(disk.place.uri):
            raise Broken(f"disk {disk.place.name} is still served {when}")


def others_of(session: int) -> list[int]:
    """The processes of a session besides its first (proc_pid_stat(5))."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z" and path.parent.name != str(session):
                found.append(int(path.parent.name))
    return found
