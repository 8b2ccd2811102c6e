"""Open the store of an address `s3://BUCKET/PREFIX`, as the environment says where that is."""

from __future__ import annotations

from fleece.cancel import CancelToken
from fleece.store.s3.backend import S3Backend
from fleece.store.s3.client.address import address_of
from fleece.store.s3.client.bucket import Bucket


def open_s3(text: str, cancel: CancelToken | None = None) -> S3Backend:
    """Where the store of an address is, or would be.

    Args:
        text: the address.
        cancel: ends every request.

    Raises:
        UsageError: it is none, or nobody can tell how it is reached.
    """
    return S3Backend(Bucket(address_of(text), cancel=cancel))
