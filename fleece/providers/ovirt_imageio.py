"""Transfers of oVirt's imageio: `provider:ovirt-imageio --state FILE --checkpoint ID DISK=URL...`.

Who calls oVirt's engine begins the backup and its transfers, and finalizes them after fleece: here
they are read. A base is a checkpoint of the engine's: FILE has, for each, the token of its point
and its disks. `--since` is the checkpoint that the engine was given to begin from. The URLs are
secrets: `@LIST` stands for the arguments that are in the file LIST, one in each line.
"""

from __future__ import annotations

import argparse
import contextlib
import http
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

from fleece.providers.speak import Refused, Said, run

_LIMIT = 60.0
"""Seconds that the server, or nbdkit, has to answer."""
_PAGE = 10000
_PLUGIN = Path(__file__).with_name("imageio_plugin.py")


class Unheard(Refused):
    """A transfer does not have what was asked for."""


class Transfers:
    """The provider.

    Args:
        given: `state`, `checkpoint`, `since`, `cafile`.
        urls: of the transfers, by the names of their disks.
    """

    def __init__(self, given: argparse.Namespace, urls: dict[str, str]) -> None:
        self._given = given
        self._urls = urls
        self._place = tempfile.TemporaryDirectory(prefix="fleece-imageio-")
        self._servers: list[subprocess.Popen[bytes]] = []
        self._token: str | None = None
        self._disks: list[str] = []

    def hello(self) -> Said:
        """What this is."""
        return {"name": "ovirt-imageio", "version": "1", "bases": True}

    def describe(self) -> Said:
        """The disks that have a transfer."""
        base = self._state().get(self._given.since or "", {"disks": []})
        disks = []
        for name in self._urls:
            known = name in base["disks"] and self._dirty(name) is not None
            told = [{"token": base["token"]}] if known else []
            disks.append({"name": name, "size": self._size(name), "bases": told})
        return {"disks": disks}

    def _dirty(self, name: str) -> list[list[int]] | None:
        """What was written since the checkpoint; None: this transfer does not tell."""
        try:
            found = self._extents(name, "dirty")
        except Unheard:
            return None
        return [[each["start"], each["length"]] for each in found if each["dirty"]]

    def _size(self, name: str) -> int:
        last = self._extents(name, "zero")[-1]
        return int(last["start"] + last["length"])

    def _extents(self, name: str, context: str) -> list[Said]:
        found: list[Said] = json.loads(self._ask("GET", name, f"/extents?context={context}"))
        return found

    def _ask(self, method: str, name: str, more: str = "") -> bytes:
        if name not in self._urls:
            raise Refused(f"there is no disk {name}")
        url = self._urls[name]
        trust = None
        if url.startswith("https:"):
            trust = ssl.create_default_context(cafile=self._given.cafile)
        request = urllib.request.Request(url + more, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_LIMIT, context=trust) as answer:
                said: bytes = answer.read()
                return said
        except urllib.error.HTTPError as error:
            kind = Unheard if error.code == http.HTTPStatus.NOT_FOUND else Refused
            raise kind(f"the transfer of disk {name} is refused: {error}") from error
        except OSError as error:
            raise Refused(f"the transfer of disk {name} cannot be read: {error}") from error

    def _state(self) -> Said:
        with contextlib.suppress(FileNotFoundError):
            found: Said = json.loads(Path(self._given.state).read_text())
            return found
        return {}

    def _keep(self, state: Said) -> None:
        """Replace the file as a whole, whatever is killed."""
        new = Path(f"{self._given.state}.new")
        with new.open("w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._given.state)

    def begin(self, request: Said) -> Said:
        """Serve the transfers; the point is the engine's."""
        if self._servers or self._token:
            raise Refused("there is a point already")
        known = {disk["name"]: disk for disk in self.describe()["disks"]}
        for each in request["disks"]:
            if each["name"] not in known:
                raise Refused(f"there is no disk {each['name']}")
            if each["base"] and {"token": each["base"]} not in known[each["name"]]["bases"]:
                raise Refused(f"disk {each['name']} has no base {each['base']}")
        try:
            disks = [self._serve(known[each["name"]], each["base"]) for each in request["disks"]]
        except BaseException:
            self.drop()
            raise
        self._token = request["token"]
        self._disks = [each["name"] for each in request["disks"]]
        return {"disks": disks}

    def _serve(self, disk: Said, base: str | None) -> Said:
        place = Path(self._place.name, f"{len(self._servers)}.sock")
        words = ["nbdkit", "-f", "-r", "--exit-with-parent", "-t", "4", "-U", str(place)]
        words += ["python", str(_PLUGIN)]
        # nbdkit's Python is another one.
        clean = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
        server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=sys.stderr, env=clean)
        self._servers.append(server)
        wish = {"url": self._urls[disk["name"]], "cafile": self._given.cafile}
        assert server.stdin is not None
        with contextlib.suppress(BrokenPipeError), server.stdin:  # it has ended, as is told below
            server.stdin.write(json.dumps(wish).encode())
        end = time.monotonic() + _LIMIT
        while not place.exists():
            if server.poll() is not None or time.monotonic() > end:
                raise Refused(f"nbdkit does not serve disk {disk['name']}")
            time.sleep(0.01)
        uri = f"nbd+unix:///?socket={quote(str(place))}"
        told = {"name": disk["name"], "size": disk["size"], "uri": uri, "base": base}
        return told | {"changes": base is not None}

    def changes(self, disk: str, offset: int) -> Said:
        """What the checkpoint's bitmap calls dirty."""
        dirty = [each for each in self._dirty(disk) or [] if each[0] >= offset]
        more = dirty[_PAGE][0] if len(dirty) > _PAGE else None
        return {"extents": dirty[:_PAGE], "next": more}

    def check(self) -> None:
        """Refuse if a transfer has ended."""
        if not self._servers:
            raise Refused("no point is held")
        if any(server.poll() is not None for server in self._servers):
            raise Refused("an nbdkit has ended")
        for name in self._disks:
            self._ask("OPTIONS", name)

    def commit(self) -> None:
        """Note the checkpoint."""
        if self._token is None:
            raise Refused("there is no point, or it was begun without a token")
        base = {"token": self._token, "disks": self._disks}
        self._keep(self._state() | {self._given.checkpoint: base})
        self.drop()

    def drop(self) -> None:
        """Note nothing."""
        self.close()
        self._token = None

    def close(self) -> None:
        """End the servers."""
        for server in self._servers:
            server.kill()
            server.wait()
        self._servers = []
        with contextlib.suppress(FileNotFoundError):
            for place in Path(self._place.name).iterdir():
                place.unlink()

    def forget(self, bases: list[Said]) -> None:
        """Take disks from the notes; the checkpoints are the engine's to remove."""
        state = self._state()
        for each in bases:
            for base in state.values():
                if base["token"] == each["token"]:
                    base["disks"] = [name for name in base["disks"] if name != each["disk"]]
        self._keep({name: base for name, base in state.items() if base["disks"]})


def _parse() -> Transfers:
    made = argparse.ArgumentParser(prog="provider:ovirt-imageio", fromfile_prefix_chars="@")
    made.add_argument("--state", required=True, help="file of the checkpoints' tokens")
    made.add_argument("--checkpoint", required=True, help="the engine's to_checkpoint_id")
    made.add_argument("--since", help="its from_checkpoint_id; default: all is read")
    made.add_argument("--cafile", help="the certificate of the engine's authority")
    made.add_argument("transfers", nargs="+", metavar="DISK=URL")
    given = made.parse_args()
    urls = dict(word.split("=", 1) for word in given.transfers if "://" in word and "=" in word)
    if len(urls) < len(given.transfers):
        made.error("each disk needs a name of its own and the URL of its transfer: DISK=URL")
    return Transfers(given, urls)


if __name__ == "__main__":
    if shutil.which("nbdkit") is None:
        sys.exit("nbdkit is missing; install the packages nbdkit and nbdkit-plugin-python")
    run(_parse())
