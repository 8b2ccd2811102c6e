"""What the reader does when it is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fleece.files.reader.disk import WireDisk
from fleece.files.reader.tree import DamagedError, Tree, UnsupportedError
from fleece.files.reader.volumes import Part, open_tree, parts_of, type_of
from fleece.files.wire import PAGE, Head, Wire

_LONGEST_NAME = 1024
"""Bytes: 255 characters of NTFS in UTF-8 are at most 765."""


class _Complaints(logging.Handler):
    """What the library only logs and then passes over."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


class Service:
    """Answers one request after the other.

    Args:
        wire: to the other side.
        size: of the disk in bytes.
    """

    def __init__(self, wire: Wire, size: int) -> None:
        self._wire = wire
        self._disk = WireDisk(wire, size)
        self._parts: dict[int, Part] = {}
        self._trees: dict[int, Tree] = {}
        self._complaints = _Complaints()
        logging.getLogger("dissect").addHandler(self._complaints)

    def answer(self, request: Head) -> None:
        """Answer one request: any number of frames, and one that says how it ended."""
        verbs: dict[str, Callable[[Head], Head]] = {
            "volumes": self._volumes,
            "find": self._find,
            "list": self._list,
            "data": self._data,
        }
        self._complaints.last = None
        try:
            end = verbs[request["do"]](request)
            if self._complaints.last is not None:
                raise DamagedError(self._complaints.last)
        except Exception as error:
            end = {"failed": _kind(error), "what": _text(error)}
        self._wire.send(end)

    def _volumes(self, request: Head) -> Head:
        for part in parts_of(self._disk.file(), self._disk.size):
            self._parts[part.number] = part
            told = {
                "number": part.number,
                "name": part.name,
                "start": part.start,
                "size": part.size,
            }
            self._wire.send({"volume": told | self._opened(part)})
        return {"end": True}

    def _opened(self, part: Part) -> Head:
        """What is in a volume, and what is wrong with it, if anything."""
        try:
            kind, tree = open_tree(part)
        except Exception as error:
            kind = part.type or (type_of(part.stream) if part.stream else "unknown")
            return {"type": kind, "label": "", "obstacle": _text(error), "warnings": []}
        self._trees[part.number] = tree
        return {"type": kind, "label": tree.label, "obstacle": None, "warnings": tree.warnings}

    def _find(self, request: Head) -> Head:
        """Walk down a path; links are not followed."""
        tree = self._trees[request["volume"]]
        node = tree.node(tree.root)
        names: list[str] = []
        for wanted in request["names"]:
            if node.target is not None:
                return {"failed": "link", "what": node.target, "at": names}
            held = [(name, number) for name, number in tree.children(node.id)]
            found = [(name, number) for name, number in held if name == wanted]
            if not found and tree.folds_case:
                found = [pair for pair in held if pair[0].casefold() == wanted.casefold()]
            if not found:
                return {"failed": "missing", "what": wanted, "at": names}
            names.append(found[0][0])
            node = tree.node(found[0][1])
        self._wire.send({"entry": node.to_wire("/".join(names))})
        return {"end": True}

    def _list(self, request: Head) -> Head:
        tree = self._trees[request["volume"]]
        for count, (name, number) in enumerate(tree.children(request["id"]), 1):
            if len(name.encode(errors="surrogatepass")) > _LONGEST_NAME:
                raise DamagedError(f"a name of {len(name)} characters")
            try:
                told: Head = {"entry": tree.node(number).to_wire(name)}
            except Exception as error:
                told = {"bad": name, "what": _text(error)}
            self._wire.send(told)
            if count % PAGE == 0 and not self._wants_more():
                break
        return {"end": True}

    def _wants_more(self) -> bool:
        self._wire.send({"more": True})
        return bool(self._wire.receive()[0]["ok"])

    def _data(self, request: Head) -> Head:
        for piece in self._trees[request["volume"]].pieces(request["id"]):
            self._wire.send({"data": piece.offset}, piece.data)
        return {"end": True}


def _kind(error: Exception) -> str:
    return "unsupported" if isinstance(error, UnsupportedError) else "damaged"


def _text(error: Exception) -> str:
    """An error of whatever kind in one line."""
    if isinstance(error, (UnsupportedError, DamagedError)):
        return str(error)[:500]
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
