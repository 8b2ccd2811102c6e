"""The script that nbdkit's Python plugin runs for a sink: it hands all that is written on.

The interpreter is the one that nbdkit embeds. It reads from standard input what `fleece.nbd.sink`
tells it. It ends at once when the process that started it does, whoever is connected.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

import nbdkit

if TYPE_CHECKING:
    from fleece.nbd.handover import Sender

API_VERSION = 2


class _State:
    sender: Sender
    sizes: list[int]


def config_complete() -> None:
    """Take over the inherited ends."""
    said = json.load(sys.stdin)
    sys.path.insert(0, said["path"])
    from fleece.nbd.handover import Sender

    _State.sender = Sender(said["memory"], said["far_ends"])
    _State.sizes = said["sizes"]
    life = socket.socket(fileno=said["life"])
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()


def _end_with(life: socket.socket) -> None:
    """End when the other end of a socket is closed, whatever nbdkit waits for."""
    life.recv(1)
    os._exit(1)


def thread_model() -> int:
    """Any number of requests at once."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def open(readonly: bool) -> int:
    """The number of a disk, which is the export's name."""
    number = int(nbdkit.export_name() or "0")
    if not 0 <= number < len(_State.sizes):
        nbdkit.set_error(errno.ENOENT)
        raise ValueError(number)
    return number


def get_size(disk: int) -> int:
    """In bytes."""
    return _State.sizes[disk]


def block_size(disk: int) -> tuple[int, int, int]:
    """Least, preferred (a leaf) and largest request."""
    return 1, 64 * 1024, 32 * 1024 * 1024


def pread(disk: int, buffer: memoryview, offset: int, flags: int) -> None:
    """A sink cannot be read."""
    nbdkit.set_error(errno.EOPNOTSUPP)
    raise OSError("this is a sink")


def pwrite(disk: int, buffer: memoryview, offset: int, flags: int) -> None:
    """Hand data on."""
    try:
        _State.sender.data(disk, buffer, offset)
    except OSError:
        nbdkit.set_error(errno.EIO)
        raise


def zero(disk: int, count: int, offset: int, flags: int) -> None:
    """Hand zeros on."""
    try:
        _State.sender.zero(disk, offset, count)
    except OSError:
        nbdkit.set_error(errno.EIO)
        raise


def flush(disk: int, flags: int) -> None:
    """What was answered was handed on. The receiver makes it durable when it has all."""
