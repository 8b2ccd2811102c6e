"""Whose a disk is: what a guest's QEMU tells of it, whatever the guest is called in a store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GuestIdentity:
    """What tells a guest from others. One of the two is there.

    Attributes:
        uuid: in the form of RFC 9562, lower-case; None: QEMU tells none.
        name: that QEMU has for it; None: it has none.
    """

    uuid: str | None
    name: str | None

    def is_of(self, other: GuestIdentity | None) -> bool:
        """Whether what another identity is of is this guest: by the UUID, or by the name.

        A guest that has a UUID is known by it alone: its name may change, and another guest's may
        become the same.
        """
        if other is None:
            return False
        return self.uuid == other.uuid if self.uuid is not None else self.name == other.name

    def __str__(self) -> str:
        if self.uuid is None:
            return f"a guest named {self.name}"
        return f"the guest of UUID {self.uuid}" + ("" if self.name is None else f" ({self.name})")
