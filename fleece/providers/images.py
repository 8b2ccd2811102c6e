"""Images that no QEMU has open: `provider:images [NAME=]PATH...`, the provider to learn from.

Each is a qcow2 image, which keeps bitmaps. A base is a bitmap that has recorded since before its
point; it is called as its token and its disk, because it goes with the image, which may be another
disk's one day. The point is held by a read-only qemu-nbd for each image: it locks the image, so
that nobody can begin to write, and its death harms nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from fleece.providers.speak import Refused, Said, run

_LIMIT = 20.0
"""Seconds that a server has to listen."""


def _qemu_img(*words: str) -> bytes:
    """Run qemu-img, in a session of its own: if it is ended half-way, all bitmaps are lost."""
    done = subprocess.run(
        ["qemu-img", *words], capture_output=True, check=False, start_new_session=True
    )
    if done.returncode != 0:
        raise Refused(" ".join(done.stderr.decode(errors="replace").split()))
    return done.stdout


class _Served:
    """An image that is served, read-only, with some bitmaps in it."""

    def __init__(self, path: str, socket: Path, bitmaps: list[str]) -> None:
        words = [word for name in bitmaps for word in ("-B", name)]
        dies = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        nbd = [*dies, "qemu-nbd", "-f", "qcow2", "-r", "-t", "-e", "0", "-k", str(socket), *words]
        self._path = path
        self._state = self._stat()
        self._server = subprocess.Popen([*nbd, path], stdin=subprocess.DEVNULL, stdout=sys.stderr)
        end = time.monotonic() + _LIMIT
        while not socket.exists():
            if self._server.poll() is not None or time.monotonic() > end:
                self.end()
                raise Refused(f"qemu-nbd does not serve {path}")
            time.sleep(0.01)

    def _stat(self) -> tuple[int, ...]:
        found = os.stat(self._path)
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def check(self) -> None:
        """Refuse if it is not what it was."""
        if self._server.poll() is not None:
            raise Refused(f"the qemu-nbd of {self._path} has ended")
        if self._stat() != self._state:
            raise Refused(f"{self._path} was written to")

    def end(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.wait()


class Images:
    """The provider.

    Args:
        images: their paths, by the names of their disks.
    """

    def __init__(self, images: dict[str, str]) -> None:
        self._images = images
        self._place = tempfile.TemporaryDirectory(prefix="fleece-images-")
        self._served: list[_Served] = []
        self._begun: list[tuple[str, str]] = []

    def hello(self) -> Said:
        """What this is."""
        return {"name": "images", "version": "1", "bases": True}

    def describe(self) -> Said:
        """The images, whoever uses them."""
        return {"disks": [self._disk(name) for name in self._images]}

    def _disk(self, name: str) -> Said:
        info = json.loads(_qemu_img("info", "-U", "--output=json", "-f", "qcow2", self._path(name)))
        image = info["format-specific"]["data"]
        if "backing-filename" in info or "data-file" in image:
            # QEMU does not lock a raw file behind an image against writers.
            raise Refused(f"{self._path(name)} needs a second file", "image: backs up such images")
        bitmaps = image.get("bitmaps", [])
        usable = [each["name"] for each in bitmaps if each["flags"] == ["auto"]]
        tokens = [each.partition(".")[0] for each in usable if each.partition(".")[2] == name]
        return {
            "name": name,
            "size": info["virtual-size"],
            "bases": [{"token": token} for token in tokens],
        }

    def _path(self, name: str) -> str:
        if name not in self._images:
            raise Refused(f"there is no disk {name}")
        return self._images[name]

    def begin(self, request: Said) -> Said:
        """Hold the images."""
        if self._served or self._begun:
            raise Refused("there is a point already")
        shown = {each["name"]: self._disk(each["name"]) for each in request["disks"]}
        for each in request["disks"]:
            if each["base"] and {"token": each["base"]} not in shown[each["name"]]["bases"]:
                raise Refused(f"there is no base {each['base']} of disk {each['name']}")
        try:
            # The new bitmaps record before any image is held, and the old ones still do: what is
            # written in between is in both.
            for each in request["disks"] if request["token"] else []:
                bitmap = f"{request['token']}.{each['name']}"
                _qemu_img("bitmap", "-f", "qcow2", "--add", self._path(each["name"]), bitmap)
                self._begun.append((each["name"], bitmap))
            return {"disks": [self._serve(shown[each["name"]], each) for each in request["disks"]]}
        except BaseException:
            self.drop()
            raise

    def _serve(self, disk: Said, wanted: Said) -> Said:
        socket = Path(self._place.name, f"{len(self._served)}.sock")
        bitmaps = [f"{wanted['base']}.{disk['name']}"] if wanted["base"] else []
        self._served.append(_Served(self._path(disk["name"]), socket, bitmaps))
        return {
            "name": disk["name"],
            "size": disk["size"],
            "uri": f"nbd+unix:///?socket={quote(str(socket))}",
            "base": wanted["base"],
            "bitmaps": bitmaps,
        }

    def changes(self, disk: str, offset: int) -> Said:
        """The bitmaps tell it."""
        raise Refused("bitmaps tell what changed")

    def check(self) -> None:
        """Refuse if an image is not held any more."""
        if not self._served:
            raise Refused("no point is held")
        for served in self._served:
            served.check()

    def close(self) -> None:
        """Let go of the images."""
        for served in self._served:
            served.end()
        self._served = []
        for socket in Path(self._place.name).iterdir():
            socket.unlink()

    def commit(self) -> None:
        """Keep the bitmaps that were begun."""
        if not self._begun:
            raise Refused("there is no point, or it was begun without a token")
        self.close()
        self._begun = []

    def drop(self) -> None:
        """Let go of the images, and of the bitmaps that were begun."""
        self.close()
        for name, bitmap in self._begun:
            _qemu_img("bitmap", "-f", "qcow2", "--remove", self._path(name), bitmap)
        self._begun = []

    def forget(self, bases: list[Said]) -> None:
        """Remove bitmaps."""
        if self._served or self._begun:
            raise Refused("there is a point")
        for each in bases:
            if {"token": each["token"]} in self._disk(each["disk"])["bases"]:
                bitmap = f"{each['token']}.{each['disk']}"
                path = self._path(each["disk"])
                _qemu_img("bitmap", "-f", "qcow2", "--remove", path, bitmap)


def _parse(words: list[str]) -> dict[str, str]:
    images = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals:
            name, path = Path(word).stem, word
        if name in images:
            sys.exit(f"two disks are called {name}")
        images[name] = os.path.abspath(path)
    return images or sys.exit("usage: images [NAME=]PATH...")


if __name__ == "__main__":
    run(Images(_parse(sys.argv[1:])))
