"""Which libvirt is on another host, and how a fleece there is reached: what its URI says of ssh.

`qemu+ssh://[USER@]HOST[:PORT]/system`, with the parameters that libvirt has for ssh (libvirt's
uri.rst, "ssh transport"). A libvirt at *localhost* counts as this host's, as everywhere.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from fleece.errors import UsageError
from fleece.source.far.line import Place
from fleece.source.options import FreezeWish, SourceOptions

_SCHEME = "qemu+ssh"
_OF_LIBVIRT = ("mode", "netcat", "no_sanity", "no_tty", "proxy")
"""Parameters that say how libvirt itself goes there, which fleece has no need of."""


@dataclass(frozen=True)
class _Way:
    """What the parameters say."""

    shell: tuple[str, ...]
    socket: str | None


def far_place(place: str, options: SourceOptions) -> Place | None:
    """Where a guest is served; None: its libvirt is on this host, or not reached by ssh.

    Args:
        place: of the guest in its libvirt.
        options: as for a guest of this host.

    Raises:
        UsageError: the URI says what cannot be done.
    """
    uri = options.connect or os.environ.get("LIBVIRT_DEFAULT_URI") or ""
    try:
        found = urlsplit(uri)
        host, port = found.hostname, found.port
    except ValueError:
        return None
    if found.scheme != _SCHEME or host in (None, "", "localhost"):
        return None
    assert host is not None
    way = _way(found, uri)
    login = f"{unquote(found.username)}@{host}" if found.username else host
    if login.startswith("-") or host.startswith("-"):
        raise UsageError("this names no host", where=uri)
    shell = way.shell if port is None else (*way.shell, "-p", str(port))
    there = f"qemu://{found.path}"
    if way.socket is not None:
        there = f"qemu+unix://{found.path}?socket={quote(way.socket)}"
    return Place(host, shell, login, shlex.join(_words(place, there, options)))


def _words(place: str, uri: str, options: SourceOptions) -> list[str]:
    words = ["fleece", "serve-source", f"libvirt:{place}", "--connect", uri]
    if options.scratch is not None:
        if not options.scratch.is_absolute():
            raise UsageError(
                "the scratch folder is on the guest's host: name it by its whole path",
                where=options.scratch,
            )
        words += ["--scratch", str(options.scratch)]
    if options.scratch_limit is not None:
        words += ["--scratch-limit", str(options.scratch_limit)]
    if options.freeze_wish is not FreezeWish.NO:
        words.append("--freeze")
    if options.freeze_wish is FreezeWish.MUST:
        words.append("--require-freeze")
    return words


def _way(found: SplitResult, uri: str) -> _Way:
    shell = tuple(shlex.split(os.environ.get("FLEECE_RSH", ""))) or ("ssh",)
    more: tuple[str, ...] = ()
    socket = None
    for name, value in parse_qsl(found.query, keep_blank_values=True):
        if name == "command":
            shell = (value,)
        elif name == "keyfile":
            more += ("-i", str(Path(value)))
        elif name == "no_verify":
            more += ("-oStrictHostKeyChecking=no",) if value not in ("", "0") else ()
        elif name == "socket":
            socket = value
        elif name not in _OF_LIBVIRT:
            raise UsageError(f"the parameter {name} is not known", where=uri)
    return _Way((*shell, *more), socket)
