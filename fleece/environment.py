"""Environment variables: where fleece finds a secret, and what its programs are given."""

from __future__ import annotations

import os

SECRET_VARIABLES = ("FLEECE_KEY_FILE", "FLEECE_PASSPHRASE_FILE", "FLEECE_PASSPHRASE")
"""Where the command line looks for a secret: names of a key file and of a passphrase's file, and a
passphrase itself."""

_STORES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
"""What a store in a bucket is opened with."""

_KEEP_BUFFERS = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


def child_environment(**more: str) -> dict[str, str]:
    """The environment of every program that is started: this process's own, less its secrets.

    A child parses what a guest has written, or is the guest's machine: it must not find there what
    opens the store. One that needs a key is told it through a pipe.

    Args:
        more: variables to add, or to replace.
    """
    secret = (*SECRET_VARIABLES, *_STORES)
    return {name: text for name, text in os.environ.items() if name not in secret} | more


def store_secrets() -> dict[str, str]:
    """What a program needs beside, that opens a store in a bucket itself, or finds its keys."""
    return {name: os.environ[name] for name in _STORES if name in os.environ}


def server_environment() -> dict[str, str]:
    """The environment of an NBD server: that of any child, and glibc keeps its freed buffers.

    A server has a buffer of up to 1 MiB for each request; `cli.process` says what that costs else.
    What the user set of mallopt(3) stays.
    """
    return _KEEP_BUFFERS | child_environment()
