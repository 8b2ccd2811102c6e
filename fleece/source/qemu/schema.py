"""What a QEMU can do, by its own schema (`query-qmp-schema`), never by its version alone."""

from __future__ import annotations

from fleece.source.qemu.answers import Answer, known
from fleece.source.qemu.monitor import Monitor

FILTER_DRIVERS = ("copy-before-write", "snapshot-access")


class Schema:
    """A QEMU's schema.

    Attributes:
        commands: names.
        drivers: of block nodes: the cases of `blockdev-add`'s argument.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._where = monitor.path
        self._types = monitor.execute("query-qmp-schema").by("name")
        self.commands = {
            name for name, item in self._types.items() if item.text("meta-type") == "command"
        }
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
        cases = self._type(found.text("arg-type")).maybe("variants")
        return (
            {} if cases is None else {case.text("case"): case.text("type") for case in cases.list()}
        )

    def _type(self, name: str) -> Answer:
        return known(self._types, name, self._where)

    def _members(self, command: str, case: str) -> set[str]:
        kind = self._variants(command).get(case)
        members = [] if kind is None else self._type(kind).list("members")
        return {item.text("name") for item in members}

    def _bitmaps_of_other_nodes(self) -> bool:
        kind = self._variants("block-export-add").get("nbd")
        members = [] if kind is None else self._type(kind).list("members")
        for member in members:
            if member.text("name") == "bitmaps":
                element = self._type(self._type(member.text("type")).text("element-type"))
                return element.text("meta-type") == "alternate"
        return False
