"""The disks that a provider shows at one time."""

from __future__ import annotations

from dataclasses import dataclass

from fleece.source.choice import writable
from fleece.source.provider.answers import ProviderDisk


@dataclass(frozen=True)
class ProviderInventory:
    """The disks, in the provider's order."""

    disks: tuple[ProviderDisk, ...]

    def choose(self, names: tuple[str, ...]) -> tuple[ProviderDisk, ...]:
        """The disks of these names, or all that are writable.

        Raises:
            UsageError: a name is given twice.
            PointError: there is no such disk, or it is read-only, or there is none at all.
        """
        return writable(self.disks, names, "the provider says so")
