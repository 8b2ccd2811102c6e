"""Versions that nobody can delete: retention and legal holds, where a bucket has object lock."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from fleece.errors import StoreError
from fleece.store.errors import Gone
from fleece.store.s3.client.answers import Version, Xml, is_encoded, strange
from fleece.store.s3.client.caller import Call, Caller
from fleece.store.s3.client.problems import NotLocked


class Mode(enum.Enum):
    """Who can shorten a retention."""

    GOVERNANCE = "GOVERNANCE"
    """Who has the right s3:BypassGovernanceRetention."""

    COMPLIANCE = "COMPLIANCE"
    """Nobody."""


@dataclass(frozen=True)
class Lock:
    """What keeps a version.

    Attributes:
        until: when it may be deleted.
        mode: who can change that.
    """

    until: datetime
    mode: Mode = Mode.COMPLIANCE


@dataclass(frozen=True)
class Locking:
    """What a bucket does with new objects.

    Attributes:
        mode: of the retention that they get; None: they get none.
        days: of it.
    """

    mode: Mode | None
    days: int


class Versioning(enum.Enum):
    """Whether a bucket keeps what is overwritten or deleted."""

    OFF = ""
    ENABLED = "Enabled"
    SUSPENDED = "Suspended"


def lock_headers(lock: Lock | None) -> dict[str, str]:
    """What locks a new object."""
    if lock is None:
        return {}
    return {
        "x-amz-object-lock-mode": lock.mode.value,
        "x-amz-object-lock-retain-until-date": _text(lock.until),
    }


def _text(moment: datetime) -> str:
    """As S3 wants it, of a moment that knows its zone; rounded down to seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Locks(Caller):
    """The calls about versions and what keeps them. All may raise what `Caller.call` does."""

    def versioning(self) -> Versioning:
        """Whether the bucket keeps what is overwritten or deleted."""
        call = Call("s3:GetBucketVersioning", "GET", None, {"versioning": ""})
        text = Xml.of(self.call(call).body, self.where).text("Status", "")
        try:
            return Versioning(text)
        except ValueError as error:
            raise strange(self.where, f"with the versioning {text[:40]!r}") from error

    def locking(self) -> Locking | None:
        """What the bucket locks by itself; None: it has no object lock."""
        call = Call("s3:GetBucketObjectLockConfiguration", "GET", None, {"object-lock": ""})
        try:
            found = Xml.of(self.call(call).body, self.where)
        except NotLocked:
            return None
        if found.text("ObjectLockEnabled", "") != "Enabled":
            return None
        for rule in found.all("Rule"):
            for default in rule.all("DefaultRetention"):
                years = default.text("Years", "")
                days = default.number("Days") if not years else 365 * default.number("Years")
                return Locking(_mode(default, self.where), days)
        return Locking(None, 0)

    def versions(self, prefix: str = "") -> Iterator[Version]:
        """All versions of the objects whose keys begin so, and the marks of deletions."""
        asked = Call("s3:ListBucketVersions", "GET", None, {"versions": "", "prefix": prefix})
        for page in self.pages(asked, "version-id-marker", "NextVersionIdMarker"):
            if page.name != "ListVersionsResult":
                raise strange(self.where, f"a listing with {page.name[:40]}")
            encoded = is_encoded(page)
            for each in page.children():
                if each.name in ("Version", "DeleteMarker"):
                    yield _version(each, encoded=encoded)

    def lock(self, key: str, version: str | None = None) -> Lock | None:
        """What keeps a version of an object (None: the latest one); None: nothing does.

        Raises:
            Gone: it is not there.
        """
        found = self._kept("s3:GetObjectRetention", key, _of(version) | {"retention": ""})
        if found is None or not found.text("RetainUntilDate", ""):
            return None
        return Lock(found.moment("RetainUntilDate"), _mode(found, self.where))

    def set_lock(self, key: str, lock: Lock, version: str | None = None) -> None:
        """Keep a version of an object for longer.

        Raises:
            StoreError: it is kept for longer already, or the bucket has no object lock.
        """
        body = (
            f"<Retention><Mode>{lock.mode.value}</Mode>"
            f"<RetainUntilDate>{_text(lock.until)}</RetainUntilDate></Retention>"
        ).encode()
        query = _of(version) | {"retention": ""}
        self.call(Call("s3:PutObjectRetention", "PUT", key, query, {}, body, checked=True))

    def held(self, key: str, version: str | None = None) -> bool:
        """Whether a version of an object is under a legal hold."""
        found = self._kept("s3:GetObjectLegalHold", key, _of(version) | {"legal-hold": ""})
        return found is not None and found.text("Status", "") == "ON"

    def hold(self, key: str, *, on: bool, version: str | None = None) -> None:
        """Put a version of an object under a legal hold, or end it."""
        body = f"<LegalHold><Status>{'ON' if on else 'OFF'}</Status></LegalHold>".encode()
        query = _of(version) | {"legal-hold": ""}
        self.call(Call("s3:PutObjectLegalHold", "PUT", key, query, {}, body, checked=True))

    def _kept(self, action: str, key: str, query: dict[str, str]) -> Xml | None:
        """What a server says of a lock; None: there is none, or none in the whole bucket."""
        try:
            return Xml.of(self.call(Call(action, "GET", key, query)).body, self.where)
        except NotLocked:
            return None
        except Gone:
            raise
        except StoreError:
            # In a bucket without object lock the question is wrong, in words of each server's own.
            if self.locking() is not None:
                raise
            return None


def _of(version: str | None) -> dict[str, str]:
    return {"versionId": version} if version else {}


def _mode(found: Xml, where: str) -> Mode:
    text = found.text("Mode", "")
    try:
        return Mode(text)
    except ValueError as error:
        raise strange(where, f"with the mode {text[:40]!r}") from error


def _version(each: Xml, *, encoded: bool) -> Version:
    deleted = each.name == "DeleteMarker"
    return Version(
        key=each.key("Key", encoded=encoded),
        version=each.text("VersionId"),
        latest=each.flag("IsLatest"),
        deleted=deleted,
        length=0 if deleted else each.number("Size"),
        etag=each.etag(),
        modified=each.moment("LastModified"),
    )
