"""What a storage must give, for a store to be kept in it: objects under keys, and these promises.

A key is names between slashes, `guest/point/disk.fleece`; without the last name it is that of a
point, with the first alone a guest's. Methods raise a `StoreError` that says where if they cannot
do what they say, and then nothing is half done; `Gone` if what they are about is not there.
`fleece.testing.backend` holds an implementation to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable

from fleece.cancel import CancelToken
from fleece.delta.blob import Blob
from fleece.delta.sink import Sink
from fleece.errors import StoreError


@dataclass
class Listing:
    """What lies in a store.

    Attributes:
        deltas: keys of the objects that are deltas by their names, damaged or not.
        foreign: what is not fleece's, by its names in messages.
        marks: keys of the pins and tags beside deltas.
        stamps: of the deltas (`Backend.stamp`), by their keys, where they cost nothing more.
    """

    deltas: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    stamps: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Patience:
    """How long to wait for another holder of a lock.

    Attributes:
        seconds: so long.
        cancel: ends the waiting.
    """

    seconds: float = 0
    cancel: CancelToken = field(default_factory=CancelToken)


@dataclass(frozen=True)
class Site:
    """How the place of a new store shall be made. A storage refuses what it cannot do.

    Attributes:
        make_bucket: make the bucket that it lies in, too.
        single_writer: the owner says that there is never more than one writer, so the place need
            not be able to tell that something is there already.
        lock_days: points are kept from everybody for so many days; None: they are not.
    """

    make_bucket: bool = False
    single_writer: bool = False
    lock_days: int | None = None


@dataclass(frozen=True)
class Kept:
    """What keeps an object from being deleted, whoever asks.

    Attributes:
        until: this moment; None: no moment.
        held: until somebody ends that.
    """

    until: datetime | None = None
    held: bool = False

    def __str__(self) -> str:
        """What it is, in words."""
        words = [] if self.until is None else [f"locked until {self.until:%Y-%m-%dT%H:%M:%SZ}"]
        return " and ".join([*words, *(["under a legal hold"] if self.held else [])])


class NewObject(Sink, Protocol):
    """An object that is being written, front to back, by any number of threads."""

    def sync(self) -> None:
        """Make what was written durable: should the writer be killed now, a batch still has it.

        Of a storage that resumes no batch, it only says what has failed so far. What is spooled can
        be read then, and is not written any more.
        """


class Draft(Protocol):
    """An object that nobody sees yet. `place` or `discard` ends it.

    Attributes:
        key: that it has until then.
    """

    key: str

    @property
    def sink(self) -> NewObject:
        """Takes its bytes."""

    def seal(self) -> None:
        """Make all that was written durable; nothing more can be."""

    def open(self) -> Blob:
        """What was written and made durable."""

    def place(self, key: str) -> None:
        """Make it visible under a key, durably and at once: before, the old state is seen.

        That of `Backend.replace` takes the place of what has the key; one of `Backend.spool` is new
        in its point.

        Raises:
            StoreError: it does not have the key then; of a new one: something else has it.
        """

    def discard(self) -> None:
        """Remove it, as far as that is possible; nothing, if it has its place."""


class Batch(Protocol):
    """The objects of one point that is being written: all become visible at once, or none does.

    A batch whose writer was killed stays until somebody discards it or resumes it. A storage may
    be unable to resume one: then it has no names. It may also have nothing to show of one that was
    just begun.

    Attributes:
        name: that it was begun under.
        where: it is, for messages.
    """

    name: str
    where: str

    def names(self) -> list[str]:
        """Of the deltas in it, be they finished or not."""

    def open(self, name: str) -> Blob:
        """What is there of an object; of one that is being written, when the batch is sealed.

        Raises:
            DeltaError: it cannot be read.
        """

    def create(self, name: str, most: int | None = None) -> NewObject:
        """A new object.

        Args:
            name: of it.
            most: about how many bytes it can have at most; None: nobody knows.

        Raises:
            StoreError: the batch has one of the name.
        """

    def reopen(self, name: str, keep: int) -> NewObject:
        """One that is there, cut to its first `keep` bytes, to be written on."""

    def seal(self) -> None:
        """Make all objects durable; nothing more can be written."""

    def commit(self, name: str) -> None:
        """Make a sealed batch visible, durably and at once, as a point of a name.

        Raises:
            StoreError: something has the name, or the guest's points were changed elsewhere since
                they were listed; nothing is visible. Or nobody can tell whether it is; then
                `discard` leaves it.
        """

    def discard(self) -> None:
        """Remove what is fleece's of it."""


