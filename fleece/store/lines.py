"""Lines of deltas that stay open while one of them after the other is looked at.

Who goes through all points of a long line opens each of its deltas once, and not once for each
point that is built on it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from fleece.closing import Closing
from fleece.delta.chain import Chain
from fleece.delta.pagecache import page_cache
from fleece.store.catalogue import Catalogue, Entry

_MOST = 8192
"""Deltas that stay open; one takes some ten KiB of memory."""

_Disk: TypeAlias = tuple[str, str, str]


class OpenLines(Closing):
    """The lines of a catalogue's deltas, opened as they are asked for. `close` it, or use `with`.

    Args:
        catalogue: of the store. What of it is open stays what it was, whatever is renamed.
        most: how many deltas of other lines stay open.

    Attributes:
        catalogue: the same.
    """

    def __init__(self, catalogue: Catalogue, most: int = _MOST) -> None:
        self.catalogue = catalogue
        self._most = most
        self._lines: OrderedDict[_Disk, _Line] = OrderedDict()

    def close(self) -> None:
        """Close all deltas."""
        for line in self._lines.values():
            line.cut(0)
        self._lines.clear()

    def chain(self, entry: Entry) -> Chain:
        """The chain that leads to an entry, open until another one is asked for.

        Raises:
            DeltaError: a delta is damaged, or does not build on the next.
            StoreError: one is missing.
        """
        self.catalogue.check_line(entry)
        head = entry.header
        line = self._lines.setdefault((head.guest, head.chain, head.disk), _Line())
        self._lines.move_to_end((head.guest, head.chain, head.disk))
        self._make_room()
        return line.chain(self.catalogue, entry)

    def _make_room(self) -> None:
        while len(self._lines) > 1 and sum(map(len, self._lines.values())) > self._most:
            _, oldest = self._lines.popitem(last=False)
            oldest.cut(0)


class _Line:
    """One line, open from its full up to some delta."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._chain: Chain | None = None
        self._cache = page_cache(_MOST)

    def __len__(self) -> int:
        return len(self._places)

    def chain(self, catalogue: Catalogue, entry: Entry) -> Chain:
        """The chain that leads to an entry of this line, whose whole line is there."""
        above: list[Entry] = []
        at: Entry | None = entry
        while at is not None and at.key not in self._places:
            above.append(at)
            at = catalogue.parent(at)
        if above:
            self.cut(0 if at is None else self._places[at.key] + 1)
        for one in reversed(above):
            self._add(catalogue, one)
        assert self._chain is not None
        return self._chain.below(len(self) - 1 - self._places[entry.key])

    def _add(self, catalogue: Catalogue, entry: Entry) -> None:
        delta = catalogue.open(entry)
        try:
            delta.cache = self._cache
            self._chain = Chain([delta]) if self._chain is None else self._chain.on(delta)
        except BaseException:
            delta.close()
            raise
        self._places[entry.key] = len(self._places)

    def cut(self, count: int) -> None:
        """Close all but the `count` oldest deltas."""
        gone = len(self._places) - count
        if self._chain is None or gone == 0:
            return
        for delta in self._chain.deltas[:gone]:
            delta.close()
        self._chain = self._chain.below(gone) if count else None
        self._places = {key: place for key, place in self._places.items() if place < count}
