"""Sign requests, as AWS's Signature Version 4 says; botocore does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleece.store.s3.client.settings import Settings, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

UNSIGNED = "UNSIGNED-PAYLOAD"
"""What stands for the hash of a body that TLS protects."""


class Signer:
    """Signs the requests of one bucket.

    Args:
        settings: the bucket's.
        where: it is, for messages.
    """

    def __init__(self, settings: Settings, where: str) -> None:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        class _Auth(S3SigV4Auth):  # type: ignore[misc]
            """Takes the hash of a body as it is told, instead of the body."""

            def __init__(self, keys: Any, region: str, body: str) -> None:
                super().__init__(keys, "s3", region)
                self._body = body

            def payload(self, _request: Any) -> str:
                return self._body

        self._auth = _Auth
        self._request = AWSRequest
        self._settings = settings
        self._where = where

    def signed(
        self, method: str, path: str, headers: Mapping[str, str], body: str
    ) -> dict[str, str]:
        """The headers of a request with those that sign it; good for some minutes.

        Args:
            method: of HTTP.
            path: and query, encoded.
            headers: without Host.
            body: SHA-256 of what is sent, in hexadecimal, or `UNSIGNED`.

        Raises:
            StoreError: the credentials have run out.
        """
        server = self._settings.endpoint.server
        made = self._request(method=method, url=f"{server}{path}", headers=dict(headers))
        keys = frozen(self._settings.credentials, self._where)
        self._auth(keys, self._settings.region, body).add_auth(made)
        return dict(made.headers.items())
