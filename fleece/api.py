"""The public API, all of it; `fleece` itself loads it when a name is first used."""

from __future__ import annotations

from fleece.cancel import CancelToken
from fleece.compare import TreeComparison
from fleece.delta.chain import Chain, ChainMap
from fleece.delta.header import Header, Mode, ParentRef, PointRef
from fleece.delta.identity import GuestIdentity
from fleece.delta.part import Part, PartKind
from fleece.delta.reader import DeltaReader
from fleece.delta.sink import Sink
from fleece.delta.writer import DeltaWriter, Summary
from fleece.disk.base import ReadableDisk
from fleece.disk.chain import ChainDisk
from fleece.disk.image import ImageFormat, open_image
from fleece.disk.use import claimed_output
from fleece.durations import Duration
from fleece.engine.backup.audit import AuditedDisk, AuditResult, audit
from fleece.engine.backup.bitmaps import KeptSegment, drop_segments, segments
from fleece.engine.backup.decide import ModeWish
from fleece.engine.backup.embed import dirty_extents, write_delta
from fleece.engine.backup.options import BackupOptions, BackupResult, DiskResult
from fleece.engine.backup.pull import CopyJob, copy_all, dirty_leaves, open_export
from fleece.engine.backup.run import backup
from fleece.engine.check.diff import compare_points
from fleece.engine.check.disk_map import MappedExtent, Picture, mapped_extents, picture_of
from fleece.engine.check.history import GuestHistory, PointHistory, StoreHistory, history
from fleece.engine.check.scrub import ScrubResult, ScrubRules, scrub
from fleece.engine.check.stats import GuestStats, stats
from fleece.engine.check.status import GROWTH_DAYS, GuestStatus, StoreStatus, status
from fleece.engine.check.verify import Comparison, VerifyResult, compare_image, verify_store
from fleece.engine.export.address import Doors
from fleece.engine.export.export import ExportedDisk, Exporting, Told, export
from fleece.engine.export.options import ExportOptions
from fleece.engine.export.orders import Order, Orders, order
from fleece.engine.http.door import HttpDoor
from fleece.engine.restore.existing_target import format_by_name
from fleece.engine.restore.guest import GuestOptions, GuestResult, restore_guest
from fleece.engine.restore.image import RestoreResult, restore
from fleece.engine.restore.options import RestoreOptions
from fleece.engine.restore.part_diff import PartDifference, compare_parts
from fleece.engine.restore.partial import PartialResult, restore_partial
from fleece.engine.restore.qcow2_chain import restore_as_chain
from fleece.engine.restore.salvage import Loss, LostExtent, SalvagedFile, describe, salvage
from fleece.engine.restore.stream import restore_stream
from fleece.engine.serve.boot import BootMachine, BootResult, BootWish, boot_test
from fleece.engine.serve.likeness import Likeness, likeness
from fleece.engine.serve.serve import ServedDisk, ServeOptions, Serving, serve
from fleece.engine.upkeep.copy import CopyReport, SentPoint, copy
from fleece.engine.upkeep.copy_plan import CopyOptions
from fleece.engine.upkeep.drill import DrillWish, drill, least_drilled
from fleece.engine.upkeep.import_delta import ImportResult, import_delta
from fleece.engine.upkeep.merge import MergedDisk, MergeResult, merge
from fleece.engine.upkeep.prune import PlannedPoint, PruneResult, prune, set_pin
from fleece.engine.upkeep.retention import KeepRules
from fleece.engine.upkeep.tags import set_tags
from fleece.engine.work.needs import Need, examine_host
from fleece.engine.work.part import parts
from fleece.engine.work.scan import disk_root
from fleece.errors import (
    DeltaError,
    ExitCode,
    FleeceError,
    Interrupted,
    PointError,
    SourceError,
    StoreError,
    TargetError,
    UsageError,
    VerifyError,
    WrongKey,
)
from fleece.events import Event, Listener, Phase
from fleece.extents import Extents
from fleece.files.copy import CopyResult, copy_files, copy_stream
from fleece.files.model import FileEntry, FileKind, Volume
from fleece.files.point import PointFiles, open_files
from fleece.files.session import FilesError
from fleece.guests import GuestChoice, Shard
from fleece.hashing import BLAKE3, XXH3_128, HashAlgorithm
from fleece.keys import Secret
from fleece.source.base import (
    Chosen,
    Disk,
    Export,
    HeldElsewhere,
    Inventory,
    KeepsBitmaps,
    KeptBitmap,
    Machine,
    Point,
    PushFeed,
    Removed,
    Request,
    Resumable,
    Since,
    Source,
    TellsMachine,
    Transport,
    TransportWish,
    Unknown,
    Wanted,
)
from fleece.source.image.inventory import Image, ImageDisk
from fleece.source.image.source import ImageSource
from fleece.source.open import guests_of, open_source, serve_source
from fleece.source.options import Fleecing, FoundGuest, SourceOptions
from fleece.source.qemu.agent import GuestAgent
from fleece.source.qemu.inventory import GuestDisk
from fleece.source.qemu.source import QemuSource
from fleece.source.report import Ability, Examinable, ExaminedBitmap, ExaminedDisk, Report
from fleece.source.segments import Bitmap
from fleece.store.backend import Site
from fleece.store.catalogue import Catalogue, Entry, StoredPoint
from fleece.store.drills import Drill, drills_of
from fleece.store.init import init
from fleece.store.loose import open_delta, read_entry
from fleece.store.marker import HashChoice, StoreWishes
from fleece.store.marks import Marks, marks
from fleece.store.open import open_store
from fleece.store.remote.server import serve_store
from fleece.store.store import Store
from fleece.terminal import shown
from fleece.tree import BlankDisk, Geometry

