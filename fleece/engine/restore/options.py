"""How to restore a disk."""

from __future__ import annotations

from dataclasses import dataclass

from fleece.disk.image import ImageFormat


@dataclass(frozen=True)
class RestoreOptions:
    """How to restore a disk. What has no effect on the target is refused.

    Attributes:
        guest: which guest, if the point could be of several.
        target_format: of the image; None: raw. In place it must be given of an image that does not
            look raw, because a guest can make a raw disk look like anything. On a block device it
            alone says what is there, or shall be.
        force: replace an image that exists; overwrite a block device or an export.
        in_place: read the target first and write only the leaves that differ.
        mode: permissions of what is made; None: this user's alone, or those of what it replaces.
    """

    guest: str | None = None
    target_format: ImageFormat | None = None
    force: bool = False
    in_place: bool = False
    mode: int | None = None
