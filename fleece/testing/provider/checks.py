"""What a provider promises: a function for each, which raises `Broken` if it is not kept."""

from __future__ import annotations

import hashlib
import inspect
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fleece.errors import FleeceError
from fleece.nbd.connection import Connection
from fleece.programs import SIGKILL
from fleece.source.provider.answers import Begun
from fleece.source.provider.text import Command
from fleece.source.provider.words import Word
from fleece.testing.provider.subject import (
    Broken,
    Skipped,
    Subject,
    Talk,
    check_gone,
    content,
    dirty,
    others_of,
)

_BLOCK = 64 * 1024
_UNKNOWN = "fleece-00000000-000001-0000000000"


def it_says_what_it_is(subject: Subject) -> None:
    """It speaks this version of the protocol, and has a name and a version."""
    with subject.started() as talk:
        if not (talk.hello.name and talk.hello.version):
            raise Broken("it has no name or no version")


def it_describes_the_same_again(subject: Subject) -> None:
    """'describe' changes nothing, and another run of it finds the same."""
    with subject.started() as talk:
        before = talk.describe()
        if talk.describe() != before:
            raise Broken("the second answer differs from the first")
    with subject.started() as talk:
        if talk.describe() != before:
            raise Broken("the answer of a second run differs")


def it_refuses_what_it_does_not_know(subject: Subject) -> None:
    """A base that it does not have is refused, and it can be asked on."""
    with subject.started() as talk:
        name = talk.disks()[0].name
        asked: list[dict[str, str | None]] = [{"name": name, "base": _UNKNOWN}]
        talk.refuses("a base that is not there", Word.BEGIN, token=None, disks=asked, freeze="no")
        asked = [{"name": "no such disk", "base": None}]
        talk.refuses("a disk that is not there", Word.BEGIN, token=None, disks=asked, freeze="no")
        talk.describe()


def a_point_shows_all_disks(subject: Subject) -> None:
    """Each has an export of its size, for several clients, that shows the same again."""
    with subject.started() as talk:
        begun = talk.begin(None)
        for disk in begun.disks:
            with Connection(disk.place.uri) as one, Connection(disk.place.uri) as two:
                if not one.size == two.size == disk.size:
                    raise Broken(f"the export of disk {disk.place.name} has another size")
        if _hashes(begun) != _hashes(begun):
            raise Broken("what is read differs from what was read before")
        talk.program.ask(Word.CHECK)
        talk.program.ask(Word.DROP)


def a_dropped_point_is_gone(subject: Subject) -> None:
    """Its exports are, dropping none is fine, and another one can be begun."""
    with subject.started() as talk:
        begun = talk.begin(talk.token(1) if talk.hello.bases else None)
        talk.program.ask(Word.DROP)
        check_gone(begun, "after 'drop'")
        talk.program.ask(Word.DROP)
        talk.refuses("the check of a point that was dropped", Word.CHECK)
        talk.begin(None)
        talk.program.ask(Word.DROP)
        _forgotten(talk)


def there_is_one_point_at_a_time(subject: Subject) -> None:
    """A second one is refused, and the first one lives on."""
    with subject.started() as talk:
        begun = talk.begin(None)
        asked = [{"name": disk.place.name, "base": None} for disk in begun.disks]
        talk.refuses("a second point", Word.BEGIN, token=None, disks=asked, freeze="no")
        _hashes(begun)
        talk.program.ask(Word.CHECK)
        talk.program.ask(Word.DROP)


def what_is_not_there_cannot_be_committed(subject: Subject) -> None:
    """No point, or one that was begun without a token."""
    with subject.started() as talk:
        talk.refuses("the commit of no point", Word.COMMIT)
        talk.begin(None)
        talk.refuses("the commit of a point without a token", Word.COMMIT)
        talk.program.ask(Word.DROP)


def the_end_of_its_input_ends_it(subject: Subject) -> None:
    """With its point, its exports and all that it has started; nothing is committed."""
    with subject.started() as talk:
        begun = talk.begin(talk.token(1) if talk.hello.bases else None)
        if not talk.program.finish():
            raise Broken("it did not end")
        if left := others_of(talk.program.pid):
            raise Broken(f"it left process {left[0]} behind")
        check_gone(begun, "after its end")
    with subject.started() as talk:
        talk.begin(None)
        talk.program.ask(Word.DROP)
        _forgotten(talk)


def it_may_be_killed(subject: Subject) -> None:
    """The next run can begin a point, and no base is lost."""
    with subject.started() as talk:
        kept = talk.kept(1) if talk.hello.bases else None
        talk.begin(talk.token(2) if kept else None)
        os.kill(talk.program.pid, SIGKILL)
    with subject.started() as talk:
        talk.begin(talk.token(3) if kept else None, kept)
        talk.program.ask(Word.DROP)
        _forgotten(talk)


