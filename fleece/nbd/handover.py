"""Pass what a server was sent on to another process: requests by sockets, data by shared memory.

One end is in nbdkit's own Python, whatever version that is, so the standard library must do. Memory
is bounded: a slot for each channel, and a channel has one request at a time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fleece.errors import PointError

SLOT = 1024 * 1024
"""Bytes that one request can pass on."""

_REQUEST = struct.Struct("<?IQQ")
_GOOD, _BAD = b"\1", b"\0"


@dataclass(frozen=True)
class Request:
    """Something that was written to a disk.

    Attributes:
        zero: it was zeros; else the bytes are in the channel's slot.
        disk: number of the disk.
        offset, length: in bytes of disk; at most `SLOT` unless it was zeros.
    """

    zero: bool
    disk: int
    offset: int
    length: int


class Channel:
    """The receiver's end of one channel, for one thread.

    Args:
        end: a connected socket.
        slot: its part of the shared memory.
    """

    def __init__(self, end: socket.socket, slot: memoryview) -> None:
        self._end = end
        self._slot = slot

    def requests(self) -> Iterator[Request]:
        """Requests as they come, until the other end is gone. Each must get its `answer`.

        Raises:
            PointError: the system does not give them.
        """
        try:
            while len(raw := _receive(self._end, _REQUEST.size)) == _REQUEST.size:
                yield Request(*_REQUEST.unpack(raw))
        except OSError as error:
            raise PointError(f"what is pushed cannot be taken ({error.strerror})") from error
        finally:
            self.shut()  # nobody answers here any more, and who sends must not wait for it

    def data(self, request: Request) -> memoryview:
        """The bytes of a request, valid until its answer."""
        return self._slot[: request.length]

    def answer(self, good: bool) -> None:
        """Tell the sender that the request is done, or that it failed."""
        with contextlib.suppress(OSError):  # it is gone, and the next read says so
            self._end.sendall(_GOOD if good else _BAD)

    def shut(self) -> None:
        """Wake who waits here, at either end: nothing comes any more. Safe to repeat."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)


class HandOver:
    """The receiver's end of all channels, and what the sender inherits.

    Args:
        count: of channels.

    Attributes:
        channels: the receiver's ends.
        memory: descriptor of the shared memory, to be inherited by the sender.
        far_ends: the sender's ends, to be inherited too.
    """

    def __init__(self, count: int) -> None:
        self.memory = os.memfd_create("fleece-push")
        os.ftruncate(self.memory, count * SLOT)
        self._mapped = memoryview(mmap.mmap(self.memory, count * SLOT))
        pairs = [socket.socketpair() for _ in range(count)]
        self._near = [near for near, _ in pairs]
        self._far = [far for _, far in pairs]
        self.far_ends = [far.fileno() for far in self._far]
        self.channels = [
            Channel(near, self._mapped[number * SLOT : (number + 1) * SLOT])
            for number, near in enumerate(self._near)
        ]

    def inherited(self) -> None:
        """The sender has what it inherits: close our copies, so that its end is noticed."""
        os.close(self.memory)
        for far in self._far:
            far.close()

    def shut(self) -> None:
        """Shut all channels."""
        for channel in self.channels:
            channel.shut()

    def close(self) -> None:
        """Close the sockets. No thread may use a channel any more."""
        for near in self._near:
            near.close()


class Sender:
    """The sender's end: any number of threads, as many at a time as there are channels.

    Args:
        memory: the inherited descriptor of the shared memory.
        far_ends: the inherited descriptors of the sockets.
    """

    def __init__(self, memory: int, far_ends: Sequence[int]) -> None:
        self._mapped = memoryview(mmap.mmap(memory, len(far_ends) * SLOT))
        self._free: queue.SimpleQueue[tuple[socket.socket, memoryview]] = queue.SimpleQueue()
        for number, descriptor in enumerate(far_ends):
            end = socket.socket(fileno=descriptor)
            self._free.put((end, self._mapped[number * SLOT : (number + 1) * SLOT]))

    def data(self, disk: int, buffer: memoryview, offset: int) -> None:
        """Pass on bytes that were written; returns when the receiver is done with them.

        Raises:
            OSError: it failed, or it is gone.
        """
        for start in range(0, len(buffer), SLOT):
            part = buffer[start : start + SLOT]
            self._pass_on(Request(False, disk, offset + start, len(part)), part)

    def zero(self, disk: int, offset: int, length: int) -> None:
        """Pass on that zeros were written.

        Raises:
            OSError: it failed, or the receiver is gone.
        """
        self._pass_on(Request(True, disk, offset, length), memoryview(b""))

    def _pass_on(self, request: Request, data: memoryview) -> None:
        end, slot = channel = self._free.get()
        try:
            slot[: len(data)] = data
            end.sendall(_REQUEST.pack(request.zero, request.disk, request.offset, request.length))
            if _receive(end, 1) != _GOOD:
                raise OSError("the receiver failed")
        finally:
            self._free.put(channel)


def _receive(end: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes; fewer: the other end is gone."""
    got = b""
    while len(got) < count:
        try:
            more = end.recv(count - len(got))
        except ConnectionError:
            more = b""
        if not more:
            break
        got += more
    return got
