"""NBD URIs (the NBD project's doc/uri.md), as far as fleece makes and reads them."""

from __future__ import annotations

from urllib.parse import parse_qs, quote, unquote, urlsplit

SCHEMES = ("nbd://", "nbds://", "nbd+unix://", "nbds+unix://")


def is_uri(text: str) -> bool:
    """Whether a text names an NBD export and not a file."""
    return text.startswith(SCHEMES)


def unix_uri(socket: str, export: str = "") -> str:
    """The URI of an export on a unix socket."""
    return f"nbd+unix:///{quote(export, safe='')}?socket={quote(socket)}"


def socket_of(uri: str) -> str | None:
    """The path of the unix socket that a URI names; None: it names none, or is none."""
    try:
        found = parse_qs(urlsplit(uri).query).get("socket")
    except ValueError:
        return None
    return found[0] if found else None


def export_of(uri: str) -> str:
    """The name of the export that a URI means; empty: the server's default."""
    return unquote(urlsplit(uri).path.removeprefix("/"))
