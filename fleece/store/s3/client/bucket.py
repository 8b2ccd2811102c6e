"""A bucket, and all calls about it."""

from __future__ import annotations

import copy

from fleece.cancel import CancelToken
from fleece.store.s3.client.caller import Call
from fleece.store.s3.client.locks import Locks
from fleece.store.s3.client.problems import BucketTaken, Denied
from fleece.store.s3.client.uploads import Uploads


class Bucket(Uploads, Locks):
    """A bucket of an object store, for any number of threads.

    The bodies that it is given are sent before a call returns, and not kept. A process that was
    forked may go on using it: connections are its own.
    """

    def under(self, cancel: CancelToken) -> Bucket:
        """The same, with the same connections; `cancel` ends the calls made through it."""
        made = copy.copy(self)
        made.cancel = cancel
        return made

    def create(self, *, locked: bool = False) -> None:
        """Make the bucket. That it is there and we may list it is no error.

        Args:
            locked: it shall have versions, and object lock.

        Raises:
            StoreError: somebody else has the name, or it cannot be made.
        """
        headers = {"x-amz-bucket-object-lock-enabled": "true"} if locked else {}
        region = self._settings.region
        body = b""
        if self._settings.aws and region != "us-east-1":
            inner = f"<LocationConstraint>{region}</LocationConstraint>"
            body = f"<CreateBucketConfiguration>{inner}</CreateBucketConfiguration>".encode()
        try:
            self.call(Call("s3:CreateBucket", "PUT", None, {}, headers, body))
        except BucketTaken as taken:
            # Not all servers tell an owner that it is the owner.
            try:
                self.check()
            except Denied:
                raise taken from None
