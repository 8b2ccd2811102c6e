"""A process of its own that carries one letter to a server.

It reads an object from its standard input, and ends: exit code 0 if the letter was taken, 75 if
that may be so later (sysexits.h), else 69. Why, it says on standard error: never with what the
server said or an address, which can be secrets.
"""

from __future__ import annotations

import base64
import http
import json
import os
import resource
import smtplib
import socket
import ssl
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fleece.fleet.notices.errand import LATER

if TYPE_CHECKING:
    import urllib3

_NEVER = 69
_MEMORY = 1 << 30
"""Bytes: no server fills more."""

_SILENCE = 300.0
"""Seconds; whoever started this waits for less."""

_PORTS = {"smtp": 25, "starttls": 587, "smtps": 465}
_MAY_PASS = (408, 425, 429)


class _Failed(Exception):
    """The letter was not taken: why, and whether that may pass."""

    def __init__(self, what: str, *, passes: bool) -> None:
        super().__init__(what)
        self.code = LATER if passes else _NEVER


def main() -> int:
    """Carry the letter; gives the exit code."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    asked = json.load(sys.stdin)
    body = base64.b64decode(asked.pop("body"))
    way = _http if asked.pop("way") == "http" else _smtp
    try:
        way(body, **asked)
    except _Failed as failed:
        os.write(2, str(failed).encode())
        return failed.code
    except ssl.SSLCertVerificationError as error:
        os.write(2, f"its certificate is not trusted ({error.verify_message})".encode())
        return _NEVER
    except Exception as error:  # its text may show an address
        os.write(2, f"it failed ({type(error).__name__})".encode())
        return LATER if isinstance(error, OSError) else _NEVER
    return 0


def _http(body: bytes, method: str, url: str, headers: Mapping[str, str]) -> None:
    try:
        import urllib3
        from urllib3.util import make_headers, parse_url
    except ImportError:
        raise _Failed(
            "the Python package urllib3 is missing; install python3-urllib3, or "
            "'pip install fleece-backup[fleet]'",
            passes=False,
        ) from None
    try:
        parsed = parse_url(url)
        auth = make_headers(basic_auth=parsed.auth) if parsed.auth else {}
        answer = _pool(url).request(
            method,
            url,
            body=body,
            headers={"User-Agent": "fleece", **auth, **headers},
            redirect=False,
            retries=False,
            preload_content=False,
        )
    except urllib3.exceptions.SSLError as error:
        cause = error.args[0] if error.args else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise cause from None
        raise _Failed("TLS failed", passes=True) from None
    except urllib3.exceptions.LocationParseError:
        raise _Failed("the address is none", passes=False) from None
    except urllib3.exceptions.HTTPError as error:
        raise _Failed(_reason(error), passes=True) from None
    status = answer.status
    answer.close()
    if not 200 <= status < 300:
        moved = "; redirects are not followed: write the new address" if 300 <= status < 400 else ""
        raise _Failed(
            f"HTTP status {status} {_phrase(status)}{moved}",
            passes=status >= 500 or status in _MAY_PASS,
        )


def _pool(url: str) -> urllib3.PoolManager:
    """What connects, by the proxy that the environment names."""
    import urllib3

    words = {"ssl_context": ssl.create_default_context(), "timeout": _SILENCE}
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, **words)
    return urllib3.PoolManager(**words)


def _reason(error: Exception) -> str:
    """What the system says, if it does."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return f"the server cannot be reached ({seen.strerror})"
        seen = seen.__cause__ or seen.__context__
    return f"the server cannot be reached ({type(error).__name__})"


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""


def _smtp(
    body: bytes,
    server: str,
    sender: str,
    to: Sequence[str],
    user: str | None,
    password: str | None,
) -> None:
    parts = urllib.parse.urlsplit(server)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    own = socket.gethostname()
    context = ssl.create_default_context()
    refused: Mapping[str, tuple[int, bytes]]
    try:
        client: smtplib.SMTP
        if parts.scheme == "smtps":
            client = smtplib.SMTP_SSL(host, port, own, timeout=_SILENCE, context=context)
        else:
            client = smtplib.SMTP(host, port, own, timeout=_SILENCE)
        with client:
            if parts.scheme == "starttls":
                client.starttls(context=context)
            if user is not None and password is not None:
                client.login(user, password)
            refused = client.sendmail(sender, to, body)
    except smtplib.SMTPRecipientsRefused as error:
        refused = error.recipients
    except smtplib.SMTPNotSupportedError:
        raise _Failed(
            "the server does not do what is asked: STARTTLS, or a login", passes=False
        ) from None
    except smtplib.SMTPResponseException as error:
        later = 400 <= error.smtp_code < 500
        raise _Failed(f"the server answers {error.smtp_code}", passes=later) from None
    except ssl.SSLCertVerificationError:
        raise
    except OSError as error:  # that of smtplib, too
        raise _Failed(_reason(error), passes=True) from None
    if refused:
        codes = sorted({code for code, _ in refused.values()})
        later = len(refused) == len(to) and all(400 <= code < 500 for code in codes)
        raise _Failed(
            f"{len(refused)} of {len(to)} addresses are refused ({', '.join(map(str, codes))})",
            passes=later,
        )


if __name__ == "__main__":
    raise SystemExit(main())
