"""The public API, all of it; `fleece` itself loads it when a name is first used."""

from __future__ import annotations

from fleece.cancel import CancelToken
from fleece.delta.chain import Chain, ChainMap
from fleece.delta.header import Header, Mode, ParentRef, PointRef
from fleece.delta.reader import DeltaReader
from fleece.delta.writer import DeltaWriter, Summary
from fleece.disk.image import ImageFormat, open_image
from fleece.engine.backup import BackupOptions, BackupResult, DiskResult, backup
from fleece.engine.copy import CopyJob, copy_all, dirty_leaves, open_export
from fleece.engine.decide import ModeWish
from fleece.engine.export import dirty_extents, write_delta
from fleece.engine.keep import Duration, KeepRules
from fleece.engine.merge import MergedDisk, MergeResult, merge
from fleece.engine.prune import PlannedPoint, PruneResult, prune, set_pin
from fleece.engine.restore import RestoreResult, restore
from fleece.engine.root import disk_root
from fleece.engine.verify import Comparison, VerifyResult, compare_image, verify_store
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
)
from fleece.extents import Extents
from fleece.source.base import Export
from fleece.source.qemu.inventory import Bitmap, GuestDisk, Inventory
from fleece.source.qemu.source import QemuSource, Wanted
from fleece.store.catalogue import Catalogue, Entry, StoredPoint, read_entry
from fleece.store.folder import FolderStore
from fleece.tree import BlankDisk, Geometry

__all__ = (
    "BackupOptions",
    "BackupResult",
    "Bitmap",
    "BlankDisk",
    "CancelToken",
    "Catalogue",
    "Chain",
    "ChainMap",
    "Comparison",
    "CopyJob",
    "DeltaError",
    "DeltaReader",
    "DeltaWriter",
    "DiskResult",
    "Duration",
    "Entry",
    "ExitCode",
    "Export",
    "Extents",
    "FleeceError",
    "FolderStore",
    "Geometry",
    "GuestDisk",
    "Header",
    "ImageFormat",
    "Interrupted",
    "Inventory",
    "KeepRules",
    "MergeResult",
    "MergedDisk",
    "Mode",
    "ModeWish",
    "ParentRef",
    "PlannedPoint",
    "PointError",
    "PointRef",
    "PruneResult",
    "QemuSource",
    "RestoreResult",
    "SourceError",
    "StoreError",
    "StoredPoint",
    "Summary",
    "TargetError",
    "UsageError",
    "VerifyError",
    "VerifyResult",
    "Wanted",
    "backup",
    "compare_image",
    "copy_all",
    "dirty_extents",
    "dirty_leaves",
    "disk_root",
    "merge",
    "open_export",
    "open_image",
    "prune",
    "read_entry",
    "restore",
    "set_pin",
    "verify_store",
    "write_delta",
)
