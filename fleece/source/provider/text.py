"""Providers as a command line names them: `provider:PROGRAM [ARGS]`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fleece.errors import UsageError
from fleece.terminal import shown

_SHIPPED = {
    "images": "fleece.providers.images",
    "ovirt-imageio": "fleece.providers.ovirt_imageio",
}
"""The providers that come with fleece, each a module that is run."""

_PACKAGES = Path(__file__).parents[3]


@dataclass(frozen=True)
class Command:
    """How a provider is started.

    Attributes:
        name: of it in messages.
        words: of its command line, the program first.
        environment: what it is given beside what every child is.
        noun: what it is, in messages.
    """

    name: str
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    noun: str = "the provider"


def parse(text: str) -> Command:
    """The command that a text names: words as a shell splits them, and nothing else of a shell's.

    A first word without a slash is a provider that comes with fleece, else the program's path.

    Raises:
        UsageError: there is no such provider, or the quotes are not closed.
    """
    where = f"provider:{text}"
    try:
        first, *rest = shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"this is no command ({error})" if text.strip() else "a provider has no name",
            where=where,
        ) from error
    if "/" in first:
        return Command(shown(os.path.basename(first) or first), (first, *rest))
    if first not in _SHIPPED:
        raise UsageError(
            f"no provider of this name comes with fleece: it has {', '.join(_SHIPPED)}",
            where=where,
            hint="of one of your own give the path, with a slash",
        )
    path = os.pathsep.join([str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = (sys.executable, "-P", "-m", _SHIPPED[first], *rest)
    return Command(first, words, {"PYTHONPATH": path})