def a_committed_point_is_a_base(subject: Subject) -> None:
    """Also for the next run of it, and its exports are gone."""
    with subject.with_bases() as talk:
        token = talk.token(1)
        begun = talk.begin(token)
        talk.program.ask(Word.CLOSE)
        check_gone(begun, "after 'close'")
        talk.program.ask(Word.COMMIT)
        _check_listed(talk, token.sequence)
    with subject.with_bases() as talk:
        begun = talk.begin(talk.token(1))
        talk.program.ask(Word.COMMIT)
        check_gone(begun, "after 'commit'")
    with subject.with_bases() as talk:
        second = talk.kept(2)
        _check_listed(talk, second.sequence)
        for disk in talk.begin(None, second).disks:
            if dirty(talk, disk).total == disk.size > _BLOCK:
                raise Broken(f"all of disk {disk.place.name} is dirty, and nobody wrote")
        talk.program.ask(Word.DROP)


def a_point_without_a_token_leaves_nothing(subject: Subject) -> None:
    """Bases are as they were."""
    with subject.with_bases() as talk:
        talk.kept(1)
        before = talk.describe()
        talk.begin(None)
        talk.program.ask(Word.DROP)
        if talk.describe() != before:
            raise Broken("what is described differs")


def what_is_written_since_a_base_is_dirty(subject: Subject) -> None:
    """Also what was written before a point that was dropped, and for an older base."""
    with subject.with_bases() as talk:
        first = talk.kept(1)
        disk = talk.disks()[0]
        far = (disk.size // 2) // _BLOCK * _BLOCK
        subject.written(disk.name, far, _BLOCK)
        second = talk.kept(2)
        subject.written(disk.name, 0, _BLOCK)
        talk.begin(talk.token(3), second)
        talk.program.ask(Word.DROP)
        _check_dirty(talk, talk.begin(talk.token(4), second), [0])
        talk.program.ask(Word.DROP)
        _check_dirty(talk, talk.begin(None, first), [0, far])
        talk.program.ask(Word.DROP)


def what_is_forgotten_is_no_base(subject: Subject) -> None:
    """It is not listed, and forgetting it again is fine; other bases stay."""
    with subject.with_bases() as talk:
        first, second = talk.kept(1), talk.kept(2)
        talk.forget(first)
        talk.forget(first)
        for disk in talk.disks():
            if first in disk.bases:
                raise Broken(f"disk {disk.name} still has it")
        talk.begin(None, second)
        talk.program.ask(Word.DROP)


CHECKS: tuple[Callable[[Subject], None], ...] = (
    it_says_what_it_is,
    it_describes_the_same_again,
    it_refuses_what_it_does_not_know,
    a_point_shows_all_disks,
    a_dropped_point_is_gone,
    there_is_one_point_at_a_time,
    what_is_not_there_cannot_be_committed,
    the_end_of_its_input_ends_it,
    it_may_be_killed,
    a_committed_point_is_a_base,
    a_point_without_a_token_leaves_nothing,
    what_is_written_since_a_base_is_dirty,
    what_is_forgotten_is_no_base,
)


@dataclass(frozen=True)
class Verdict:
    """What became of a promise.

    Attributes:
        name: of the check.
        promise: what is promised, in a few words.
        failed: why it is not kept; None: it is.
        skipped: why it was not tested; None: it was.
    """

    name: str
    promise: str
    failed: str | None = None
    skipped: str | None = None


def verdicts(
    command: Command, write: Sequence[str] | None = None, only: str | None = None
) -> Iterator[Verdict]:
    """Test a provider.

    Args:
        command: how it is started.
        write: the words of a program that has the guest write (`Subject`); None: nobody can.
        only: the name of the one check to do; None: all.
    """
    subject = Subject(command, write, secrets.token_hex(4))
    for check in CHECKS:
        name, promise = check.__name__, inspect.getdoc(check) or ""
        if only not in (None, name):
            continue
        try:
            check(subject)
        except Skipped as error:
            yield Verdict(name, promise, skipped=str(error))
        except (Broken, FleeceError) as error:
            yield Verdict(name, promise, failed=str(error))
        else:
            yield Verdict(name, promise)


def _hashes(begun: Begun) -> list[str]:
    found = []
    for disk in begun.disks:
        made = hashlib.sha256()
        for piece in content(disk):
            made.update(piece)
        found.append(made.hexdigest())
    return found


def _forgotten(talk: Talk) -> None:
    if talk.hello.bases:
        talk.forget_all()


def _check_listed(talk: Talk, sequence: int) -> None:
    for disk in talk.disks():
        if sequence not in disk.of(talk.chain_id):
            raise Broken(f"disk {disk.name} does not have it as a base")


def _check_dirty(talk: Talk, begun: Begun, offsets: Sequence[int]) -> None:
    found = dirty(talk, begun.disks[0])
    for offset in offsets:
        if found.clip(offset, offset + _BLOCK).total < _BLOCK:
            raise Broken(f"what was written at {offset} is not dirty")
