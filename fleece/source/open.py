"""Open a source by what a user calls it: what knows which kinds of sources there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from fleece.cancel import CancelToken
from fleece.errors import UsageError
from fleece.plugins import SOURCES, installed
from fleece.source.base import Source
from fleece.source.options import FoundGuest, SourceOptions

Opener = Callable[[str, SourceOptions, CancelToken | None], Source]
"""Opens a source of one kind: by its place, the options and the run's token."""


def open_source(
    text: str, options: SourceOptions | None = None, cancel: CancelToken | None = None
) -> Source:
    """Open a source; the end of its context closes it.

    A scheme that is not fleece's own is looked for among the entry points `fleece.sources` of
    what is installed: each is called with the place, the options and the token.

    Args:
        text: its scheme, a colon and its place, like qmp:/run/web1.qmp.
        options: how.
        cancel: of the run that uses it: once it is set, the source has little time to answer.

    Raises:
        UsageError: there are no sources of that scheme, or an option has no effect.
        SourceError: it cannot be reached or used.
    """
    options = options or SourceOptions()
    scheme, _, place = text.partition(":")
    opener = _opener(scheme) if place else None
    if opener is None:
        written = " or ".join(f"{name}:{shown}" for name, (shown, _) in _KINDS.items())
        raise UsageError(f"a source is written {written}", where=text)
    if options.require_freeze and options.guest_agent is None and not options.freeze:
        raise UsageError("a freeze is required, but none is asked for", where=text)
    return opener(place, options, cancel)


def guests_of(
    scheme: str, connect: str | None = None, cancel: CancelToken | None = None
) -> list[FoundGuest]:
    """All guests that there are of a kind of source, by name.

    Args:
        scheme: of the sources, like libvirt.
        connect: URI of the libvirt that has them; None: libvirt's own default.
        cancel: of the run that asks.

    Raises:
        UsageError: of this kind nobody knows which there are.
        SourceError: whoever has them cannot be asked.
    """
    if scheme != "libvirt":
        raise UsageError("nobody has a list of such guests: name each one", where=f"{scheme}:")
    from fleece.source.libvirt.open import known_guests

    return known_guests(connect, cancel)


def serve_source(
    text: str,
    options: SourceOptions,
    pipes: tuple[int, int],
    cancel: CancelToken | None = None,
) -> None:
    """Serve a source of this host to a fleece on another one, until that ends.

    Args:
        text, options: of the source, as for `open_source`.
        pipes: descriptors to read requests from and to write answers to.
        cancel: ends it.

    Raises:
        SourceError: the other side does not speak the protocol, or fell silent.
    """
    from fleece.source.far.server import serve

    serve(lambda: open_source(text, options, cancel), *pipes, cancel)


def _opener(scheme: str) -> Opener | None:
    if scheme in _KINDS:
        return _KINDS[scheme][1]
    found: Opener | None = installed(SOURCES, scheme)
    return found


def _qmp(place: str, options: SourceOptions, cancel: CancelToken | None) -> Source:
    from fleece.source.qemu.agent import GuestAgent
    from fleece.source.qemu.source import QemuSource

    _refuse_idle(
        "qmp",
        options,
        "scratch",
        "scratch_limit",
        "fleecing",
        "guest_agent",
        "require_freeze",
    )
    path = options.guest_agent
    agent = None if path is None else GuestAgent(path, options.require_freeze)
    scratch, limit = options.scratch, options.scratch_limit
    return QemuSource(place, scratch, limit, options.fleecing, cancel, agent)


def _libvirt(place: str, options: SourceOptions, cancel: CancelToken | None) -> Source:
    from fleece.source.far.source import FarSource
    from fleece.source.libvirt.far import far_place
    from fleece.source.libvirt.open import open_guest

    _refuse_idle(
        "libvirt", options, "scratch", "scratch_limit", "connect", "freeze", "require_freeze"
    )
    if (far := far_place(place, options)) is not None:
        return FarSource(f"libvirt:{place}", far, cancel)
    scratch, limit = options.scratch, options.scratch_limit
    return open_guest(place, options.connect, scratch, limit, options.freeze_wish, cancel)


def _image(place: str, options: SourceOptions, cancel: CancelToken | None) -> Source:
    from fleece.source.image.source import ImageSource
    from fleece.source.image.text import parse

    _refuse_idle("image", options, "scratch")
    return ImageSource(parse(place), scratch=options.scratch, cancel=cancel)


def _nbd(scheme: str) -> Opener:
    def opener(place: str, options: SourceOptions, cancel: CancelToken | None) -> Source:
        from fleece.source.nbd.source import NbdSource
        from fleece.source.nbd.text import places, proof

        _refuse_idle(scheme, options, "places", "bitmap", "since")
        found = places(f"{scheme}:{place}", options.places)
        names = [each.name for each in found]
        return NbdSource(found, proof(options.bitmap, options.since, names), cancel)

    return opener


def _provider(place: str, options: SourceOptions, cancel: CancelToken | None) -> Source:
    from fleece.source.provider.source import ProviderSource
    from fleece.source.provider.text import parse

    _refuse_idle("provider", options, "freeze", "require_freeze")
    return ProviderSource(parse(place), options.freeze_wish, cancel)


def _refuse_idle(scheme: str, options: SourceOptions, *used: str) -> None:
    """Refuse options that have no effect on a kind of source.

    Raises:
        UsageError: one is given.
    """
    usual = SourceOptions()
    for field in dataclasses.fields(options):
        given = getattr(options, field.name)
        if field.name not in used and given != getattr(usual, field.name):
            option = field.metadata.get("option", f"--{field.name.replace('_', '-')}")
            raise UsageError(f"{option} has no effect on {scheme}:", hint="leave it out")


_KINDS: dict[str, tuple[str, Opener]] = {
    "qmp": ("SOCKET", _qmp),
    "libvirt": ("DOMAIN", _libvirt),
    "image": ("[NAME=]PATH[,...]", _image),
    "nbd": ("//HOST[:PORT]/[EXPORT]", _nbd("nbd")),
    "nbds": ("//HOST[:PORT]/[EXPORT]", _nbd("nbds")),
    "nbd+unix": ("///[EXPORT]?socket=PATH", _nbd("nbd+unix")),
    "nbds+unix": ("///[EXPORT]?socket=PATH", _nbd("nbds+unix")),
    "provider": ("PROGRAM [ARGS]", _provider),
}
"""For each scheme, how the place after it is shown, and what opens it."""
