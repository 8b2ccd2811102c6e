"""What a command line says: a class for each verb, which the grammar fills and the verb reads.

A field is what the grammar calls the option (`dest`), as it was typed; `secret` is made of what
names a key.
"""

from __future__ import annotations

from typing import NoReturn, dataclass_transform

import fleece


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Words:
    """A frozen dataclass, made by keywords, for the reader and the type checker.

    `dataclass` itself would generate code for each verb's class whenever fleece starts: 20 ms for
    all of them, of which one is used.
    """

    def __init__(self, **given: object) -> None:
        if given.keys() != self.__annotations__.keys():
            raise TypeError(f"{type(self).__name__}: {sorted(given)}")
        self.__dict__.update(given)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name}")


class InitWords(Words):
    """`fleece init STORE`."""

    store: str
    hash_name: str | None
    encrypt: bool
    permissions: int
    like: str | None
    create_bucket: bool
    single_writer: bool
    lock_days: int | None
    secret: fleece.Secret | None


class BackupWords(Words):
    """`fleece backup SOURCE STORE`."""

    source: str
    store: str
    mode: str
    guest: str | None
    tags: list[tuple[str, ...]]
    adopt: bool
    disks: list[str]
    scratch: str | None
    connect: str | None
    level: int | None
    guest_agent: str | None
    freeze: bool
    require_freeze: bool
    audit: float
    bitmap: list[str]
    since: str | None
    scratch_limit: str | None
    fleecing: str
    transport: str
    jobs: int | None
    rate: str | None
    resume: bool
    secret: fleece.Secret | None
    stream: str | None


class ExportWords(Words):
    """`fleece export SOURCE`."""

    source: str
    disks: list[str]
    consumer: str | None
    since: str | None
    full: bool
    keep_bases: int | None
    socket: str | None
    listen: str | None
    tls_x509: str | None
    tls_psk: str | None
    http: str | None
    tls_cert: str | None
    tls_key: str | None
    ttl: str | None
    scratch: str | None
    connect: str | None
    scratch_limit: str | None
    guest_agent: str | None
    freeze: bool
    require_freeze: bool
    commit: str | None
    drop: str | None


class AuditWords(Words):
    """`fleece audit SOURCE STORE`."""

    source: str
    store: str
    guest: str | None
    disks: list[str]
    bitmap: list[str]
    since: str | None
    scratch: str | None
    connect: str | None
    scratch_limit: str | None
    fleecing: str
    secret: fleece.Secret | None


class BitmapWords(Words):
    """`fleece bitmap SOURCE [STORE]...`."""

    source: str
    stores: list[str]
    drop: str | None
    guest: str | None
    connect: str | None
    secret: fleece.Secret | None


class CleanWords(Words):
    """`fleece clean SOURCE`."""

    source: str
    scratch: str | None
    connect: str | None


class DoctorWords(Words):
    """`fleece doctor [SOURCE [STORE]]`."""

    source: str | None
    store: str | None
    scratch: str | None
    connect: str | None


class ListWords(Words):
    """`fleece list STORE`."""

    store: str
    guest: str | None
    tags: list[tuple[str, ...]]
    long: bool
    secret: fleece.Secret | None


class StatusWords(Words):
    """`fleece status STORE`."""

    store: str
    secret: fleece.Secret | None


class ImportWords(Words):
    """`fleece import STORE`."""

    store: str
    adopt: bool
    secret: fleece.Secret | None


class InfoWords(Words):
    """`fleece info FILE`."""

    file: str
    secret: fleece.Secret | None


class VerifyWords(Words):
    """`fleece verify STORE [POINT]`."""

    store: str
    point: str | None
    against: str | None
    disk: str | None
    guest: str | None
    image_format: str | None
    max_age: str | None
    fraction: str | None
    shard: str | None
    secret: fleece.Secret | None


class RootWords(Words):
    """`fleece root IMAGE`."""

    image: str
    image_format: str | None
    hash_name: str


class SalvageWords(Words):
    """`fleece salvage FILE -o NEW`."""

    file: str
    target: str
    force: bool
    permissions: int | None
    secret: fleece.Secret | None


class RestoreWords(Words):
    """`fleece restore STORE POINT DISK TARGET`."""

    store: str
    point: str
    disk: str
    target: str
    target_format: str | None
    force: bool
    in_place: bool
    permissions: int | None
    guest: str | None
    secret: fleece.Secret | None


class RestoreGuestWords(Words):
    """`fleece restore-guest STORE POINT TARGETDIR`."""

    store: str
    point: str
    folder: str
    connect: str | None
    name: str | None
    keep_identity: bool
    places: list[tuple[str, str]]
    target_format: str | None
    script: bool
    trusted: bool
    start: bool
    force: bool
    guest: str | None
    secret: fleece.Secret | None


