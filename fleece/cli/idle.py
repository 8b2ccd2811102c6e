"""Options that have no effect beside others: refused, because somebody relies on each one given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fleece.errors import UsageError

Options = Mapping[str, Any]


@dataclass(frozen=True)
class _Idle:
    """An option, and when it has no effect.

    Attributes:
        option: as it is written.
        given: whether it was given.
        beside: what takes its effect away, for the message; each with whether it was given.
    """

    option: str
    given: Callable[[Options], bool]
    beside: tuple[tuple[str, Callable[[Options], bool]], ...]


def _is(name: str, *values: object) -> Callable[[Options], bool]:
    return lambda options: options[name] in values


def _has(name: str) -> Callable[[Options], bool]:
    return lambda options: bool(options[name])


_NO_STORE = (("without a STORE", _is("stores", [])),)

_NO_KEY_WITHOUT_STORE = (
    _Idle("--key-file", _has("key_file"), _NO_STORE),
    _Idle("--passphrase-file", _has("passphrase_file"), _NO_STORE),
)

_PRINTED = (("with --rules", _has("rules")), ("with --dashboard", _has("dashboard")))

_TOLD = "with --json: it is for people, and programs choose by 'event'"
_ALWAYS = (
    _Idle(
        "--verbose",
        lambda options: bool(options.get("verbose")),
        (("with --quiet", _has("quiet")), (_TOLD, _has("machine"))),
    ),
    _Idle("--quiet", _has("quiet"), ((_TOLD, _has("machine")),)),
)

_ORDERED = (
    (
        "with --commit or --drop: another process holds the point",
        lambda options: bool(options["commit"] or options["drop"]),
    ),
)

_OF_A_NEW_EXPORT = (
    "since",
    "full",
    "keep-bases",
    "socket",
    "listen",
    "tls-x509",
    "tls-psk",
    "ttl",
    "scratch",
    "connect",
    "scratch-limit",
    "guest-agent",
    "freeze",
    "require-freeze",
)

_SERVING = (
    _Idle(
        "--json",
        _has("machine"),
        (("here: standard output is the other side's", lambda options: True),),
    ),
    _Idle(
        "--quiet",
        _has("quiet"),
        (("here: nothing but trouble is ever said", lambda options: True),),
    ),
)

_IDLE: dict[str, tuple[_Idle, ...]] = {
    "backing_up:backup": (
        _Idle(
            "--no-resume",
            _is("resume", False),
            (
                ("with --output: no point is resumed into a stream", _has("stream")),
                ("with --transport push: such a point is never resumed", _is("transport", "push")),
                (
                    "with --fleecing filter: such a point is never resumed",
                    _is("fleecing", "filter"),
                ),
                ("with --require-freeze: no point is resumed then", _has("require_freeze")),
            ),
        ),
        _Idle(
            "--audit",
            _has("audit"),
            (
                ("with --mode full: all is read and nothing compared", _is("mode", "full")),
                ("with --mode rescan: all is read and compared anyway", _is("mode", "rescan")),
            ),
        ),
        _Idle(
            "--bitmap",
            _has("bitmap"),
            (
                ("with --mode full: all is read", _is("mode", "full")),
                ("with --mode rescan: all is read", _is("mode", "rescan")),
            ),
        ),
        _Idle(
            "--require-freeze",
            _has("require_freeze"),
            (
                (
                    "without --guest-agent or --freeze: nobody is asked to freeze",
                    lambda options: options["guest_agent"] is None and not options["freeze"],
                ),
            ),
        ),
    ),
    "exporting:export": (
        *(_Idle(f"--{name}", _has(name.replace("-", "_")), _ORDERED) for name in _OF_A_NEW_EXPORT),
        _Idle("--name", _has("consumer"), _ORDERED),
        _Idle("--disk", _has("disks"), _ORDERED),
        _Idle("--drop", _has("drop"), (("with --commit: a point has one end", _has("commit")),)),
    ),
    "copying:serve_store": _SERVING,
    "far:serve_source": (
        *_SERVING,
        _Idle(
            "--require-freeze",
            _has("require_freeze"),
            (("without --freeze", _is("freeze", False)),),
        ),
    ),
    "copying:copy": (
        _Idle("--rate", _has("rate"), (("with --dry-run: nothing is sent", _has("dry_run")),)),
    ),
    "doctor:doctor": (
        _Idle("--connect", _has("connect"), (("without a SOURCE", _is("source", None)),)),
    ),
    "bitmaps:bitmap": (
        _Idle("--guest", _has("guest"), _NO_STORE),
        *_NO_KEY_WITHOUT_STORE,
    ),
    "drill:drill": (
        _Idle(
            "--config",
            _has("config"),
            (("with a STORE: its guests are drilled", _has("stores")),),
        ),
        _Idle("--sample", _has("sample"), (("with --guest: these are named", _has("guests")),)),
        _Idle("--console-text", _has("text"), (("without --boot", _is("boot", False)),)),
        _Idle("--timeout", _has("limit"), (("without --boot", _is("boot", False)),)),
        *_NO_KEY_WITHOUT_STORE,
    ),
    "report:report": (
        _Idle(
            "--config",
            _has("config"),
            (("with a STORE: what is named is told of", _has("stores")),),
        ),
        *_NO_KEY_WITHOUT_STORE,
    ),
    "stores:list_points": (
        _Idle(
            "--long",
            _has("long"),
            (("with --json: that tells of each disk and part anyway", _has("machine")),),
        ),
    ),
    "metrics:metrics": (
        *_NO_KEY_WITHOUT_STORE,
        _Idle("--config", _has("config"), (("with a STORE", _has("stores")), *_PRINTED)),
        _Idle("STORE", _has("stores"), _PRINTED),
        _Idle(
            "--json",
            _has("machine"),
            (
                (
                    "without --output or --listen: these are two formats",
                    lambda options: options["output"] is None and options["listen"] is None,
                ),
            ),
        ),
    ),
}


def refuse_idle(options: Options) -> None:
    """Refuse an option that has no effect.

    Args:
        options: as they were parsed; `verb` says whose.

    Raises:
        UsageError: there is one.
    """
    for idle in (*_ALWAYS, *_IDLE.get(options["verb"], ())):
        for why, takes_it_away in idle.beside:
            if idle.given(options) and takes_it_away(options):
                raise UsageError(f"{idle.option} has no effect {why}", hint="leave it out")
