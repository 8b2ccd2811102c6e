"""A point that libvirt writes into files in the scratch, and that is read from there.

It is for disks whose QEMU ends, and its guest with it, when an NBD client is lost: nobody is a
client of that QEMU. What is written are qcow2 images, one for each disk: of what changed only the
changed clusters, zeros among them as such. They are read by servers of our own, and what an image
has of its own is what changed. So everything is written twice, and the scratch needs room for it.
"""

from __future__ import annotations

import contextlib
import time

from fleece.errors import PointError, SourceError
from fleece.nbd.server import ServedImage, qemu_nbd
from fleece.nbd.uri import unix_uri
from fleece.programs import finished, program
from fleece.source.base import Export
from fleece.source.libvirt.point import GRANULARITY, LibvirtPoint
from fleece.source.libvirt.xml import pushed_xml
from fleece.source.workfolder import QEMU_FOLDER

_PAUSE = 0.05
_OWN_CLUSTERS = "qemu:allocation-depth"
"""The context whose value is 1 where the image itself has the data (QEMU, nbd.txt)."""


class PushedPoint(LibvirtPoint):
    """A point that is in files."""

    _files: contextlib.ExitStack | None = None

    def start(self) -> None:
        """Take the point, wait until it is written, and serve it.

        Raises:
            PointError: there is no room, or QEMU could not write it.
        """
        self._look_for_room()
        disks = self._plan.backed_up(self._work.path)
        self._begin(pushed_xml(disks))
        while self._domain.job() is not None:  # ours: a guest has one at a time
            self.look()
            self._domain.cancel.check()
            time.sleep(_PAUSE)
        if (trouble := self._domain.trouble_of_ended()) is not None:
            raise PointError(f"QEMU could not write the point: {trouble}", where=self._domain.where)
        self._domain.wait_for_files(self._plan.disks[0].disk.name)
        self._files = contextlib.ExitStack()
        self.exports = tuple(self._serve(number) for number in range(len(disks)))

    def _serve(self, number: int) -> Export:
        planned = self._plan.disks[number]
        path = str(self._plan.backed_up(self._work.path)[number].scratch)
        self._cut_off(path)
        place = self._work.path / QEMU_FOLDER / f"{number}.sock"
        image = ServedImage(path, "qcow2", SourceError, f"what disk {planned.disk.name} was")
        words = ["--read-only", "--shared=0", "--allocation-depth"]
        assert self._files is not None
        self._files.enter_context(qemu_nbd(image, place, words, self._domain.cancel))
        since = planned.since is not None
        return Export(
            disk=planned.disk.name,
            uri=unix_uri(str(place)),
            size=planned.disk.size,
            dirty_context=_OWN_CLUSTERS if since else None,
            granularity=GRANULARITY if since else None,
            partial=since,
        )

    def _cut_off(self, path: str) -> None:
        """Take the guest's image from below a file: what is not in the file is not read."""
        words = [program("qemu-img"), "rebase", "-u", "-f", "qcow2", "-b", "", "--", path]
        done = finished(words, self._domain.cancel)
        if done.code != 0:
            raise SourceError(f"qemu-img refused: {done.said}", where=path)

    def check(self) -> None:
        """Raise `PointError` if the point is lost: no more, once it is written."""
        if self._lost is not None:
            raise self._lost

    def watch(self) -> None:
        """Nothing: the guest does not wait for anything of it any more."""

    def close(self) -> None:
        """End the servers, and the job if it runs; the files go.

        Raises:
            SourceError: a part of it is left; every step was tried.
        """
        if self._files is not None:
            files, self._files = self._files, None
            files.close()
        super().close()
