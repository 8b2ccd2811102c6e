"""The calls about objects that are uploaded in parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from fleece.hashing import Buffer
from fleece.store.s3.client.answers import Part, Upload, Xml, bare_etag, is_encoded, strange
from fleece.store.s3.client.caller import Call
from fleece.store.s3.client.locks import Lock, lock_headers
from fleece.store.s3.client.objects import NAMESPACE, Objects, taken
from fleece.store.s3.client.problems import Changed, NoUpload
from fleece.store.s3.client.retry import Tries

LEAST_PART = 5 << 20
"""Bytes of every part but the last."""

MOST_PARTS = 10_000

_COMPLETE = 5.0
"""Times the usual silence in which a server makes an object of its parts."""


class Uploads(Objects):
    """The calls about uploads. All may raise what `Caller.call` does, and `NoUpload`."""

    def begin(self, key: str, lock: Lock | None = None) -> Upload:
        """Begin an object. Its parts are kept, and cost, until it is completed or aborted."""
        call = Call("s3:PutObject", "POST", key, {"uploads": ""}, lock_headers(lock))
        found = Xml.of(self.call(call).body, self.address.named(key))
        return Upload(key, found.text("UploadId"))

    def part(self, upload: Upload, number: int, data: Buffer) -> str:
        """Upload a part, in place of what had its number.

        Args:
            upload: of the object.
            number: from 1 to `MOST_PARTS`.
            data: at least `LEAST_PART` bytes, but for the last part. It is not kept.

        Returns:
            Its ETag.
        """
        query = {"partNumber": str(number), "uploadId": upload.id}
        answer = self.call(Call("s3:PutObject", "PUT", upload.key, query, {}, data))
        etag = bare_etag(answer.headers.get("etag", ""))
        if not etag:
            raise strange(self.address.named(upload.key), "without the ETag of a part")
        return etag

    def parts(self, upload: Upload) -> list[Part]:
        """The parts that are there, by number."""
        where = self.address.named(upload.key)
        query = {"uploadId": upload.id}
        found: list[Part] = []
        while True:
            call = Call("s3:ListMultipartUploadParts", "GET", upload.key, query)
            page = Xml.of(self.call(call).body, where)
            for each in page.all("Part"):
                found.append(Part(each.number("PartNumber"), each.etag(), each.number("Size")))
            if not page.flag("IsTruncated"):
                return sorted(found, key=lambda part: part.number)
            then = page.text("NextPartNumberMarker")
            if not then.isdecimal() or int(then) <= int(query.get("part-number-marker", "0")):
                raise strange(where, "a listing that does not end")
            query["part-number-marker"] = then

    def complete(self, upload: Upload, parts: Sequence[Part], *, new: bool = False) -> str:
        """Make the object of its parts, at once: before, nobody sees it.

        Where an earlier try was done although its answer was lost, the object is there, and that
        is a success: so its key must be one that nobody else writes.

        Args:
            upload: of the object.
            parts: all that it shall have.
            new: only if nothing has the key; some servers do not hear it.

        Returns:
            Its ETag.

        Raises:
            NoUpload: it was aborted.
            Taken: it should be new, and something has the key.
        """
        names = "".join(
            f"<Part><PartNumber>{part.number}</PartNumber><ETag>{_quoted(part.etag)}</ETag></Part>"
            for part in sorted(parts, key=lambda part: part.number)
        )
        body = f"<CompleteMultipartUpload {NAMESPACE}>{names}</CompleteMultipartUpload>".encode()
        headers = {"If-None-Match": "*"} if new else {}
        query = {"uploadId": upload.id}
        call = Call(
            "s3:PutObject", "POST", upload.key, query, headers, body, patience=_COMPLETE, late=True
        )
        tries = Tries()
        try:
            answer = self.call(call, tries)
        except Changed as error:
            raise taken(error, tries) from error
        except NoUpload:
            if not tries.lost:
                raise
            return self.head(upload.key).etag
        etag = Xml.of(answer.body, self.address.named(upload.key)).etag()
        return etag or self.head(upload.key).etag

    def abort(self, upload: Upload) -> None:
        """Give an object up, with its parts. That it is gone is no error."""
        query = {"uploadId": upload.id}
        with contextlib.suppress(NoUpload):
            self.call(Call("s3:AbortMultipartUpload", "DELETE", upload.key, query))

    def uploads(self, prefix: str = "") -> Iterator[Upload]:
        """The uploads that are neither complete nor aborted, of keys that begin so."""
        action = "s3:ListBucketMultipartUploads"
        asked = Call(action, "GET", None, {"uploads": "", "prefix": prefix})
        for page in self.pages(asked, "upload-id-marker", "NextUploadIdMarker"):
            encoded = is_encoded(page)
            for each in page.all("Upload"):
                upload = Upload(each.key("Key", encoded=encoded), each.text("UploadId"))
                self._within(upload.key, prefix)
                yield upload


def _quoted(etag: str) -> str:
    return f"&quot;{escape(etag)}&quot;"