class Backend(Protocol):
    """Where the objects of a store are.

    Attributes:
        where: it is, for messages.
    """

    where: str

    @property
    def address(self) -> str:
        """What `fleece.open_store` opens the store by, in another process too."""

    @property
    def near(self) -> bool:
        """Whether all can be read and written again at no more than the cost of a disk."""

    def sharing(self, mode: int) -> Backend:
        """The same; what is made through it has these permissions, where there are any."""

    def create(self, marker: bytes, site: Site | None = None) -> None:
        """Make the place of a store, and its marker.

        Args:
            marker: its content.
            site: how; None: as usual.

        Raises:
            UsageError: it cannot be made so.
            StoreError: a store or something else is there; of several that make one at once all but
                the first fail so. Or it cannot be made, and nothing is left.
        """

    def check(self) -> None:
        """Raise `StoreError` if the place itself is not there."""

    def writable(self, key: str = "") -> bool:
        """Whether objects of the store, a guest or a point can be replaced and deleted."""

    def room(self) -> int | None:
        """Bytes that it can still take; None: nobody can tell.

        Raises:
            StoreError: it takes no more objects, or that cannot be told.
        """

    def name(self, key: str) -> str:
        """What an object is called in messages."""

    def listing(self, guest: str | None = None) -> Listing:
        """All deltas, and what is not fleece's. A listing that fails never looks empty.

        Args:
            guest: the first part of keys: only what lies below it, at the cost of that. None: all.
        """

    def open(self, key: str) -> Blob:
        """An object to be read. It stays what it was, or says that it was replaced or removed.

        Raises:
            DeltaError: it is not there, or cannot be read.
        """

    def forget(self, key: str) -> bool:
        """Forget what is remembered of an object since it was read before, so that it is read anew.

        Returns:
            Whether anything was.
        """

    def has(self, key: str) -> bool:
        """Whether anything has a key; of what lies beside deltas, when all was listed."""

    def stamp(self, key: str) -> str:
        """What changes whenever an object's content does.

        Raises:
            Gone: it is not there.
        """

    def get(self, key: str, most: int) -> bytes:
        """A small object's content.

        Raises:
            Gone: it is not there.
            StoreError: it cannot be read, or it has more than `most` bytes.
        """

    def put(self, key: str, data: bytes) -> None:
        """Give a small object its content, durably and at once: readers see the old or the new one.

        Raises:
            Gone: the point that it would be in is not there.
        """

    def delete(self, key: str) -> None:
        """Delete a small object, durably. That nothing has the key is no error."""

    def sweep(self, key: str) -> None:
        """Remove what killed writers left of a small object that only the caller writes now."""

    def lock(
        self, guest: str, name: str, patience: Patience | None = None
    ) -> AbstractContextManager[None]:
        """Be the only one that changes what is below a guest's key. It dies with its holder.

        Where there are no locks between hosts, each change of points fails instead if another host
        made one since they were listed; then nothing is changed.

        Args:
            guest: its key.
            name: its name in messages.
            patience: how long to wait for another holder; None: not at all.

        Raises:
            Interrupted: the waiting was cancelled.
            StoreError: another process holds it, or it cannot be relied on.
        """

    def batch(self, guest: str, name: str) -> Batch:
        """Begin a point of a guest whose lock is held.

        Raises:
            StoreError: there is a batch of that name, where two would be one.
        """

    def left(self, guest: str) -> list[Batch]:
        """The batches that killed writers left; the guest's lock is held."""

    def replace(self, key: str) -> Draft:
        """Begin an object that shall take the place of another."""

    def spool(self) -> AbstractContextManager[Draft]:
        """Begin an object of which is not known yet where it belongs.

        Afterwards it is gone, if it has no place. What killed writers left of such goes first.
        """

    def drop(self, point: str) -> Sequence[str]:
        """Take a point away: its deltas go at once.

        Returns:
            Names of what stays of it, because it is not fleece's.
        """

    def tidy(self, points: Sequence[str]) -> Sequence[str]:
        """Remove what killed writers left in points of a guest whose lock is held, and beside them.

        Returns:
            Names of what was removed.
        """


class Usage(NamedTuple):
    """What requests of one kind came to.

    Attributes:
        requests: how many; each try is one.
        sent, received: bytes of content.
    """

    requests: int = 0
    sent: int = 0
    received: int = 0


@runtime_checkable
class Metered(Protocol):
    """A storage that counts its requests, because they have a price."""

    def usage(self) -> Mapping[str, Usage]:
        """What was asked of it since it was opened, by kinds as its owner's bill calls them."""


@runtime_checkable
class BeginsAhead(Protocol):
    """A storage where several points of a guest can be begun before the first is committed.

    Attributes:
        begins_ahead: it is so. Else a guest's points are begun one after the other.
    """

    begins_ahead: bool


@runtime_checkable
class Retains(Protocol):
    """A storage that may be able to keep objects from everybody, whatever rights he has."""

    def retaining(self, days: int) -> Backend:
        """The same; each point that is made through it is kept for so many days."""

    def retain(self, keys: Sequence[str]) -> None:
        """Keep deltas at least as long as a point that is made now.

        Nothing, if no points are kept.

        Raises:
            StoreError: one cannot be kept for so long.
        """

    def kept(self, keys: Sequence[str]) -> Mapping[str, Kept]:
        """Those of some deltas that nobody can delete now; none, where nothing can be kept."""

    def hold(self, keys: Sequence[str], *, on: bool) -> None:
        """Keep deltas until that is ended, or end it; nothing, where nothing can be kept."""


@runtime_checkable
class Accounts(Protocol):
    """A storage that knows what was put into it."""

    def unaccounted(self) -> Sequence[StoreError]:
        """What was hidden, overwritten or taken away, although no engine has dropped it."""
