"""A provider of images that is true to the protocol but for one fault: `LIE IMAGE`.

"lists" is no fault: it tells what changed by itself, a block in each answer, and not by bitmaps.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleece.disk.nbd import NbdDisk
from fleece.extents import Extents
from fleece.nbd.connection import DIRTY_BITMAP
from fleece.providers.images import Images
from fleece.providers.speak import Refused, run

Said = dict[str, Any]

_BLOCK = 64 * 1024


def _all_disks(change: Callable[[Said], object]) -> Callable[[Said], None]:
    def work(answer: Said) -> None:
        for disk in answer["disks"]:
            change(disk)

    return work


_ANSWERS: dict[str, tuple[str, Callable[[Said], object]]] = {
    "version": ("hello", lambda a: a.update(protocol=2)),
    "nameless": ("hello", lambda a: a.pop("name")),
    "freezes": ("hello", lambda a: a.update(freezes=True)),
    "two alike": ("describe", lambda a: a["disks"].append(a["disks"][0])),
    "size zero": ("describe", _all_disks(lambda d: d.update(size=0))),
    "size text": ("describe", _all_disks(lambda d: d.update(size="much"))),
    "part": ("describe", _all_disks(lambda d: d.update(name="@nvram"))),
    "uuid": ("describe", lambda a: a.update(guest={"uuid": "none"})),
    "deep": ("describe", lambda a: a.update(more=json.loads("[" * 99 + "]" * 99))),
    "escape": ("begin", _all_disks(lambda d: d.update(uri="\x1b[2J"))),
    "scheme": ("begin", _all_disks(lambda d: d.update(uri="http://h/vda"))),
    "socketless": ("begin", _all_disks(lambda d: d.update(uri="nbd+unix:///"))),
    "nobody": ("begin", _all_disks(lambda d: d.update(uri="nbd+unix:///?socket=/none"))),
    "size": ("begin", _all_disks(lambda d: d.update(size=d["size"] + 512))),
    "no disk": ("begin", lambda a: a.update(disks=[])),
    "other disk": ("begin", _all_disks(lambda d: d.update(name="other"))),
    "other base": ("begin", _all_disks(lambda d: d.update(base="fleece-0"))),
    "no base": ("begin", _all_disks(lambda d: d.update(base=None))),
    "no bitmap": ("begin", _all_disks(lambda d: d.update(bitmaps=[]))),
    "lacks bitmap": ("begin", _all_disks(lambda d: d.update(bitmaps=["none"]))),
}
"""What is said in place of the truth, and to what."""


class Liar(Images):
    """Images, with a fault.

    Args:
        lie: the fault: of `_ANSWERS`, or as it says here.
        image: path of the disk's image.
    """

    def __init__(self, lie: str, image: str) -> None:
        super().__init__({"disk": image})
        self._lie = lie
        self._stays = lie == "stays"
        self._dirty: list[int] = []

    def hello(self) -> Said:
        """As it says."""
        return self._true("hello", lambda: {"protocol": 1, **Images.hello(self)})

    def describe(self) -> Said:
        """As it says."""
        return self._true("describe", super().describe)

    def begin(self, request: Said) -> Said:
        """As it says."""
        if self._lie == "any base":
            for each in request["disks"]:
                each["base"] = None
        if self._lie == "two points":
            self._served, held = [], self._served
            try:
                return super().begin(request)
            finally:
                self._served = [*held, *self._served]
        if request["freeze"] == "try":
            return super().begin(request) | {"frozen": True, "warnings": ["cold\x07"]}
        return self._true("begin", lambda: Images.begin(self, request))

    def _serve(self, disk: Said, wanted: Said) -> Said:
        """With the bitmap of the new point in place of the old one's, in the old one's name."""
        base = wanted["base"]
        if self._lie == "lists":
            told = super()._serve(disk, wanted)
            export = NbdDisk(told["uri"])
            for bitmap in told.pop("bitmaps"):
                context, whole = f"{DIRTY_BITMAP}{bitmap}", Extents.whole(export.size)
                dirty = export.dirty_extents(context, whole) or Extents.empty()
                self._dirty = [at for start, end in dirty for at in range(start, end, _BLOCK)]
            return told | {"changes": base is not None}
        if self._lie != "blind" or base is None or not self._begun:
            return super()._serve(disk, wanted)
        told = super()._serve(disk, wanted | {"base": self._begun[0][1].partition(".")[0]})
        return told | {"base": base}

    def changes(self, disk: str, offset: int) -> Said:
        """What the bitmap tells, a block at a time."""
        found = next((each for each in self._dirty if each >= offset), None)
        if found is None:
            return {"extents": []}
        later = any(each > found for each in self._dirty)
        return {"extents": [[found, _BLOCK]], "next": found + _BLOCK if later else None}

    def check(self) -> None:
        """As it says."""
        self._true("check", super().check)

    def commit(self) -> None:
        """As it says."""
        if self._lie == "any commit":
            self.drop()
        elif self._lie == "no keep":
            super().drop()
        else:
            self._true("commit", super().commit)

    def drop(self) -> None:
        """As it says; also called at the end of its input."""
        if self._lie == "serves on" and self._served:
            self._served = []
            return
        while self._stays:
            time.sleep(60)
        if self._lie == "leaves":
            self._lie = ""
            stays = [sys.executable, "-c", "import time; time.sleep(600)", self._images["disk"]]
            subprocess.Popen(stays)
        super().drop()

    def forget(self, bases: list[Said]) -> None:
        """As it says."""
        if self._lie != "no forget":
            self._true("forget", lambda: Images.forget(self, bases))

    def _true(self, word: str, ask: Callable[[], Said | None]) -> Said:
        """What there is to say to a word, unless this is where it fails."""
        deed, _, at = self._lie.partition(" at ")
        if at == word:
            return self._fail(deed)
        said = ask() or {}
        where, change = _ANSWERS.get(self._lie, ("", None))
        if where == word and change is not None:
            change(said)
        return said

    def _fail(self, deed: str) -> Said:
        match deed:
            case "exits":
                print("all is \x1b[31mlost", file=sys.stderr, flush=True)
                os._exit(9)
            case "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs":
                Path(self._images["disk"] + ".hangs").touch()
                signal.pause()
                time.sleep(600)
            case "refuses":
                raise Refused("not \x1b[31mtoday", "come back tomorrow")
            case "dribbles":
                while True:
                    os.write(1, b" ")
                    time.sleep(0.01)
            case "babbles":
                os.write(1, b"hello, world\n")
            case "never ends a line":
                os.write(1, b"x" * (2 << 20))
            case "answers twice":
                os.write(1, b'{"id": 1}\n{"id": 2}\n')
        return {}


if __name__ == "__main__":
    run(Liar(sys.argv[1], sys.argv[2]))
