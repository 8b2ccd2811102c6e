"""The command line: one parser of all verbs. Loads nothing that does the work."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from fleece.cli.grammar.copying import copy_verbs
from fleece.cli.grammar.files import files_verbs
from fleece.cli.grammar.fleet import fleet_verbs
from fleece.cli.grammar.keep import keep_verbs
from fleece.cli.grammar.options import add_quiet, filled
from fleece.cli.grammar.points import point_verbs
from fleece.cli.grammar.source import source_verbs
from fleece.cli.grammar.store import store_verbs
from fleece.errors import UsageError
from fleece.likely import meant
from fleece.version import VERSION

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


_MEANT = "; did you mean "
_MISSING = "the following arguments are required"


class MissingWords(UsageError):
    """A command line has fewer words than its verb takes."""


class _Once(argparse.Action):
    """Keeps one value. An option that is given twice would lose the first without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Take the value of an argument."""
        if option_string and getattr(namespace, self.dest, self.default) is not self.default:
            raise argparse.ArgumentError(self, "is given more than once")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Reports a bad command line as an error of the usage family, and guesses no option."""

    def __init__(self, **words: Any) -> None:
        # What is an abbreviation today is ambiguous with the next option that is added.
        super().__init__(**words, allow_abbrev=False)
        self.register("type", None, filled)
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        kind = MissingWords if message.startswith(_MISSING) else UsageError
        what, meant_it, likely = message.partition(_MEANT)
        raise kind(what, hint=f"did you mean {likely}" if meant_it else f"see '{self.prog} --help'")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is not known here, where it is known what is similar."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            text = f"unrecognized arguments: {' '.join(unknown)}"
            option = unknown[0].partition("=")[0]
            likely = meant(option, self._option_string_actions) if option[0] == "-" else None
            self.error(text if likely is None else f"{text}{_MEANT}{likely}?")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError:
            likely = meant(str(value), map(str, action.choices or ()))
            if likely is None:
                raise
            text = f"invalid choice: '{value}'{_MEANT}{likely}?"
            raise argparse.ArgumentError(action, text) from None

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        # That of Python 3.12 and later swallows the error of an output that is full.
        (file or sys.stderr).write(message)


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs.

    Each sets `verb`, a module of `fleece.cli` and its function, and `words`, what that takes.
    """
    top = _Parser(
        prog="fleece",
        description="Back up the disks of QEMU guests, restore them, and prove both by hash.",
        epilog="Exit codes: 0 done, 2 usage, 3 source, 4 point impossible, 5 store, "
        "6 verification failed, 7 target, 8 notice, 130 interrupted. Manual: docs/reference/.",
    )
    top.add_argument("--version", action="version", version=f"fleece {VERSION}")
    common = _Parser(add_help=False)
    common.add_argument(
        "--json",
        action="store_true",
        dest="machine",
        help="print one JSON object a line; the last one is the result",
    )
    add_quiet(common)
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=_Parser)
    verbs.type = str  # the verb's own words pass here too

    def verb(name: str, function: str, words: type, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(verb=function, words=words)
        return made

    for add in (
        source_verbs,
        store_verbs,
        point_verbs,
        files_verbs,
        keep_verbs,
        copy_verbs,
        fleet_verbs,
    ):
        add(verb)
    return top
