"""The entries of a configuration that say who is told of what, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fleece
from fleece.errors import UsageError
from fleece.fleet.document import Document, Place
from fleece.fleet.notices.kinds import Form, Kind

_WAYS = ("command", "web-hook", "mail", "ping")
_SCHEMES = ("https://", "http://")
_SERVERS = ("smtps://", "starttls://", "smtp://")


@dataclass(frozen=True)
class Address:
    """Where something is on the web: by itself, or as the first line of a file."""

    url: str | None
    file: str | None


@dataclass(frozen=True)
class WebHook:
    """An address that takes notices.

    Attributes:
        address: of it.
        form: what it takes.
        token_file: what holds the token that it wants; None: it wants none.
    """

    address: Address
    form: Form
    token_file: str | None


@dataclass(frozen=True)
class Mail:
    """Who gets mail, and by whom.

    Attributes:
        to: addresses.
        sender: address; None: that of this user on this host.
        server: URL of the server that takes it; None: the host's own sendmail takes it.
        user, password_file: what it wants to know; None: nothing.
    """

    to: tuple[str, ...]
    sender: str | None
    server: str | None
    user: str | None
    password_file: str | None


@dataclass(frozen=True)
class Command:
    """A program of the user's, with its arguments."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Ping:
    """A dead man's switch: it is told of a run's begin and end, and tells when it hears nothing."""

    address: Address


@dataclass(frozen=True)
class Notice:
    """Who is told of what.

    Attributes:
        name: in the file.
        way: how.
        kinds: of what.
        again: what goes on is told again after this time; None: in each run.
        limit: seconds that one try may take.
    """

    name: str
    way: Command | WebHook | Mail | Ping
    kinds: frozenset[Kind]
    again: fleece.Duration | None
    limit: int


def notice(document: Document, name: str, table: Mapping[str, Any]) -> Notice:
    """The entry of a name, if it makes sense.

    Raises:
        UsageError: it does not, with the file and the line.
    """
    at = ("notice", name)
    ways = [key for key in _WAYS if key in table]
    if len(ways) != 1:
        raise UsageError(
            f"a notice has one of: {', '.join(_WAYS)}", where=document.where(*at, *ways[1:2])
        )
    if ways == ["ping"] and (unheard := [key for key in ("on", "again") if key in table]):
        raise UsageError(
            f"'{unheard[0]}' has no effect with 'ping'", where=document.where(*at, unheard[0])
        )
    again = table.get("again")
    return Notice(
        name,
        _way(document, (*at, ways[0]), table[ways[0]]),
        frozenset(map(Kind, table.get("on", Kind))),
        None if again is None else fleece.Duration.parse(again),
        table.get("time-limit", 30),
    )


def _way(document: Document, at: Sequence[str], said: Any) -> Command | WebHook | Mail | Ping:
    match at[-1]:
        case "command":
            return Command(tuple(said))
        case "mail":
            return _mail(document, at, said)
        case "ping":
            return Ping(_address(document, at, said))
    form = Form(said.get("form", Form.JSON))
    if form is Form.MATRIX and "token-file" not in said:
        raise UsageError("Matrix wants a 'token-file'", where=document.where(*at))
    return WebHook(_address(document, at, said), form, said.get("token-file"))


def _address(document: Document, at: Sequence[str], said: Mapping[str, Any]) -> Address:
    if ("url" in said) == ("url-file" in said):
        raise UsageError("there is one of: url, url-file", where=document.where(*at))
    _has_scheme(document.where(*at, "url"), said.get("url"), _SCHEMES)
    return Address(said.get("url"), said.get("url-file"))


def _mail(document: Document, at: Sequence[str], said: Mapping[str, Any]) -> Mail:
    server = said.get("server")
    _has_scheme(document.where(*at, "server"), server, _SERVERS)
    if ("user" in said) != ("password-file" in said):
        raise UsageError("'user' and 'password-file' go together", where=document.where(*at))
    if "user" in said and (server is None or server.startswith("smtp://")):
        raise UsageError(
            "a password goes to a server by smtps:// or starttls:// alone",
            where=document.where(*at, "user"),
        )
    return Mail(
        tuple(said["to"]), said.get("from"), server, said.get("user"), said.get("password-file")
    )


def _has_scheme(where: Place, url: str | None, schemes: Sequence[str]) -> None:
    if url is not None and not url.startswith(tuple(schemes)):
        raise UsageError(f"begins with none of: {', '.join(schemes)}", where=where)
