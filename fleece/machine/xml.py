"""XML out of a store, which somebody else may have written."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers import expat

from fleece.errors import StoreError

_MOST_BYTES = 4 << 20
_MOST_ELEMENTS = 100_000
_DEEPEST = 64


def believed(data: bytes, where: str) -> Element:
    """The tree of a document, if it is bounded and plain: without a document type, so no entities.

    Args:
        data: the document.
        where: it is from, for messages.

    Raises:
        StoreError: it is none that libvirt writes.
    """
    if len(data) > _MOST_BYTES:
        raise StoreError(f"has {len(data)} bytes, which no definition has", where=where)
    try:
        _look(data)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise StoreError(f"is no XML that libvirt writes ({error})", where=where) from error


def _look(data: bytes) -> None:
    """Read it once without keeping anything.

    Raises:
        ValueError: it is too deep, too long, or has a document type.
    """
    depth = count = 0

    def begin(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > _DEEPEST or count > _MOST_ELEMENTS:
            raise ValueError("too many elements")

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*found: object) -> None:
        raise ValueError("it has a document type")

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)
