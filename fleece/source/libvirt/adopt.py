"""Resume a point whose engine died: only if all of it is in libvirt as it was begun.

Any doubt is a `PointError`: the point is then taken down like any other leftover, and a new one
costs no more than reading again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleece.errors import PointError
from fleece.nbd.connection import connected
from fleece.source.base import Export
from fleece.source.libvirt.domain import Busy, Domain, State
from fleece.source.libvirt.freeze import Freezer
from fleece.source.libvirt.identity import holder_of
from fleece.source.libvirt.point import LibvirtPoint, PointPlan, taken_down
from fleece.source.libvirt.takedown import folder_of
from fleece.source.workfolder import FROZEN, WorkFolder, held_again


@contextmanager
def adopted_point(
    plan: PointPlan, limit: int | None, freezer: Freezer | None = None
) -> Iterator[LibvirtPoint]:
    """Take an interrupted backup's point over; it is taken down when the context ends.

    Args:
        plan: as it was made for the point.
        limit: bytes that the scratch files may take together; None: what their file system has.
        freezer: that is asked for, as nobody knows whether the guest was frozen for this point.

    Raises:
        PointError: on entry: something of it is not as it was made. It is left as it is.
    """
    with _held_again(plan) as work:
        if plan.domain.state() is State.IO_ERROR:
            raise PointError("the guest was stopped by an I/O error")
        if plan.checkpoint_xml() is not None:
            _check_checkpoint(plan)
        point = LibvirtPoint(plan, work, limit)
        if freezer is not None:
            point.doubt_freeze()
        point.show_exports()
        point.check()
        point.look()
        for export in point.exports:
            _check_export(export, plan.domain)
        with taken_down(point):
            yield point


@contextmanager
def _held_again(plan: PointPlan) -> Iterator[WorkFolder]:
    """Hold the lock of an interrupted backup's work folder, which must be the point's."""
    place = _place(plan)
    with held_again(place) as work:
        if work.foreign or work.folder.has(FROZEN) or work.holder() != holder_of(plan.domain):
            raise PointError("its work folder is not as it was made", where=place)
        yield work


def _place(plan: PointPlan) -> Path:
    found = plan.domain.settled()
    folder = None if found is None or isinstance(found, Busy) else folder_of(found)
    if folder is None or folder.name != str(plan.folder):
        raise PointError("libvirt has no job of it")
    return folder


def _check_checkpoint(plan: PointPlan) -> None:
    """Raise `PointError` unless the point's checkpoint records on each disk that can have it."""
    made = plan.domain.checkpoint(str(plan.checkpoint))
    wanted = {p.disk.name: p.disk.images for p in plan.disks if p.disk.keeps_bitmaps}
    if made is None or made.images != wanted or made.sizes.keys() != wanted.keys():
        raise PointError("its checkpoint is not as it was made")


def _check_export(export: Export, domain: Domain) -> None:
    """Raise `SourceError` or `PointError` unless an export can be read as it must be."""
    contexts = () if export.dirty_context is None else (export.dirty_context,)
    with connected(export.uri, contexts, domain.cancel) as connection:
        if connection.size != export.size or connection.contexts != contexts:
            raise PointError("its exports are not as they were made", where=export.uri)
