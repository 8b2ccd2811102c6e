"""Where a bucket's requests go: the server, the way there, and what a key's path is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from fleece.errors import UsageError

_PORTS = {"http": 80, "https": 443}
_PLAIN = "-_.~"
"""What is not encoded in a path or a query, beside letters and digits (SigV4's rule)."""


@dataclass(frozen=True)
class Server:
    """Something that speaks HTTP.

    Attributes:
        secure: it is spoken in TLS.
        host: its name or address; an IPv6 one without brackets.
        port: its.
    """

    secure: bool
    host: str
    port: int

    @property
    def name(self) -> str:
        """As a URL and the header Host have it: without a port that goes without saying."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def scheme(self) -> str:
        """Of its URLs."""
        return "https" if self.secure else "http"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}"


@dataclass(frozen=True)
class Endpoint:
    """Where the requests about one bucket go.

    Attributes:
        server: that takes them.
        base: of each path: empty, or `/BUCKET`.
    """

    server: Server
    base: str

    def path(self, key: str | None, query: Mapping[str, str]) -> str:
        """The path and query of a request, encoded.

        Args:
            key: of an object; None: it is about the bucket.
            query: names and values.
        """
        path = self.base + ("/" if key is None and not self.base else "")
        if key is not None:
            path += "/" + quote(key, safe=_PLAIN + "/")
        if not query:
            return path
        pairs = (f"{quote(a, safe=_PLAIN)}={quote(b, safe=_PLAIN)}" for a, b in query.items())
        return f"{path}?{'&'.join(pairs)}"


def server_of(url: str, what: str) -> tuple[Server, str]:
    """Read a server's URL.

    Args:
        url: `http://` or `https://`, a host, perhaps a port and a path.
        what: the setting that it comes from, for messages, which do not repeat it: it may hold a
            password.

    Returns:
        The server, and the path without a slash at its end.

    Raises:
        UsageError: it is no such URL.
    """
    hint = "write https://HOST or http://HOST:PORT"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"is no URL ({error})", where=what, hint=hint) from error
    if parts.scheme not in _PORTS or not host or not url.isprintable() or " " in url:
        raise UsageError("is no URL of a server", where=what, hint=hint)
    if parts.query or parts.fragment:
        raise UsageError("has more than a server and a path", where=what, hint=hint)
    secure = parts.scheme == "https"
    return Server(secure, host, port or _PORTS[parts.scheme]), parts.path.rstrip("/")


def endpoint_of(bucket: str, server: Server, path: str, *, in_host: bool) -> Endpoint:
    """Where requests about a bucket go.

    Args:
        bucket: its name.
        server: the service's.
        path: that all paths there begin with.
        in_host: the bucket's name is a part of the host's name, not of the path.
    """
    if in_host:
        return Endpoint(Server(server.secure, f"{bucket}.{server.host}", server.port), path)
    return Endpoint(server, f"{path}/{bucket}")