class ServeWords(Words):
    """`fleece serve STORE POINT`."""

    store: str
    point: str
    disks: list[str]
    socket: str | None
    writable: bool
    scratch: str | None
    http: str | None
    tls_cert: str | None
    tls_key: str | None
    guest: str | None
    secret: fleece.Secret | None


class BootWords(Words):
    """`fleece boot-test STORE POINT`."""

    store: str
    point: str
    disks: list[str]
    guest: str | None
    text: str | None
    limit: float
    screenshot: str | None
    console: str | None
    permissions: int | None
    scratch: str | None
    secret: fleece.Secret | None
    memory: int | None
    processors: int | None
    emulated: bool
    bus: str | None
    firmware: str | None
    kernel: str | None
    initrd: str | None
    append: str | None


class DiffWords(Words):
    """`fleece diff STORE A B`."""

    store: str
    old: str
    new: str
    disks: list[str]
    guest: str | None
    secret: fleece.Secret | None


class MapWords(Words):
    """`fleece map STORE POINT DISK`."""

    store: str
    point: str
    disk: str
    svg: str | None
    guest: str | None
    secret: fleece.Secret | None


class LsWords(Words):
    """`fleece files STORE POINT DISK ls [PATH]...`."""

    store: str
    point: str
    disk: str
    paths: list[str]
    long: bool
    recursive: bool
    volume: str | None
    guest: str | None
    secret: fleece.Secret | None


class CpWords(Words):
    """`fleece files STORE POINT DISK cp PATH... DEST`."""

    store: str
    point: str
    disk: str
    paths: list[str]
    target: str
    force: bool
    volume: str | None
    guest: str | None
    secret: fleece.Secret | None


class MergeWords(Words):
    """`fleece merge STORE POINT`."""

    store: str
    point: str
    first: str | None
    guest: str | None
    secret: fleece.Secret | None


class PruneWords(Words):
    """`fleece prune STORE`."""

    store: str
    guest: str | None
    shard: str | None
    tags: list[tuple[str, ...]]
    keep_tags: list[tuple[str, ...]]
    dry_run: bool
    merge: str
    within: str | None
    secret: fleece.Secret | None
    last: int
    hourly: int
    daily: int
    weekly: int
    monthly: int
    yearly: int


class StatsWords(Words):
    """`fleece stats STORE`."""

    store: str
    guest: str | None
    tags: list[tuple[str, ...]]
    keep_tags: list[tuple[str, ...]]
    within: str | None
    secret: fleece.Secret | None
    last: int
    hourly: int
    daily: int
    weekly: int
    monthly: int
    yearly: int


class CopyWords(Words):
    """`fleece copy FROM TO`."""

    store: str
    to: str
    guests: list[str]
    shard: str | None
    tags: list[tuple[str, ...]]
    last: int | None
    since: str | None
    newer: bool
    follow: bool
    dry_run: bool
    rate: str | None
    jobs: int
    to_key_file: str | None
    to_passphrase_file: str | None
    secret: fleece.Secret | None


class ServeStoreWords(Words):
    """`fleece serve-store STORE`."""

    store: str
    append_only: bool


class ServeSourceWords(Words):
    """`fleece serve-source SOURCE`."""

    source: str
    scratch: str | None
    connect: str | None
    scratch_limit: str | None
    freeze: bool
    require_freeze: bool


class PinWords(Words):
    """`fleece pin STORE POINT` and `fleece unpin STORE POINT`."""

    store: str
    point: str
    guest: str | None
    secret: fleece.Secret | None


class TagWords(Words):
    """`fleece tag STORE POINT`."""

    store: str
    point: str
    add_tags: list[tuple[str, ...]]
    remove_tags: list[tuple[str, ...]]
    set_tags: list[tuple[str, ...]]
    guest: str | None
    secret: fleece.Secret | None


class RunWords(Words):
    """`fleece run [GUEST]...`."""

    guests: list[str]
    config: str | None
    shard: str | None
    only: list[str]
    dry_run: bool
    any_time: bool
    wait: float


class ConfigWords(Words):
    """`fleece config ACTION`."""

    action: str
    config: str | None


class MetricsWords(Words):
    """`fleece metrics [STORE]...`."""

    stores: list[str]
    config: str | None
    output: str | None
    listen: str | None
    rules: bool
    dashboard: bool
    secret: fleece.Secret | None


class ScheduleWords(Words):
    """`fleece schedule ACTION`."""

    action: str
    config: str | None
    calendar: str | None
    cron: bool
    root: str | None


class DrillWords(Words):
    """`fleece drill [STORE]...`."""

    stores: list[str]
    guests: list[str]
    config: str | None
    sample: int | None
    boot: bool
    text: str | None
    limit: float | None
    scratch: str | None
    secret: fleece.Secret | None


class ReportWords(Words):
    """`fleece report [STORE]...`."""

    stores: list[str]
    html: str
    config: str | None
    max_age: str | None
    maps: int
    secret: fleece.Secret | None
