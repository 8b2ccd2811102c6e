"""What systemd's journal is sent: by its own protocol, and only if it is there."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from fleece.cli.journal import Journal, Priority


def _read(data: bytes) -> dict[str, str]:
    """The fields of an entry, as the protocol's page says."""
    found = {}
    while data:
        name, _, data = data.partition(b"\n")
        (length,) = struct.unpack_from("<Q", data)
        found[name.decode()], data = data[8 : 8 + length].decode(), data[9 + length :]
    return found


def test_an_entry_has_its_fields_whatever_is_in_them(tmp_path: Path) -> None:
    place = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as here:
        here.bind(place)
        journal = Journal(place)
        assert journal.tell("it is\nüber", Priority.FAILED, FLEECE_GUEST="a=b", FLEECE_POINT=None)
        assert _read(here.recv(1 << 20)) == {
            "MESSAGE": "it is\nüber",
            "PRIORITY": "3",
            "SYSLOG_IDENTIFIER": "fleece",
            "FLEECE_GUEST": "a=b",
        }
        assert journal.tell("x" * (1 << 20), Priority.TOLD)
        assert _read(here.recv(1 << 20))["MESSAGE"] == "x" * (16 << 10)
    assert not journal.tell("nobody hears it", Priority.TOLD)


def test_only_a_stream_that_goes_there_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stream").open("w") as stream:
        assert Journal.behind(stream) is None
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert Journal.behind(stream) is not None
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + 1}")
        assert Journal.behind(stream) is None
