"""What a QEMU can do, by its own schema (`query-qmp-schema`), never by its version alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleece.source.qemu.monitor import Monitor

FILTER_DRIVERS = ("copy-before-write", "snapshot-access")


class Schema:
    """A QEMU's schema.

    Attributes:
        commands: names.
        drivers: of block nodes: the cases of `blockdev-add`'s argument.
    """

    def __init__(self, monitor: Monitor) -> None:
        items = monitor.execute("query-qmp-schema")
        self._types: dict[str, Mapping[str, Any]] = {item["name"]: item for item in items}
        self.commands = {item["name"] for item in items if item["meta-type"] == "command"}
        self.drivers = self._cases("blockdev-add")

    def filter_lack(self) -> str | None:
        """What it lacks for `Fleecing.FILTER`, in one clause; None: nothing.

        Which devices take another node while they run is in no schema; they do since QEMU 6.2, and
        what is asked for here is younger.
        """
        for driver in FILTER_DRIVERS:
            if driver not in self.drivers:
                return f"it has no block driver {driver}"
        if "qom-set" not in self.commands:
            return "it has no devices that a filter could be put below (qom-set)"
        if not {"on-cbw-error", "cbw-timeout"} <= self._members("blockdev-add", FILTER_DRIVERS[0]):
            return "its copy-before-write filter cannot give up a snapshot to spare the guest"
        if not self._bitmaps_of_other_nodes():
            return "its NBD exports cannot show another node's dirty bitmap"
        return None

    def _cases(self, command: str) -> set[str]:
        return set(self._variants(command))

    def _variants(self, command: str) -> dict[str, str]:
        """For each case of a command's argument, the name of the type of its members."""
        found = self._types.get(command)
        if found is None:
            return {}
        cases = self._types[found["arg-type"]].get("variants", [])
        return {case["case"]: case["type"] for case in cases}

    def _members(self, command: str, case: str) -> set[str]:
        kind = self._variants(command).get(case)
        return set() if kind is None else {item["name"] for item in self._types[kind]["members"]}

    def _bitmaps_of_other_nodes(self) -> bool:
        kind = self._variants("block-export-add").get("nbd")
        members = [] if kind is None else self._types[kind]["members"]
        for member in members:
            if member["name"] == "bitmaps":
                element = self._types[self._types[member["type"]]["element-type"]]
                return bool(element["meta-type"] == "alternate")
        return False
