"""What nbdkit hands on to the engine, and that neither waits for the other in vain."""

from __future__ import annotations

import os
import socket
from contextlib import closing

import pytest

from fleece.errors import PointError
from fleece.nbd.handover import HandOver
from tests.rig.process import LIMIT


def test_a_channel_that_cannot_be_read_keeps_nobody_waiting() -> None:
    """Its end is not the sender's: that one would wait for an answer to its next request."""
    with closing(HandOver(1)) as hand_over:
        (channel,) = hand_over.channels
        with socket.socket(fileno=os.dup(hand_over.far_ends[0])) as sender:
            sender.settimeout(LIMIT)
            hand_over.inherited()
            channel._end.settimeout(0)  # so that the read fails
            with pytest.raises(PointError, match="cannot be taken"):
                next(channel.requests())
            assert sender.recv(1) == b""


def test_a_channel_whose_sender_is_gone_ends() -> None:
    with closing(HandOver(1)) as hand_over:
        (channel,) = hand_over.channels
        hand_over.inherited()
        assert [*channel.requests()] == []
