"""The secret that a command line or its environment names."""

from __future__ import annotations

import os
from collections.abc import Mapping

import fleece
from fleece.cancel import CancelToken
from fleece.environment import SECRET_VARIABLES
from fleece.errors import UsageError


def secret_of(
    key_file: str | None,
    passphrase_file: str | None,
    environment: Mapping[str, str],
    cancel: CancelToken,
) -> fleece.Secret | None:
    """The one secret there is; the command line goes before the environment.

    Raises:
        UsageError: more than one is named, or a file cannot be read.
        Interrupted: it was cancelled while a pipe was waited for.
    """
    given = [key_file, passphrase_file, None]
    if key_file is None and passphrase_file is None:
        given = [environment.get(name) or None for name in SECRET_VARIABLES]
    if sum(text is not None for text in given) > 1:
        raise UsageError("more than one key is given", hint="one key file, or one passphrase")
    key, file, text = given
    if key is not None:
        return fleece.Secret.of_key_file(key, cancel)
    if file is not None:
        return fleece.Secret.of_passphrase_file(file, cancel)
    # The very bytes of the environment, whatever the locale takes them for: those of a file.
    return None if text is None else fleece.Secret.of_passphrase(os.fsencode(text))
