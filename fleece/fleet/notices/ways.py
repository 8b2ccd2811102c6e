"""How a letter is carried: each way is a program, and what it is given."""

from __future__ import annotations

import base64
import email.message
import email.policy
import email.utils
import getpass
import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import fleece
from fleece.errors import NoticeError
from fleece.fleet.notices.errand import Errand
from fleece.fleet.notices.kinds import Form
from fleece.fleet.notices.letter import Letter
from fleece.fleet.notices.settings import Address, Command, Mail, Ping, WebHook

Way = Command | WebHook | Mail

_SECRET = 4096
"""Bytes of a secret at most."""

_MOST_TEXT = 60_000
"""Bytes of a variable's text: Linux takes 128 KiB."""

_MOST_NTFY = 4000
"""Bytes: ntfy makes an attachment of more."""

_SENDMAIL_PLACES = "/usr/sbin:/usr/lib:/usr/bin"


def errand(way: Way, letter: Letter) -> Errand:
    """What carries a letter.

    Raises:
        NoticeError: a file that is needed cannot be read, or a program is missing.
    """
    match way:
        case Command():
            return _command(way, letter)
        case Mail():
            return _mail(way, letter)
        case WebHook():
            return _post(way, letter)


def ping(way: Ping, sign: str, text: str) -> Errand:
    """What tells a dead man's switch.

    Args:
        way: to it.
        sign: what its address gets at its end.
        text: what is told beside.

    Raises:
        NoticeError: a file that is needed cannot be read.
    """
    url, question, rest = _url(way.address).partition("?")
    plain = {"Content-Type": "text/plain; charset=utf-8"}
    return _http(
        "POST", url.rstrip("/") + sign + question + rest, plain, text.encode()[:_MOST_TEXT]
    )


def _command(way: Command, letter: Letter) -> Errand:
    text = letter.text.encode()[:_MOST_TEXT].decode(errors="ignore")
    more = {"FLEECE_TITLE": letter.title, "FLEECE_TEXT": text}
    return Errand(way.words, letter.to_json(), more)


def _post(way: WebHook, letter: Letter) -> Errand:
    url = _url(way.address)
    headers = {"Content-Type": "application/json"}
    if way.token_file is not None:
        headers["Authorization"] = f"Bearer {_secret(way.token_file)}"
    method, body = "POST", letter.to_json()
    text = f"{letter.title}\n{letter.text}"
    match way.form:
        case Form.SLACK:
            for char, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
                text = text.replace(char, name)
            body = json.dumps({"text": text}).encode()
        case Form.MATRIX:
            # Whoever gets it twice, because an answer was lost, knows it by this name.
            method, url = "PUT", f"{url.rstrip('/')}/{secrets.token_hex(16)}"
            body = json.dumps({"msgtype": "m.text", "body": text}).encode()
        case Form.NTFY:
            headers["Content-Type"] = "text/plain; charset=utf-8"
            headers["Title"] = letter.title.encode("ascii", "replace").decode()
            headers["Priority"] = "high" if letter.urgent else "default"
            body = letter.text.encode()[:_MOST_NTFY]
    return _http(method, url, headers, body)


def _http(method: str, url: str, headers: Mapping[str, str], body: bytes) -> Errand:
    asked = {"method": method, "url": url, "headers": headers}
    return _messenger("http", asked, body)


def _mail(way: Mail, letter: Letter) -> Errand:
    sender = way.sender or f"{getpass.getuser()}@{letter.host}"
    message = _message(way, sender, letter)
    if way.server is not None:
        asked = {"server": way.server, "sender": sender, "to": way.to, "user": way.user}
        password = None if way.password_file is None else _secret(way.password_file)
        return _messenger("smtp", {**asked, "password": password}, message)
    program = shutil.which("sendmail") or shutil.which("sendmail", path=_SENDMAIL_PLACES)
    if program is None:
        raise NoticeError("sendmail is missing", hint="install a mailer, or name a 'server'")
    return Errand([program, "-i", "-f", sender, "--", *way.to], message.replace(b"\r\n", b"\n"))


def _message(way: Mail, sender: str, letter: Letter) -> bytes:
    message = email.message.EmailMessage(email.policy.SMTP)
    message["From"], message["To"] = sender, ", ".join(way.to)
    message["Subject"] = letter.title
    message["Date"] = email.utils.localtime()
    message["Message-ID"] = email.utils.make_msgid(domain=sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(letter.text + "\n", cte="quoted-printable")
    return message.as_bytes()


def _messenger(way: str, asked: Mapping[str, object], body: bytes) -> Errand:
    """The process that talks to servers: it alone can be ended whatever they do."""
    given = {"way": way, **asked, "body": base64.b64encode(body).decode()}
    words = [sys.executable, "-P", "-m", "fleece.fleet.notices.messenger"]
    return Errand(words, json.dumps(given).encode(), {"PYTHONPATH": _packages()})


def _packages() -> str:
    """Where the process finds fleece, however this one found it."""
    own = str(Path(fleece.__file__).parents[1])
    return os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])


def _url(address: Address) -> str:
    url = address.url if address.file is None else _secret(address.file)
    assert url is not None
    if not url.startswith(("https://", "http://")):
        raise NoticeError("begins with neither https:// nor http://", where=address.file)
    return url


def _secret(path: str) -> str:
    """The first line of a file.

    Raises:
        NoticeError: it cannot be read, or is empty.
    """
    try:
        with open(path, "rb") as file:
            line = file.read(_SECRET).split(b"\n")[0].strip().decode()
    except OSError as error:
        raise NoticeError(f"cannot be read ({error.strerror})", where=path) from error
    except UnicodeDecodeError:
        raise NoticeError("is no text", where=path) from None
    if not line:
        raise NoticeError("its first line is empty", where=path)
    return line
