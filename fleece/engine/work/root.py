"""Compute the root of an image, without any store."""

from __future__ import annotations

from fleece import events
from fleece.cancel import CancelToken
from fleece.disk.base import ReadableDisk
from fleece.engine.work.pool import Counter
from fleece.engine.work.scan import regions, root_of
from fleece.tree import Geometry


def disk_root(
    disk: ReadableDisk,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
    geometry: Geometry | None = None,
) -> bytes:
    """The root of an open disk.

    Args:
        disk: to read, whole.
        listener: hears `Progress`.
        cancel: stops it.
        geometry: the tree's shape; None: the default shape for the disk's size.
    """
    shape = geometry or Geometry(disk.size)
    counter = Counter(listener, events.Phase.ROOT, disk.where, disk.size)
    return root_of(regions(disk, shape, counter, cancel or CancelToken()), shape)
