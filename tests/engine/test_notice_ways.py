"""A notice gets out, or it is told why not: whatever the program or the server does."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword

from fleece.cancel import CancelToken
from fleece.errors import Interrupted, NoticeError
from fleece.fleet.notices import errand as errands
from fleece.fleet.notices.errand import Errand, carry
from fleece.fleet.notices.kinds import Form, Kind
from fleece.fleet.notices.letter import Letter, News
from fleece.fleet.notices.settings import Address, Mail, WebHook
from fleece.fleet.notices.trouble import Matter
from fleece.fleet.notices.ways import Way, errand
from tests.engine.scene import wait_until
from tests.rig.certificates import certificates
from tests.rig.s3_script import Hang, Lose, Say, ScriptedS3

_LIMIT = 60.0
_SECRET = "s3cret"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next try comes without a pause."""
    monkeypatch.setattr(errands, "_PAUSES", (0.0, 0.0))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates for localhost."""
    folder = tmp_path_factory.mktemp("notices") / "keys"
    certificates(folder)
    return folder


def _tls(keys: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server-cert.pem", keys / "server-key.pem")
    return context


def _letter(*whats: str) -> Letter:
    now = datetime(2026, 12, 1, tzinfo=UTC)
    matter = Matter("main", "wéb\n1", "backup")
    return Letter("host1", "/etc/f.toml", [News(Kind.FAILURE, matter, what, now) for what in whats])


def _send(way: Way, limit: float = _LIMIT) -> None:
    carry(errand(way, _letter("went <!channel> wrong")), limit, CancelToken())


def _hook(url: str, form: Form = Form.JSON) -> WebHook:
    return WebHook(Address(url, None), form, None)


def _fails(way: Way, *words: str, limit: float = _LIMIT) -> None:
    """Check that it cannot be sent, and that this is told without what is secret."""
    with pytest.raises(NoticeError) as caught:
        _send(way, limit)
    for word in words:
        assert word in str(caught.value)
    assert _SECRET not in str(caught.value)


@pytest.mark.parametrize(("status", "tries"), [(503, 3), (429, 3), (404, 1), (301, 1)])
def test_what_may_pass_is_tried_again(status: int, tries: int) -> None:
    with ScriptedS3(None, lambda asked: Say(status)) as server:
        _fails(_hook(f"http://127.0.0.1:{server.port}/{_SECRET}"), f"HTTP status {status}")
        assert len(server.asked) == tries


def test_a_try_that_succeeds_is_enough() -> None:
    """Who gets a message of Matrix twice knows it by its name."""
    with ScriptedS3(None, lambda asked: Say(200) if asked.number else Lose()) as server:
        _send(_hook(f"http://127.0.0.1:{server.port}/m", Form.MATRIX))
        first, second = server.asked
        assert re.fullmatch("/m/[0-9a-f]{32}", first.path)
        assert first.path == second.path


def test_a_server_that_is_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errands, "_PAUSES", ())
    with ScriptedS3(None, lambda asked: Hang()) as server:
        _fails(_hook(f"http://127.0.0.1:{server.port}/{_SECRET}"), "longer than 3 s", limit=3)


def test_an_answer_without_end_is_left() -> None:
    """It is not read further than its head, and a head not longer than the limit."""
    with _answering([b"HTTP/1.1 200 OK\r\n\r\n"], b"x" * 65536) as port:
        _send(_hook(f"http://127.0.0.1:{port}/"))
    with _answering([b"HTTP/1.1 200 OK\r\n"], b"X: " + b"y" * 40000 + b"\r\n") as port:
        _fails(_hook(f"http://127.0.0.1:{port}/{_SECRET}"), "cannot be reached")


@contextlib.contextmanager
def _answering(head: Sequence[bytes], more: bytes) -> Iterator[int]:
    """A server's port, that answers so, and then more and more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = listener.accept()[0]
                    with client, contextlib.suppress(OSError):
                        client.recv(65536)
                        for part in head:
                            client.sendall(part)
                        while True:
                            client.sendall(more)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_nobody_is_believed_without_a_certificate(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedS3(None, lambda asked: Say(200), _tls(keys)) as server:
        url = f"https://localhost:{server.port}/{_SECRET}"
        _fails(_hook(url), "its certificate is not trusted")
        assert not server.asked
        monkeypatch.setenv("SSL_CERT_FILE", str(keys / "ca-cert.pem"))
        _send(_hook(url))
        (asked,) = server.asked
        assert asked.path == f"/{_SECRET}"


def test_nobody_there_and_no_address() -> None:
    _fails(_hook(f"http://127.0.0.1:1/{_SECRET}"), "cannot be reached (Connection refused)")
    _fails(_hook(f"http://[{_SECRET}/"), "could not be sent")


def test_a_program_and_its_children_end_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it says, and whatever it leaves behind."""
    monkeypatch.setattr(errands, "_PAUSES", ())
    pids = tmp_path / "pids"
    pids.touch()

    def ended() -> bool:
        told = pids.read_text().strip()
        return not told or not Path(f"/proc/{told}/stat").exists()

    script = f"sleep 1000 & echo $! > {pids}; yes 1>&2 & wait"
    with pytest.raises(NoticeError, match=r"longer than 1 s"):
        carry(Errand(["sh", "-c", script]), 1, CancelToken())
    wait_until(ended, "the child's end")
    carry(Errand(["sh", "-c", f"sleep 1000 & echo $! > {pids}"]), _LIMIT, CancelToken())
    wait_until(ended, "the child's end")


def test_a_program_says_why(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    for code, count in ((75, 3), (1, 1)):
        tries.write_text("")
        script = f"echo once >> {tries}; printf 'no\\033 luck\\n' >&2; exit {code}"
        with pytest.raises(NoticeError, match=r"could not be sent: no\\x1b luck"):
            carry(Errand(["sh", "-c", script]), _LIMIT, CancelToken())
        assert tries.read_text().count("once") == count
    with pytest.raises(NoticeError, match="exit code 9"):
        carry(Errand(["sh", "-c", "exit 9"]), _LIMIT, CancelToken())


def test_a_signal_ends_it() -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Interrupted):
        carry(Errand(["sleep", "1000"]), 1000, cancel)


class Post:
    """Keeps the mail that a server takes; refuses what is for `nobody`."""

    def __init__(self) -> None:
        self.came: list[Envelope] = []

    async def handle_RCPT(
        self, server: object, session: object, envelope: Envelope, address: str, _: object
    ) -> str:
        """Take a recipient or not."""
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: object, session: object, envelope: Envelope) -> str:
        """Take a message."""
        self.came.append(envelope)
        return "250 OK"


def _check(envelope: Envelope, to: Sequence[str]) -> None:
    """Check a message."""
    assert envelope.rcpt_tos == [*to]
    assert isinstance(envelope.content, bytes)
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    letter = _letter("went <!channel> wrong")
    assert message["Subject"] == letter.title
    assert "\n" not in letter.title
    assert message["From"] == "fleece@host1.example.org"
    assert message["Auto-Submitted"] == "auto-generated"
    body = message.get_body()
    assert body is not None
    assert body.get_content().splitlines() == letter.text.splitlines()


def _mail(server: str | None, *to: str, password: Path | None = None) -> Mail:
    user = None if password is None else "me"
    file = None if password is None else str(password)
    return Mail(to or ("a@example.org", "b"), "fleece@host1.example.org", server, user, file)


@contextlib.contextmanager
def _mailing(made: Callable[[], SMTP], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A mail server's port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(made, "127.0.0.1", 0, ssl=tls))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def test_mail_by_a_server() -> None:
    post = Post()
    with _mailing(lambda: SMTP(post)) as port:
        _send(_mail(f"smtp://127.0.0.1:{port}"))
        _check(post.came.pop(), ["a@example.org", "b"])
        _fails(
            _mail(f"smtp://127.0.0.1:{port}", "a", "nobody"), "1 of 2 addresses are refused (550)"
        )
        assert post.came.pop().rcpt_tos == ["a"]
        _fails(_mail(f"starttls://127.0.0.1:{port}"), "STARTTLS")
        assert not post.came


def test_mail_by_a_server_that_wants_a_password(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets one when it is known to be the right server, and not before."""
    asked: list[object] = []

    def check(
        server: object, session: object, envelope: object, way: str, data: object
    ) -> AuthResult:
        asked.append(data)
        assert isinstance(data, LoginPassword)
        return AuthResult(success=data.password == _SECRET.encode(), handled=False)

    post, secret = Post(), tmp_path / "password"
    secret.write_text(f"{_SECRET}\n")

    def strict() -> SMTP:
        return SMTP(
            post,
            authenticator=check,
            auth_required=True,
            tls_context=_tls(keys),
            require_starttls=True,
        )

    with _mailing(strict) as port:
        mail = _mail(f"starttls://localhost:{port}", password=secret)
        _fails(mail, "its certificate is not trusted")
        assert not asked
        monkeypatch.setenv("SSL_CERT_FILE", str(keys / "ca-cert.pem"))
        _send(mail)
        _check(post.came.pop(), ["a@example.org", "b"])
        secret.write_text(f"{_SECRET}-no\n")
        _fails(mail, "the server answers 535")
    with _mailing(lambda: SMTP(post), _tls(keys)) as port:
        _send(_mail(f"smtps://localhost:{port}"))
        _check(post.came.pop(), ["a@example.org", "b"])


@pytest.mark.skipif(shutil.which("msmtp") is None, reason="sendmail is not installed")
def test_mail_by_sendmail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    post = Post()
    with _mailing(lambda: SMTP(post)) as port:
        (tmp_path / ".msmtprc").write_text(
            f"account default\nhost 127.0.0.1\nport {port}\nfrom fleece@host1.example.org\n"
        )
        monkeypatch.setenv("HOME", str(tmp_path))
        _send(_mail(None))
        _check(post.came.pop(), ["a@example.org", "b"])
        _fails(_mail(None, "nobody"), "550")
