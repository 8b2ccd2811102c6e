"""What a bare client reads of an object, as a command: 8 blocks of 8 MiB at once."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from fleece.store.s3.client.address import address_of
from fleece.store.s3.client.bucket import Bucket

_BLOCK, _AT_ONCE = 8 << 20, 8


def main(text: str) -> None:
    """Read the one delta of a store, whose address is given."""
    address = address_of(text)
    bucket = Bucket(address)
    (delta,) = (item for item in bucket.list(address.prefix) if item.key.endswith(".fleece"))
    starts = range(0, delta.length, _BLOCK)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(lambda at: len(bucket.get(delta.key, at, _BLOCK).data), starts):
            pass


if __name__ == "__main__":
    main(sys.argv[1])
