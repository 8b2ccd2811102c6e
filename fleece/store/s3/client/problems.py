"""What a server refuses or fails at, as errors that say where, what, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from fleece.errors import StoreError
from fleece.store.errors import Gone


class Taken(StoreError):
    """Something has the key of an object that shall be new.

    Attributes:
        unsure: an earlier try of the same call got no answer, and may have been the one that won:
            read what is there, and compare.
    """

    unsure = False


class Changed(StoreError):
    """An object was replaced since its ETag was seen."""


class OutOfRange(StoreError):
    """An object ends before the range that was asked for.

    Attributes:
        total: bytes that it has; None: the server does not say.
    """

    total: int | None = None


class NoBucket(StoreError):
    """There is no bucket of the name."""


class BucketTaken(StoreError):
    """A bucket that shall be made is there, whoever owns it."""


class NotLocked(StoreError):
    """Nothing is known of an object's or a bucket's lock."""


class Denied(StoreError):
    """The key is not known, or may not do it."""


class NoUpload(Gone):
    """A multipart upload was completed or aborted, or never was."""


class Again(Exception):
    """A try failed in a way that the next one may not.

    Args:
        error: what to say if none succeeds.
        lost: whether the server may have done what it was asked for.
        met: whether a server has answered at all.
        after: seconds that the server asks to wait.
    """

    def __init__(
        self, error: StoreError, *, lost: bool, met: bool = True, after: float = 0.0
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.lost = lost
        self.met = met
        self.after = after


@dataclass(frozen=True)
class Refusal:
    """An answer that is not the one that was hoped for.

    Attributes:
        status: of HTTP.
        code: of S3; empty if the answer has none, as that to a HEAD.
        message: the server's.
        region: where the bucket is, if it says so.
        headers: of the answer, by names in lower case.
    """

    status: int
    code: str
    message: str
    region: str
    headers: Mapping[str, str]


_LIMITED = {
    "SlowDown",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequests",
    "TooManyRequestsException",
    "TooManyRequestException",
    "BandwidthLimitExceeded",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "TransactionInProgressException",
}
"""Codes by which servers limit the rate of requests, with whatever status, 403 among them; those
that botocore knows too."""

_PASSING = {
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "IncompleteBody",
}
"""Codes of what may be otherwise at the next try. The last three: the body was damaged."""

_NEVER = {HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.INSUFFICIENT_STORAGE}
"""Failures of a server that last."""

SECRETS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile AWS_PROFILE"


def moment_in(text: str) -> datetime | None:
    """The moment that a header has; None: it is none."""
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def judged(found: Refusal, where: str, action: str) -> Exception:
    """The error for a refusal: an `Again` if another try may help.

    Args:
        found: the answer.
        where: the object or the bucket, for messages.
        action: the right that the call needs, such as `s3:PutObject`.
    """
    said = _said(found)
    if found.code in _LIMITED or found.status in (429, 503) or "rate limit" in said.lower():
        hint = "the server limits requests or is overloaded; try later, or with less at once"
        return _again(found, f"the server says slow down ({said})", where, hint)
    if found.code in _BY_CODE or found.status in _NEVER:
        return _final(found, where, action, said)
    if found.status >= 500 or found.code in _PASSING or found.status in (408, 425):
        hint = "look into the server's log; its disks may be full"
        return _again(found, f"the server fails ({said})", where, hint)
    return _final(found, where, action, said)


def _again(found: Refusal, what: str, where: str, hint: str) -> Exception:
    error = StoreError(what, where=where, hint=hint)
    after = found.headers.get("retry-after", "")
    # What was refused for its rate was not done; what failed may have been.
    lost = found.status == HTTPStatus.OK or found.status >= 500
    lost = lost and found.code not in _LIMITED
    return Again(error, lost=lost, after=float(after) if after.isdecimal() else 0.0)


def _final(found: Refusal, where: str, action: str, said: str) -> StoreError:
    """The error for what no other try changes."""
    if found.code in _BY_CODE:
        return _BY_CODE[found.code](found, where)
    if found.status in _BY_STATUS:
        return _BY_STATUS[found.status](found, where)
    if found.status in (HTTPStatus.FORBIDDEN, HTTPStatus.UNAUTHORIZED):
        hint = f"the key needs the right {action} there"
        return Denied(f"access denied ({said})", where=where, hint=hint)
    return StoreError(f"the server refuses ({said})", where=where)


def _no_bucket(_: Refusal, where: str) -> StoreError:
    hint = "check its name and AWS_ENDPOINT_URL; fleece init --create-bucket makes it"
    return NoBucket("there is no such bucket", where=where, hint=hint)


def _no_upload(_: Refusal, where: str) -> StoreError:
    return NoUpload("the multipart upload is gone", where=where)


def _gone(_: Refusal, where: str) -> StoreError:
    return Gone("is not there", where=where)


def _changed(_: Refusal, where: str) -> StoreError:
    return Changed("was replaced meanwhile", where=where)


def _out_of_range(found: Refusal, where: str) -> StoreError:
    short = OutOfRange("ends before", where=where)
    total = found.headers.get("content-range", "").removeprefix("bytes */")
    short.total = int(total) if total.isdecimal() else None
    return short


def _not_locked(found: Refusal, where: str) -> StoreError:
    return NotLocked(f"has no lock ({_said(found)})", where=where)


def _somebodys(_: Refusal, where: str) -> StoreError:
    hint = "choose another name, or set the credentials of its owner"
    return BucketTaken("somebody has a bucket of the name already", where=where, hint=hint)


def _unable(found: Refusal, where: str) -> StoreError:
    return StoreError(f"the server cannot do that ({_said(found)})", where=where)


def _full(found: Refusal, where: str) -> StoreError:
    return StoreError(f"takes no more ({_said(found)})", where=where, hint="make room there")


def _said(found: Refusal) -> str:
    """What the server said, in one line of bounded length."""
    words = [str(found.status), found.code, found.message]
    return " ".join(" ".join(words).split())[:300]


def _elsewhere(found: Refusal, where: str) -> StoreError:
    if found.region:
        what = f"the bucket is in the region {found.region}"
        return StoreError(what, where=where, hint=f"set AWS_REGION={found.region}")
    what = f"the server sends us elsewhere ({_said(found)})"
    return StoreError(what, where=where, hint="set AWS_REGION and AWS_ENDPOINT_URL to the bucket's")


def _expired(_: Refusal, where: str) -> StoreError:
    return Denied("the credentials have expired", where=where, hint="get new ones")


def _unknown(_: Refusal, where: str) -> StoreError:
    hint = f"check {SECRETS}"
    return Denied("the server does not know the access key", where=where, hint=hint)


def _unsigned(_: Refusal, where: str) -> StoreError:
    what = "the signature is wrong: the secret key is another one, or the region is"
    return Denied(what, where=where, hint=f"check {SECRETS}, and AWS_REGION")


def _skewed(found: Refusal, where: str) -> StoreError:
    apart = ""
    server = moment_in(found.headers.get("date", ""))
    if server is not None:
        apart = f" by {abs((datetime.now(UTC) - server).total_seconds()):.0f} s"
    what = f"the clocks of this host and of the server are apart{apart}"
    return StoreError(what, where=where, hint="set this host's clock (NTP)")


_BY_CODE: dict[str, Callable[[Refusal, str], StoreError]] = {
    "NoSuchBucket": _no_bucket,
    "NoSuchUpload": _no_upload,
    "NoSuchObjectLockConfiguration": _not_locked,
    "NoSuchObjectLegalHold": _not_locked,
    "ObjectLockConfigurationNotFoundError": _not_locked,
    "BucketAlreadyOwnedByYou": _somebodys,
    "BucketAlreadyExists": _somebodys,
    "PermanentRedirect": _elsewhere,
    "TemporaryRedirect": _elsewhere,
    "AuthorizationHeaderMalformed": _elsewhere,
    "IllegalLocationConstraintException": _elsewhere,
    "QuotaExceeded": _full,
    "XMinioStorageFull": _full,
    "RequestTimeTooSkewed": _skewed,
    "SignatureDoesNotMatch": _unsigned,
    "InvalidAccessKeyId": _unknown,
    "InvalidToken": _unknown,
    "ExpiredToken": _expired,
    "TokenRefreshRequired": _expired,
}
_BY_STATUS: dict[int, Callable[[Refusal, str], StoreError]] = {
    HTTPStatus.MOVED_PERMANENTLY: _elsewhere,
    HTTPStatus.TEMPORARY_REDIRECT: _elsewhere,
    HTTPStatus.PERMANENT_REDIRECT: _elsewhere,
    HTTPStatus.NOT_FOUND: _gone,
    HTTPStatus.PRECONDITION_FAILED: _changed,
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: _out_of_range,
    HTTPStatus.NOT_IMPLEMENTED: _unable,
    HTTPStatus.INSUFFICIENT_STORAGE: _full,
}
