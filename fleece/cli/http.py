"""How a command line wants disks to be served over HTTP."""

from __future__ import annotations

from pathlib import Path

import fleece
from fleece.cli.words import ExportWords, ServeWords
from fleece.errors import UsageError


def http_door(words: ExportWords | ServeWords) -> fleece.HttpDoor | None:
    """Where HTTP clients are let in; None: nowhere.

    Raises:
        UsageError: an option would have no effect.
    """
    cert, key = (None if each is None else Path(each) for each in (words.tls_cert, words.tls_key))
    if words.http is not None:
        return fleece.HttpDoor(words.http, cert, key)
    if cert is not None or key is not None:
        raise UsageError("--tls-cert and --tls-key need --http")
    return None
