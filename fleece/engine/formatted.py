"""A qcow2 image made anew right on a block device, as it lies on logical volumes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import numpy as np

from fleece import events
from fleece.delta.chain import Chain
from fleece.disk.base import WritableDisk
from fleece.disk.image import ImageFormat, open_for_writing
from fleece.disk.use import Hold, claimed
from fleece.engine.target import create_qcow2, qemu_img
from fleece.errors import TargetError
from fleece.extents import Extents

_CLUSTER = 65536
"""Bytes of a cluster, by default, of `qemu-img create` and `qemu-img measure`."""


@contextlib.contextmanager
def open_formatted(device: str, chain: Chain, listener: events.Listener) -> Iterator[WritableDisk]:
    """Make a blank qcow2 image on a device, and open it for what a chain holds.

    Args:
        device: its path. What is on it is lost.
        chain: that will be written.
        listener: hears `Warned` if the device has no room for all that a guest may write later.

    Raises:
        TargetError: the device is in use, too small, or cannot be written. Nothing is written if
            that can be told before.
    """
    size = chain.geometry.size
    with claimed(device, TargetError, Hold.NOTHING) as claim:
        _check_room(device, os.lseek(claim.descriptor, 0, os.SEEK_END), chain, listener)
        create_qcow2(device, size, where=device)
        with open_for_writing(device, ImageFormat.QCOW2, TargetError) as image:
            yield image


def _check_room(device: str, room: int, chain: Chain, listener: events.Listener) -> None:
    """Refuse a device that cannot hold what will be written, whatever order it is written in."""
    size = chain.geometry.size
    words = ["measure", "-O", ImageFormat.QCOW2.value, "--output=json", "--size", str(size)]
    full = int(json.loads(qemu_img(*words, where=device))["fully-allocated"])
    needed = full - _clusters(Extents.whole(size))
    needed += sum(_clusters(picture.extents(zero=False)) for picture in chain.maps())
    if room < needed:
        raise TargetError(
            f"has {room} bytes, and as qcow2 the disk needs up to {needed}",
            where=device,
            hint="name a larger device, or --format raw",
        )
    if room < full:
        text = f"{device} has {room} bytes, and the image can grow to {full} as its guest writes"
        listener(events.Warned(f"{text}: enlarge the device before it is full"))


def _clusters(parts: Extents) -> int:
    """Bytes of the clusters that parts of a disk touch."""
    ends = -(-parts.end // _CLUSTER) * _CLUSTER
    return Extents.normal(parts.start // _CLUSTER * _CLUSTER, ends.astype(np.int64)).total
