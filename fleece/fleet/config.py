"""What a configuration means, once it is whole and makes sense."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fleece
from fleece.amounts import bytes_of, fraction_of
from fleece.errors import UsageError
from fleece.fleet.document import Document, Key, Place, read, unknown
from fleece.fleet.hooks import Hooks
from fleece.fleet.hours import Hours, by_the_clock
from fleece.fleet.notices.settings import Notice, notice

HERE = "here"
"""The host of a file that names none."""


@dataclass(frozen=True)
class Verifying:
    """What a run verifies of a guest's points.

    Attributes:
        fraction: of its bytes, more than 0 to 1.
        max_age: what was verified within this time is left out; None: nothing is.
    """

    fraction: float = 1.0
    max_age: fleece.Duration | None = None


@dataclass(frozen=True)
class StoreConfig:
    """A store.

    Attributes:
        name: in the file.
        place: where it is.
        key_file, passphrase_file: what holds its key; None: the other one does, or it has none.
        keep: what its points are kept by; None: none is dropped.
        verifying: what each run verifies; None: nothing.
        copy_to: names of the stores that its points are copied to.
        at_once: guests that are backed up into it at once.
    """

    name: str
    place: str
    key_file: str | None
    passphrase_file: str | None
    keep: fleece.KeepRules | None
    verifying: Verifying | None
    copy_to: tuple[str, ...]
    at_once: int | None


@dataclass(frozen=True)
class HostConfig:
    """A libvirt.

    Attributes:
        name: in the file.
        connect: its URI; None: libvirt's own default.
        at_once: of its guests, that are backed up at once.
    """

    name: str
    connect: str | None = None
    at_once: int | None = None


@dataclass(frozen=True)
class Booting:
    """What a run boots of a guest.

    Attributes:
        every: its newest point, unless one has booted within this time.
        wish: what to wait for.
    """

    every: fleece.Duration
    wish: fleece.DrillWish


@dataclass(frozen=True)
class GuestConfig:
    """One entry of guests.

    Attributes:
        where: the file and line, for messages.
        name: of the one guest in its store; None: those that match.
        source: of the one guest.
        pattern: of names.
        left_out: patterns of names that are left out.
        tag: that they must have; None: any.
        hosts: that have them; of the one guest, one.
        store: that they are backed up into.
        every: a guest whose newest point is younger is left out; None: it is due in each run.
        keep: what its points are kept by; None: none is dropped.
        options: how they are opened; without the URI of their host.
        backup: how they are backed up.
        left_out_disks: names of disks that are not; empty: `backup` says which are.
        hooks: what runs around that.
        stale_after: their newest good point must not be older; None: it may.
        booting: what each run boots; None: nothing.
    """

    where: Place
    name: str | None
    source: str | None
    pattern: str | None
    left_out: tuple[str, ...]
    tag: str | None
    hosts: tuple[HostConfig, ...]
    store: StoreConfig
    every: fleece.Duration | None
    keep: fleece.KeepRules | None
    options: fleece.SourceOptions
    backup: fleece.BackupOptions
    left_out_disks: tuple[str, ...]
    hooks: Hooks
    stale_after: fleece.Duration | None
    booting: Booting | None

    def matches(self, guest: fleece.FoundGuest) -> bool:
        """Whether a guest is one of those that match."""
        name = guest.name
        if self.pattern is None or not fnmatch.fnmatchcase(name, self.pattern):
            return False
        if self.tag is not None and self.tag not in guest.tags:
            return False
        return not any(fnmatch.fnmatchcase(name, each) for each in self.left_out)


@dataclass(frozen=True)
class Limits:
    """What a run may take.

    Attributes:
        at_once: guests.
        retries: of a step, while somebody else holds what it needs.
        retry_wait: seconds before the first one; each later one waits twice as long.
        windows: in which steps are begun; empty: always.
        rates: bytes per second, at most, of a guest at some hours; the first that hold count.
    """

    at_once: int = 2
    retries: int = 3
    retry_wait: int = 30
    windows: tuple[Hours, ...] = ()
    rates: tuple[tuple[Hours, int], ...] = ()

    def closed(self) -> str | None:
        """The windows, in words, if none is open now."""
        now = by_the_clock()
        if not self.windows or any(hours.hold(now) for hours in self.windows):
            return None
        return f"outside of {', '.join(hours.text for hours in self.windows)}"

    def rate(self, own: int | None) -> int | None:
        """Bytes per second that are read of a guest now, at most, if its own limit is this."""
        now = by_the_clock()
        of_the_hour = next((rate for hours, rate in self.rates if hours.hold(now)), None)
        return min((rate for rate in (own, of_the_hour) if rate is not None), default=None)


@dataclass(frozen=True)
class Drilling:
    """How `fleece drill` drills.

    Attributes:
        sample: guests of each store.
        boot: they are booted; else restored.
        text: that must come on the console; None: the guest's agent must answer.
        limit: seconds to wait for it.
        scratch: folder for what is restored; None: /var/tmp.
    """

    sample: int = 1
    boot: bool = False
    text: str | None = None
    limit: float = 300.0
    scratch: Path | None = None


@dataclass(frozen=True)
class Config:
    """All of it: stores, hosts and who is told by their names, guests in their order."""

    stores: Mapping[str, StoreConfig]
    hosts: Mapping[str, HostConfig]
    guests: tuple[GuestConfig, ...]
    limits: Limits
    notices: Mapping[str, Notice]
    drilling: Drilling


def load(path: Path) -> Config:
    """Read a configuration.

    Args:
        path: of its first file.

    Raises:
        UsageError: it cannot be read, or it contradicts itself: with the file and the line.
    """
    documents = read(path)
    stores = {
        name: _store(document, name, table) for document, name, table in _tables(documents, "store")
    }
    for document, name, _ in _tables(documents, "store"):
        for number, other in enumerate(stores[name].copy_to):
            where = ("store", name, "copy-to", number)
            _known(document, where, other, stores, "store")
            if other == name:
                raise UsageError("a store is not copied to itself", where=document.where(*where))
    hosts = {
        name: HostConfig(name, table.get("connect"), table.get("at-once"))
        for _, name, table in _tables(documents, "host")
    } or {HERE: HostConfig(HERE)}
    guests = tuple(
        _guest(document, number, table, stores, hosts)
        for document in documents
        for number, table in enumerate(document.data.get("guest", ()))
    )
    _each_once(guests)
    notices = {
        name: notice(document, name, table)
        for document, name, table in _tables(documents, "notice")
    }
    return Config(stores, hosts, guests, _limits(documents), notices, _drilling(documents))


def _tables(
    documents: Sequence[Document], kind: str
) -> Iterator[tuple[Document, str, Mapping[str, Any]]]:
    seen: dict[str, Place] = {}
    for document in documents:
        for name, table in document.data.get(kind, {}).items():
            where = document.where(kind, name)
            if name in seen:
                raise UsageError(f"{kind} '{name}' is in {seen[name]}, too", where=where)
            seen[name] = where
            yield document, name, table


def _known(
    document: Document, keys: Sequence[Key], name: str, known: Mapping[str, object], kind: str
) -> None:
    if name not in known:
        raise UsageError(
            f"there is no {kind} '{name}'",
            where=document.where(*keys),
            hint=unknown(name, [*known]),
        )


def _store(document: Document, name: str, table: Mapping[str, Any]) -> StoreConfig:
    if "key-file" in table and "passphrase-file" in table:
        raise UsageError(
            "a store has a key file or a passphrase file, not both",
            where=document.where("store", name, "passphrase-file"),
        )
    verify = table.get("verify")
    return StoreConfig(
        name,
        table["place"],
        table.get("key-file"),
        table.get("passphrase-file"),
        _keep(document, ("store", name, "keep"), table.get("keep")),
        None if verify is None else _verifying(document, ("store", name, "verify"), verify),
        tuple(table.get("copy-to", ())),
        table.get("at-once"),
    )


def _keep(
    document: Document, keys: Sequence[Key], table: Mapping[str, Any] | None
) -> fleece.KeepRules | None:
    if table is None:
        return None
    within = table.get("within")
    counts = {name: count for name, count in table.items() if name != "within"}
    rules = fleece.KeepRules(**counts, within=None if within is None else _duration(within))
    try:
        rules.check()
    except UsageError as error:
        raise UsageError("no rule keeps anything", where=document.where(*keys)) from error
    return rules


def _verifying(document: Document, keys: Sequence[Key], table: Mapping[str, Any]) -> Verifying:
    part = fraction_of("part", table.get("part", "100%"))
    if not part:
        raise UsageError("a part of nothing is verified", where=document.where(*keys, "part"))
    age = table.get("max-age")
    return Verifying(part, None if age is None else _duration(age))


def _duration(text: str) -> fleece.Duration:
    return fleece.Duration.parse(text)


def _guest(
    document: Document,
    number: int,
    table: Mapping[str, Any],
    stores: Mapping[str, StoreConfig],
    hosts: Mapping[str, HostConfig],
) -> GuestConfig:
    keys = ("guest", number)
    _who(document, keys, table)
    _known(document, (*keys, "store"), table["store"], stores, "store")
    store = stores[table["store"]]
    keep = _keep(document, (*keys, "keep"), table.get("keep")) or store.keep
    every, stale = table.get("every"), table.get("stale-after")
    return GuestConfig(
        document.where(*keys),
        table.get("name"),
        table.get("source"),
        table["match"].removeprefix("libvirt:") if "match" in table else None,
        tuple(table.get("except", ())),
        table.get("tag"),
        _hosts(document, keys, table, hosts),
        store,
        None if every is None else _duration(every),
        keep,
        _options(table),
        _backup(document, keys, table),
        tuple(table.get("leave-out", ())),
        _hooks(document, keys, table.get("hooks")),
        None if stale is None else _duration(stale),
        _booting(table.get("boot-test")),
    )


def _booting(table: Mapping[str, Any] | None) -> Booting | None:
    if table is None:
        return None
    usual, scratch = fleece.BootWish(), table.get("scratch")
    boot = fleece.BootWish(table.get("console-text"), float(table.get("timeout", usual.limit)))
    folder = None if scratch is None else Path(scratch)
    return Booting(_duration(table["every"]), fleece.DrillWish(boot, scratch=folder))


def _hooks(document: Document, keys: Sequence[Key], table: Mapping[str, Any] | None) -> Hooks:
    if table is None:
        return Hooks()
    if not table.keys() & {"before", "after"}:
        where = document.where(*keys, "hooks")
        raise UsageError("hooks without 'before' or 'after' have no effect", where=where)
    return Hooks(
        tuple(table.get("before", ())),
        tuple(table.get("after", ())),
        table.get("limit", Hooks.limit),
        table.get("environment", {}),
    )


def _who(document: Document, keys: Sequence[Key], table: Mapping[str, Any]) -> None:
    """Refuse an entry that does not say which guests it is about, or says it twice."""
    if ("match" in table) == ("name" in table):
        raise UsageError(
            "a guest has a 'name' and a 'source', or there is a 'match' for several",
            where=document.where(*keys),
        )
    if ("source" in table) != ("name" in table):
        missing, there = ("source", "name") if "name" in table else ("name", "source")
        raise UsageError(f"'{there}' without '{missing}'", where=document.where(*keys, there))
    for key in ("except", "tag"):
        if key in table and "match" not in table:
            where = document.where(*keys, key)
            raise UsageError(f"'{key}' has no effect without 'match'", where=where)
    if "disks" in table and "leave-out" in table:
        where = document.where(*keys, "leave-out")
        raise UsageError("'disks' says which ones, or 'leave-out' which ones not", where=where)
    if "host" in table and not str(table.get("source", "libvirt:")).startswith("libvirt:"):
        where = document.where(*keys, "host")
        raise UsageError("'host' has no effect on a source that is not libvirt:", where=where)


def _hosts(
    document: Document,
    keys: Sequence[Key],
    table: Mapping[str, Any],
    hosts: Mapping[str, HostConfig],
) -> tuple[HostConfig, ...]:
    name = table.get("host")
    if name is not None:
        _known(document, (*keys, "host"), name, hosts, "host")
        return (hosts[name],)
    if "match" in table:
        return tuple(hosts.values())
    if len(hosts) > 1 and table["source"].startswith("libvirt:"):
        raise UsageError(
            "there are several hosts",
            where=document.where(*keys),
            hint=f"add a line like: host = '{next(iter(hosts))}'",
        )
    return (next(iter(hosts.values())),)


def _options(table: Mapping[str, Any]) -> fleece.SourceOptions:
    scratch, limit = table.get("scratch"), table.get("scratch-limit")
    freeze = table.get("freeze", "no")
    by_agent = "guest-agent" in table
    return fleece.SourceOptions(
        scratch=None if scratch is None else Path(scratch),
        scratch_limit=None if limit is None else bytes_of("scratch-limit", limit),
        fleecing=fleece.Fleecing(table.get("fleecing", fleece.Fleecing.CLASSIC)),
        guest_agent=table.get("guest-agent"),
        require_freeze=freeze == "require",
        freeze=freeze != "no" and not by_agent,
    )


def _backup(
    document: Document, keys: Sequence[Key], table: Mapping[str, Any]
) -> fleece.BackupOptions:
    rate = table.get("rate")
    given = {name: table[key] for name, key in _NUMBERS if key in table}
    options = fleece.BackupOptions(
        guest=table.get("name"),
        disks=tuple(table.get("disks", ())),
        audit=fraction_of("audit", table.get("audit", "0%")),
        transport=fleece.TransportWish(table.get("transport", fleece.TransportWish.AUTO)),
        rate=None if rate is None else bytes_of("rate", rate),
        **given,
    )
    try:
        options.check()
    except UsageError as error:
        raise UsageError(str(error), where=document.where(*keys)) from error
    return options


_NUMBERS = (("level", "level"), ("workers", "jobs"))


def _each_once(guests: Sequence[GuestConfig]) -> None:
    """Refuse two entries for one guest of one store: only one of them could be meant."""
    seen: dict[tuple[str, str], Place] = {}
    for guest in guests:
        if guest.name is None:
            continue
        key = (guest.store.name, guest.name)
        if key in seen:
            raise UsageError(
                f"guest '{guest.name}' is in {seen[key]}, too, for the same store",
                where=guest.where,
            )
        seen[key] = guest.where


def _sole(documents: Sequence[Document], name: str) -> Mapping[str, Any]:
    """The table that only one of the files may have; empty: none has."""
    having = [document for document in documents if name in document.data]
    for other in having[1:]:
        raise UsageError(f"{name} is in {having[0].where(name)}, too", where=other.where(name))
    found: Mapping[str, Any] = having[0].data[name] if having else {}
    return found


def _drilling(documents: Sequence[Document]) -> Drilling:
    usual, table = Drilling(), _sole(documents, "drill")
    scratch, text = table.get("scratch"), table.get("console-text")
    boot = table.get("kind") == "boot"
    for key in ("console-text", "timeout"):
        for document in documents:
            if key in document.data.get("drill", {}) and not boot:
                raise UsageError(
                    f"'{key}' has no effect without kind = 'boot'",
                    where=document.where("drill", key),
                )
    return Drilling(
        table.get("sample", usual.sample),
        boot,
        text,
        float(table.get("timeout", usual.limit)),
        None if scratch is None else Path(scratch),
    )


def _limits(documents: Sequence[Document]) -> Limits:
    usual, table = Limits(), _sole(documents, "limits")
    return Limits(
        table.get("at-once", usual.at_once),
        table.get("retries", usual.retries),
        table.get("retry-wait", usual.retry_wait),
        tuple(map(Hours.parse, table.get("windows", ()))),
        tuple(
            (Hours.parse(each["hours"]), bytes_of("rate", each["rate"]))
            for each in table.get("rates", ())
        ),
    )
