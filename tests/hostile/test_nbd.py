"""NBD servers that hang, lie or leave: errors of the source, in bounded time."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

import fleece
from fleece.cancel import CancelToken
from fleece.nbd.connection import Connection
from fleece.nbd.uri import unix_uri
from tests.engine.history import Guest
from tests.engine.scene import INTACT, MIB, Running, wait_until
from tests.hostile.nbd_liar import KINDS, Fault, Phase, served

_SIZE = 3 * MIB
_CONTENT = os.urandom(MIB) + bytes(MIB) + os.urandom(MIB)
_READING = (Phase.GREETING, Phase.STRUCTURED, Phase.CONTEXT, Phase.GO, Phase.READ, Phase.STATUS)
_WRITING = (Phase.WRITE, Phase.FLUSH, Phase.ZEROES)
_HARMLESS = {
    # What the protocol allows, or what does not matter to who reads.
    "structured-error",
    "go-tiny-blocks",
    "context-error",
    "context-wrong-context",
    "status-error",
    "status-beyond-end",
    "status-huge-extents",
    "status-odd-length",
    "status-twice",
    "status-many",
}


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """A store with one point of the disk that the servers here have."""
    made = Guest(tmp_path_factory.mktemp("liar") / "store")
    made.holding({"vda": _CONTENT})
    return made


def _root(verb: str, guest: Guest) -> str:
    """The true root, as a verb tells it."""
    if verb == "verify":
        return fleece.open_store(guest.store).catalogue().find("latest").disk("vda").root
    image = guest.store.with_name("image")
    image.write_bytes(_CONTENT)
    with fleece.open_image(str(image), "raw") as disk:
        return fleece.disk_root(disk).hex()


def _faults(phases: tuple[Phase, ...], *, hang: bool) -> list[Fault]:
    return [
        Fault(phase, kind) for phase in phases for kind in KINDS[phase] if (kind == "hang") is hang
    ]


def _words(verb: str, guest: Guest, uri: str) -> tuple[object, ...]:
    return {
        "root": ("root", uri, "--json"),
        "verify": ("verify", guest.store, "latest", "--against", uri, "--json"),
        "restore": ("restore", guest.store, "latest", "vda", uri, "--force", "--json"),
    }[verb]


def _ended(running: Running, number: signal.Signals) -> None:
    running.signal(number)
    running.signal(number)
    running.wait().failed(130, "interrupted")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("fault", _faults(_READING, hang=True), ids=str)
@pytest.mark.parametrize("verb", ["root", "verify"])
def test_a_signal_ends_every_wait_for_a_server_that_is_read(
    verb: str, fault: Fault, number: signal.Signals, guest: Guest, tmp_path: Path
) -> None:
    with served(tmp_path / "s", _CONTENT, fault) as liar:
        running = INTACT.command(*_words(verb, guest, liar.uri))
        wait_until(liar.reached.is_set, "the server to hang")
        _ended(running, number)


@pytest.mark.parametrize("fault", _faults(_WRITING, hang=True), ids=str)
def test_a_signal_ends_every_wait_for_a_server_that_is_written(
    fault: Fault, guest: Guest, tmp_path: Path
) -> None:
    with served(tmp_path / "s", os.urandom(_SIZE), fault) as liar:
        running = INTACT.command(*_words("restore", guest, liar.uri))
        wait_until(liar.reached.is_set, "the server to hang")
        _ended(running, signal.SIGTERM)


def test_a_server_that_does_not_say_goodbye_is_left(guest: Guest, tmp_path: Path) -> None:
    with served(tmp_path / "s", _CONTENT, Fault(Phase.LEAVE, "hang")) as liar:
        INTACT.run(*_words("verify", guest, liar.uri)).succeeded()
        assert liar.reached.is_set()


@pytest.mark.parametrize("fault", _faults(_READING, hang=False), ids=str)
@pytest.mark.parametrize("verb", ["root", "verify"])
def test_what_a_server_says_wrong_is_an_error_of_the_source(
    verb: str, fault: Fault, guest: Guest, tmp_path: Path
) -> None:
    with served(tmp_path / "s", _CONTENT, fault) as liar:
        ran = INTACT.run(*_words(verb, guest, liar.uri))
        assert liar.reached.is_set()
    if ran.code == 0:
        assert ran.result["root"] == _root(verb, guest)
        assert str(fault) in _HARMLESS
    else:
        ran.failed(3, str(tmp_path / "s"))


@pytest.mark.parametrize("fault", _faults(_WRITING, hang=False), ids=str)
def test_what_a_written_server_says_wrong_is_an_error_of_the_target(
    fault: Fault, guest: Guest, tmp_path: Path
) -> None:
    with served(tmp_path / "s", os.urandom(_SIZE), fault) as liar:
        INTACT.run(*_words("restore", guest, liar.uri)).failed(7, str(tmp_path / "s"))
        assert liar.reached.is_set()


def test_the_server_itself_is_right(guest: Guest, tmp_path: Path) -> None:
    """Without a fault all goes well, so each of them is what made a run fail."""
    with served(tmp_path / "s", _CONTENT) as liar:
        INTACT.run(*_words("verify", guest, liar.uri)).succeeded()
        found = INTACT.run(*_words("root", guest, liar.uri)).result["root"]
        assert found == _root("root", guest)
    with served(tmp_path / "s", os.urandom(_SIZE)) as liar:
        INTACT.run(*_words("restore", guest, liar.uri)).succeeded()
        assert bytes(liar.content) == _CONTENT


def test_who_is_interrupted_while_a_server_is_silent_leaves_it_at_once(tmp_path: Path) -> None:
    """Whatever becomes of the error: a QEMU that is to end its server waits for its clients."""
    place = tmp_path / "nbd.sock"
    cancel = CancelToken()
    cancel.cancel()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        listener.settimeout(60)
        with pytest.raises(fleece.Interrupted) as kept:
            Connection(unix_uri(str(place)), cancel=cancel)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(60)
            assert accepted.recv(1) == b""
    assert kept.value is not None
