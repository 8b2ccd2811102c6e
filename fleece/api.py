"""The public API, all of it; `fleece` itself shows it.

A name is loaded from its home when it is first used: a backup needs a quarter of the modules, and
loading the others would take it as long as talking to QEMU does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleece.cancel import CancelToken
    from fleece.compare import TreeComparison
    from fleece.delta.chain import Chain, ChainMap
    from fleece.delta.header import Header, Mode, ParentRef, PointRef
    from fleece.delta.reader import DeltaReader
    from fleece.delta.writer import DeltaWriter, Summary
    from fleece.disk.chain import ChainDisk
    from fleece.disk.image import ImageFormat, open_image
    from fleece.engine.audit import AuditedDisk, AuditResult, audit
    from fleece.engine.backing import restore_as_chain
    from fleece.engine.backup import backup
    from fleece.engine.boot import BootMachine, BootResult, BootWish, boot_test
    from fleece.engine.copy import CopyJob, copy_all, dirty_leaves, open_export
    from fleece.engine.decide import ModeWish
    from fleece.engine.diff import compare_points
    from fleece.engine.export import dirty_extents, write_delta
    from fleece.engine.intake import ImportResult, import_delta
    from fleece.engine.keep import Duration, KeepRules
    from fleece.engine.merge import MergedDisk, MergeResult, merge
    from fleece.engine.outcome import BackupOptions, BackupResult, DiskResult
    from fleece.engine.partial import PartialResult, restore_partial
    from fleece.engine.picture import MappedExtent, Picture, mapped_extents, picture_of
    from fleece.engine.pour import restore_stream
    from fleece.engine.prune import PlannedPoint, PruneResult, prune, set_pin
    from fleece.engine.restore import RestoreResult, restore
    from fleece.engine.root import disk_root
    from fleece.engine.salvage import Loss, LostExtent, SalvagedFile, describe, salvage
    from fleece.engine.scrub import ScrubResult, ScrubRules, scrub
    from fleece.engine.serve import ServedDisk, Serving, serve
    from fleece.engine.status import GROWTH_DAYS, GuestStatus, StoreStatus, status
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
        WrongKey,
    )
    from fleece.extents import Extents
    from fleece.hashing import BLAKE3, XXH3_128, HashAlgorithm
    from fleece.keys import Secret
    from fleece.source.base import Export
    from fleece.source.qemu.agent import GuestAgent
    from fleece.source.qemu.inventory import Bitmap, GuestDisk, Inventory
    from fleece.source.qemu.source import QemuSource, Wanted
    from fleece.store.catalogue import Catalogue, Entry, StoredPoint, read_entry
    from fleece.store.folder import FolderStore
    from fleece.store.marker import HashChoice, StoreWishes
    from fleece.tree import BlankDisk, Geometry

_HOMES = {
    "fleece.cancel": "CancelToken",
    "fleece.compare": "TreeComparison",
    "fleece.delta.chain": "Chain ChainMap",
    "fleece.delta.header": "Header Mode ParentRef PointRef",
    "fleece.delta.reader": "DeltaReader",
    "fleece.delta.writer": "DeltaWriter Summary",
    "fleece.disk.chain": "ChainDisk",
    "fleece.disk.image": "ImageFormat open_image",
    "fleece.engine.audit": "AuditedDisk AuditResult audit",
    "fleece.engine.backing": "restore_as_chain",
    "fleece.engine.backup": "backup",
    "fleece.engine.boot": "BootMachine BootResult BootWish boot_test",
    "fleece.engine.copy": "CopyJob copy_all dirty_leaves open_export",
    "fleece.engine.decide": "ModeWish",
    "fleece.engine.diff": "compare_points",
    "fleece.engine.export": "dirty_extents write_delta",
    "fleece.engine.intake": "ImportResult import_delta",
    "fleece.engine.keep": "Duration KeepRules",
    "fleece.engine.merge": "MergedDisk MergeResult merge",
    "fleece.engine.outcome": "BackupOptions BackupResult DiskResult",
    "fleece.engine.partial": "PartialResult restore_partial",
    "fleece.engine.picture": "MappedExtent Picture mapped_extents picture_of",
    "fleece.engine.pour": "restore_stream",
    "fleece.engine.prune": "PlannedPoint PruneResult prune set_pin",
    "fleece.engine.restore": "RestoreResult restore",
    "fleece.engine.root": "disk_root",
    "fleece.engine.salvage": "Loss LostExtent SalvagedFile describe salvage",
    "fleece.engine.scrub": "ScrubResult ScrubRules scrub",
    "fleece.engine.serve": "ServedDisk Serving serve",
    "fleece.engine.status": "GROWTH_DAYS GuestStatus StoreStatus status",
    "fleece.engine.verify": "Comparison VerifyResult compare_image verify_store",
    "fleece.errors": "DeltaError ExitCode FleeceError Interrupted PointError SourceError "
    "StoreError TargetError UsageError VerifyError WrongKey",
    "fleece.extents": "Extents",
    "fleece.hashing": "BLAKE3 XXH3_128 HashAlgorithm",
    "fleece.keys": "Secret",
    "fleece.source.base": "Export",
    "fleece.source.qemu.agent": "GuestAgent",
    "fleece.source.qemu.inventory": "Bitmap GuestDisk Inventory",
    "fleece.source.qemu.source": "QemuSource Wanted",
    "fleece.store.catalogue": "Catalogue Entry StoredPoint read_entry",
    "fleece.store.folder": "FolderStore",
    "fleece.store.marker": "HashChoice StoreWishes",
    "fleece.tree": "BlankDisk Geometry",
}
"""The public names by their module, as they are imported above for a type checker."""

_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Load a public name."""
    if name not in _HOME:
        raise AttributeError(f"module 'fleece.api' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = found
    return found


__all__ = (
    "BLAKE3",
    "GROWTH_DAYS",
    "XXH3_128",
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
    "GuestAgent",
    "GuestDisk",
    "GuestStatus",
    "HashAlgorithm",
    "HashChoice",
    "Header",
    "ImageFormat",
    "ImportResult",
    "Interrupted",
    "Inventory",
    "KeepRules",
    "Loss",
    "LostExtent",
    "MappedExtent",
    "MergeResult",
    "MergedDisk",
    "Mode",
    "ModeWish",
    "ParentRef",
    "PartialResult",
    "Picture",
    "PlannedPoint",
    "PointError",
    "PointRef",
    "PruneResult",
    "QemuSource",
    "RestoreResult",
    "SalvagedFile",
    "ScrubResult",
    "ScrubRules",
    "Secret",
    "ServedDisk",
    "Serving",
    "SourceError",
    "StoreError",
    "StoreStatus",
    "StoreWishes",
    "StoredPoint",
    "Summary",
    "TargetError",
    "TreeComparison",
    "UsageError",
    "VerifyError",
    "VerifyResult",
    "Wanted",
    "WrongKey",
    "audit",
    "backup",
    "boot_test",
    "compare_image",
    "compare_points",
    "copy_all",
    "describe",
    "dirty_extents",
    "dirty_leaves",
    "disk_root",
    "import_delta",
    "mapped_extents",
    "merge",
    "open_export",
    "open_image",
    "picture_of",
    "prune",
    "read_entry",
    "restore",
    "restore_as_chain",
    "restore_partial",
    "restore_stream",
    "salvage",
    "scrub",
    "serve",
    "set_pin",
    "status",
    "verify_store",
    "write_delta",
)
