"""A host that is reached by ssh: a server on this one, in whatever mount namespace."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.rig.libvirt import until
from tests.rig.process import Child, run_checked

_SERVER = """\
ListenAddress {address}:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PidFile none
PermitRootLogin prohibit-password
SetEnv PATH={path}
"""
_ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class FarHost:
    """A host that is reached by ssh.

    Attributes:
        client: the program that is run as ssh.
        login: its user and name.
        port: of its server.
    """

    client: Path
    login: str
    port: int

    @property
    def libvirt(self) -> str:
        """The URI of its libvirt."""
        ways = f"command={quote(str(self.client))}&proxy=native"
        return f"qemu+ssh://{self.login}:{self.port}/system?{ways}"

    def run(self, *words: object) -> str:
        """Run a command there; gives what it printed."""
        command = shlex.join(map(str, words))
        return run_checked(self.client, "-p", str(self.port), self.login, command)

    def store(self, path: Path) -> str:
        """A store there, as fleece calls it; FLEECE_RSH must be `client`."""
        return f"ssh://{self.login}:{self.port}{path}"


@contextmanager
def far_host(folder: Path, inside: Sequence[str]) -> Iterator[FarHost]:
    """A host that is there for as long as the context lasts. It has this fleece.

    Args:
        folder: of the server's files.
        inside: what a program is started by to which things are as they are on that host.
    """
    for name in ("host", "user"):
        run_checked("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    with socket.socket() as probe:
        probe.bind((_ADDRESS, 0))
        port = probe.getsockname()[1]
    config = folder / "sshd_config"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    config.write_text(_SERVER.format(address=_ADDRESS, port=port, folder=folder, path=path))
    os.makedirs("/run/sshd", exist_ok=True)  # which it needs to start
    client = folder / "ssh"
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    words = " ".join(f"-o {option}" for option in options)
    client.write_text(
        f'#!/bin/sh\nexec ssh -F none {words} -i {shlex.quote(str(folder / "user"))} "$@"\n'
    )
    client.chmod(0o755)
    server = Child(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], folder / "log", prefix=inside)
    try:
        until(lambda: "listening" in (folder / "log").read_text(), "sshd")
        yield FarHost(client, f"root@{_ADDRESS}", port)
    finally:
        server.kill()
