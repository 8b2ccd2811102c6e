"""A new qcow2 image right on a block device, as it lies on logical volumes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from fleece import events
from fleece.disk.base import WritableDisk
from fleece.disk.qcow2 import Layout
from fleece.disk.use import Hold, claimed
from fleece.engine.work.new_file import qcow2_image, qcow2_layout
from fleece.errors import TargetError
from fleece.extents import Extents


@contextlib.contextmanager
def open_formatted(
    device: str, size: int, held: Extents, listener: events.Listener
) -> Iterator[WritableDisk]:
    """Make a blank qcow2 image on a device, and open it.

    Args:
        device: its path. What is on it is lost.
        size: of the disk, in bytes.
        held: all that will be written, in bytes of disk.
        listener: hears `Warned` if the device has no room for all that a guest may write later.

    Raises:
        TargetError: the device is in use, too small, or cannot be written. Nothing is written if
            that can be told before.
    """
    layout = qcow2_layout(size, held, where=device)
    with claimed(device, TargetError, Hold.OVERWRITTEN) as claim:
        _check_room(device, os.lseek(claim.descriptor, 0, os.SEEK_END), layout, listener)
        with contextlib.closing(qcow2_image(device, layout, where=device)) as image:
            yield image


def _check_room(device: str, room: int, layout: Layout, listener: events.Listener) -> None:
    if room < layout.length:
        raise TargetError(
            f"has {room} bytes, and as qcow2 the disk needs {layout.length}",
            where=device,
            hint="name a larger device, or --format raw",
        )
    full = Layout.of(layout.size, Extents.whole(layout.size)).length
    if room < full:
        text = f"{device} has {room} bytes, and the image can grow to {full} as its guest writes"
        listener(events.Warned(f"{text}: enlarge the device before it is full"))
