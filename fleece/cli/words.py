"""What a command line says: a class for each verb, which the grammar fills and the verb reads.

A field is what the grammar calls the option (`dest`), as it was typed; `secret` is made of what
names a key.
"""

from __future__ import annotations

from dataclasses import dataclass

import fleece


@dataclass(frozen=True, kw_only=True)
class InitWords:
    """`fleece init STORE`."""

    store: str
    hash_name: str | None
    encrypt: bool
    permissions: int
    like: str | None
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class BackupWords:
    """`fleece backup SOURCE STORE`."""

    source: str
    store: str
    mode: str
    guest: str | None
    adopt: bool
    disks: list[str]
    scratch: str | None
    connect: str | None
    level: int | None
    guest_agent: str | None
    freeze: bool
    require_freeze: bool
    audit: float
    scratch_limit: str | None
    fleecing: str
    transport: str
    jobs: int | None
    rate: str | None
    resume: bool
    secret: fleece.Secret | None
    stream: str | None


@dataclass(frozen=True, kw_only=True)
class AuditWords:
    """`fleece audit SOURCE STORE`."""

    source: str
    store: str
    guest: str | None
    disks: list[str]
    scratch: str | None
    connect: str | None
    scratch_limit: str | None
    fleecing: str
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class BitmapWords:
    """`fleece bitmap SOURCE [STORE]...`."""

    source: str
    stores: list[str]
    drop: str | None
    guest: str | None
    connect: str | None
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class CleanWords:
    """`fleece clean SOURCE`."""

    source: str
    scratch: str | None
    connect: str | None


@dataclass(frozen=True, kw_only=True)
class DoctorWords:
    """`fleece doctor [SOURCE [STORE]]`."""

    source: str | None
    store: str | None
    scratch: str | None
    connect: str | None


@dataclass(frozen=True, kw_only=True)
class ListWords:
    """`fleece list STORE`."""

    store: str
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class StatusWords:
    """`fleece status STORE`."""

    store: str
    prometheus: bool
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class ImportWords:
    """`fleece import STORE`."""

    store: str
    adopt: bool
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class InfoWords:
    """`fleece info FILE`."""

    file: str
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class VerifyWords:
    """`fleece verify STORE [POINT]`."""

    store: str
    point: str | None
    against: str | None
    disk: str | None
    guest: str | None
    image_format: str | None
    max_age: str | None
    fraction: str | None
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class RootWords:
    """`fleece root IMAGE`."""

    image: str
    image_format: str | None
    hash_name: str


@dataclass(frozen=True, kw_only=True)
class SalvageWords:
    """`fleece salvage FILE -o NEW`."""

    file: str
    target: str
    force: bool
    permissions: int | None
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class RestoreWords:
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


@dataclass(frozen=True, kw_only=True)
class ServeWords:
    """`fleece serve STORE POINT`."""

    store: str
    point: str
    disks: list[str]
    socket: str | None
    writable: bool
    scratch: str | None
    guest: str | None
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class BootWords:
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
    memory: int
    processors: int
    emulated: bool
    bus: str
    firmware: str | None
    kernel: str | None
    initrd: str | None
    append: str | None


@dataclass(frozen=True, kw_only=True)
class DiffWords:
    """`fleece diff STORE A B`."""

    store: str
    old: str
    new: str
    disks: list[str]
    guest: str | None
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class MapWords:
    """`fleece map STORE POINT DISK`."""

    store: str
    point: str
    disk: str
    svg: str | None
    guest: str | None
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class LsWords:
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


@dataclass(frozen=True, kw_only=True)
class CpWords:
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


@dataclass(frozen=True, kw_only=True)
class MergeWords:
    """`fleece merge STORE POINT`."""

    store: str
    point: str
    first: str | None
    guest: str | None
    secret: fleece.Secret | None


@dataclass(frozen=True, kw_only=True)
class PruneWords:
    """`fleece prune STORE`."""

    store: str
    guest: str | None
    dry_run: bool
    within: str | None
    secret: fleece.Secret | None
    last: int
    hourly: int
    daily: int
    weekly: int
    monthly: int
    yearly: int


@dataclass(frozen=True, kw_only=True)
class PinWords:
    """`fleece pin STORE POINT` and `fleece unpin STORE POINT`."""

    store: str
    point: str
    guest: str | None
    secret: fleece.Secret | None
