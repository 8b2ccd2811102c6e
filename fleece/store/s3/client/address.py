"""What `s3://BUCKET/PREFIX` names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fleece.errors import UsageError

SCHEME = "s3"
_START = f"{SCHEME}://"

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
"""AWS allows less since 2018; older buckets and other servers have these."""

_HOW = "write s3://BUCKET/PREFIX; what the server is and who you are is in the environment"
_MOST = 512
"""Bytes of a prefix: a key has 1024 at most, and names of guests, points and disks follow."""


@dataclass(frozen=True)
class Address:
    """A place in an object store.

    Attributes:
        bucket: its name.
        prefix: names between slashes that all keys begin with; may be empty.
    """

    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{_START}{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    def named(self, key: str) -> str:
        """What a whole key is called in messages."""
        return f"{_START}{self.bucket}/{key}"


def address_of(text: str) -> Address:
    """Read an address.

    Raises:
        UsageError: it is none. What could be a password is not repeated.
    """
    if text[: len(_START)].lower() != _START:
        raise UsageError("does not begin with s3://", where=text, hint=_HOW)
    bucket, _, prefix = text[len(_START) :].partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        shown = _START + ("..." if {"@", ":"} & set(bucket) else bucket)
        raise UsageError("that is no name of a bucket", where=shown, hint=_HOW)
    names = prefix.rstrip("/").split("/") if prefix.rstrip("/") else []
    if {"", ".", ".."} & set(names) or not prefix.isprintable():
        raise UsageError("the prefix has an empty or a special name", where=text, hint=_HOW)
    if len(prefix.encode(errors="surrogateescape")) > _MOST:
        raise UsageError(f"the prefix is longer than {_MOST} bytes", where=text)
    return Address(bucket, "/".join(names))