__all__ = (
    "BLAKE3",
    "GROWTH_DAYS",
    "XXH3_128",
    "Ability",
    "AuditResult",
    "AuditedDisk",
    "BackupOptions",
    "BackupResult",
    "Bitmap",
    "BlankDisk",
    "BootMachine",
    "BootResult",
    "BootWish",
    "CancelToken",
    "Catalogue",
    "Chain",
    "ChainDisk",
    "ChainMap",
    "Chosen",
    "Comparison",
    "CopyJob",
    "CopyOptions",
    "CopyReport",
    "CopyResult",
    "DeltaError",
    "DeltaReader",
    "DeltaWriter",
    "Disk",
    "DiskResult",
    "Doors",
    "Drill",
    "DrillWish",
    "Duration",
    "Entry",
    "Event",
    "Examinable",
    "ExaminedBitmap",
    "ExaminedDisk",
    "ExitCode",
    "Export",
    "ExportOptions",
    "ExportedDisk",
    "Exporting",
    "Extents",
    "FileEntry",
    "FileKind",
    "FilesError",
    "FleeceError",
    "Fleecing",
    "FoundGuest",
    "Geometry",
    "GuestAgent",
    "GuestChoice",
    "GuestDisk",
    "GuestHistory",
    "GuestIdentity",
    "GuestOptions",
    "GuestResult",
    "GuestStats",
    "GuestStatus",
    "HashAlgorithm",
    "HashChoice",
    "Header",
    "HeldElsewhere",
    "HttpDoor",
    "Image",
    "ImageDisk",
    "ImageFormat",
    "ImageSource",
    "ImportResult",
    "Interrupted",
    "Inventory",
    "KeepRules",
    "KeepsBitmaps",
    "KeptBitmap",
    "KeptSegment",
    "Likeness",
    "Listener",
    "Loss",
    "LostExtent",
    "Machine",
    "MappedExtent",
    "Marks",
    "MergeResult",
    "MergedDisk",
    "Mode",
    "ModeWish",
    "Need",
    "Order",
    "Orders",
    "ParentRef",
    "Part",
    "PartDifference",
    "PartKind",
    "PartialResult",
    "Phase",
    "Picture",
    "PlannedPoint",
    "Point",
    "PointError",
    "PointFiles",
    "PointHistory",
    "PointRef",
    "PruneResult",
    "PushFeed",
    "QemuSource",
    "ReadableDisk",
    "Removed",
    "Report",
    "Request",
    "RestoreOptions",
    "RestoreResult",
    "Resumable",
    "SalvagedFile",
    "ScrubResult",
    "ScrubRules",
    "Secret",
    "SentPoint",
    "ServeOptions",
    "ServedDisk",
    "Serving",
    "Shard",
    "Since",
    "Sink",
    "Site",
    "Source",
    "SourceError",
    "SourceOptions",
    "Store",
    "StoreError",
    "StoreHistory",
    "StoreStatus",
    "StoreWishes",
    "StoredPoint",
    "Summary",
    "TargetError",
    "TellsMachine",
    "Told",
    "Transport",
    "TransportWish",
    "TreeComparison",
    "Unknown",
    "UsageError",
    "VerifyError",
    "VerifyResult",
    "Volume",
    "Wanted",
    "WrongKey",
    "audit",
    "backup",
    "boot_test",
    "claimed_output",
    "compare_image",
    "compare_parts",
    "compare_points",
    "copy",
    "copy_all",
    "copy_files",
    "copy_stream",
    "describe",
    "dirty_extents",
    "dirty_leaves",
    "disk_root",
    "drill",
    "drills_of",
    "drop_segments",
    "examine_host",
    "export",
    "format_by_name",
    "guests_of",
    "history",
    "import_delta",
    "init",
    "least_drilled",
    "likeness",
    "mapped_extents",
    "marks",
    "merge",
    "open_delta",
    "open_export",
    "open_files",
    "open_image",
    "open_source",
    "open_store",
    "order",
    "parts",
    "picture_of",
    "prune",
    "read_entry",
    "restore",
    "restore_as_chain",
    "restore_guest",
    "restore_partial",
    "restore_stream",
    "salvage",
    "scrub",
    "segments",
    "serve",
    "serve_source",
    "serve_store",
    "set_pin",
    "set_tags",
    "shown",
    "stats",
    "status",
    "verify_store",
    "write_delta",
)
