"""Where a bucket keeps versions: remove an object with all of them, and see what was hidden.

A plain deletion there only lays a mark over an object. So nothing that fleece removes is marked:
its versions are deleted by name. What is marked all the same, somebody else has hidden, or a key
that may not list versions has removed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

from fleece.errors import StoreError
from fleece.store.names import PIN
from fleece.store.s3.client.answers import Version
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.locks import Versioning
from fleece.store.s3.client.problems import Denied
from fleece.store.s3.names import COMMITS, DATA, NOTES
from fleece.store.s3.view import View


class Versions:
    """The versions of a store's objects.

    Args:
        bucket: where; keys are whole ones.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    @functools.cached_property
    def are_kept(self) -> bool:
        """Whether the bucket keeps what is deleted; who may not know that, cannot undo it."""
        with contextlib.suppress(Denied):
            return self._bucket.versioning() is not Versioning.OFF
        return False

    def erase(self, keys: Sequence[str]) -> None:
        """Delete objects with all their versions, as far as the key in use may see these.

        Raises:
            StoreError: some cannot be deleted, because they are locked perhaps; the others are.
        """
        if keys and self.are_kept:
            with contextlib.suppress(Denied):
                self._bucket.delete_versions((v.key, v.version) for v in self._of(keys))
                return
        if keys:
            self._bucket.delete(keys)

    def _of(self, keys: Sequence[str]) -> Sequence[Version]:
        wanted = {*keys}
        folders = {_folder(key) for key in keys}
        return [v for under in sorted(folders) for v in self.of(under) if v.key in wanted]

    def of(self, prefix: str) -> Iterator[Version]:
        """All versions of what is below a prefix; nothing, where none are kept.

        Raises:
            StoreError: they cannot be listed.
        """
        if self.are_kept:
            yield from self._bucket.versions(prefix)

    def sweep(self, prefix: str, view: View) -> None:
        """Delete what is hidden of a guest's dropped points, and old notes; locked ones stay.

        Args:
            prefix: in the bucket, of the store's keys.
            view: the guest's part, listed after all that was removed.

        Raises:
            StoreError: the versions cannot be listed.
        """
        found = [*self.of(f"{prefix}{view.guest}/")]
        old = _hidden(prefix, view, found)
        if not old:
            return
        with contextlib.suppress(StoreError):
            self._bucket.delete_versions((v.key, v.version) for v in old if not v.deleted)
        left = {v.key for v in self.of(f"{prefix}{view.guest}/") if not v.deleted}
        marks = [(v.key, v.version) for v in old if v.deleted and v.key not in left]
        with contextlib.suppress(StoreError):
            self._bucket.delete_versions(marks)


def _folder(key: str) -> str:
    """What the versions of a key are listed by, together with those of its neighbours."""
    head, slash, _ = key.rpartition("/")
    return head + slash if key.count("/") > 1 else key


def _hidden(prefix: str, view: View, found: Sequence[Version]) -> list[Version]:
    """The versions that no point needs, whatever somebody hid.

    If a change is hidden, or there are two of one number since then, nobody knows what the first
    one says: then all stays, for `status` tells of it.
    """
    marked = {v.key for v in found if v.deleted and v.latest}
    start = len(prefix) + len(view.guest) + 1
    if any(v.key[start:].startswith(f"{COMMITS}/") and (v.deleted or not v.latest) for v in found):
        return []
    used = {prefix + key for key in view.used()}

    def old(v: Version) -> bool:
        kind = v.key[start:].partition("/")[0]
        if kind == NOTES and not v.key.endswith(PIN):
            return v.key in marked or not v.latest
        return kind == DATA and v.key in marked and v.key not in used

    return [v for v in found if old(v)]
