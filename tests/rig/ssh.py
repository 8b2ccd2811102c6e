"""A host that is reached by ssh: a server on this one, in whatever mount namespace."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
"""
_ADDRESS = "127.0.0.1"


@contextmanager
def libvirt_over_ssh(folder: Path, inside: Sequence[str]) -> Iterator[str]:
    """The URI of a libvirt in system mode by ssh, for as long as the context lasts.

    Args:
        folder: of the server's files.
        inside: what a program is started by to which that libvirt is its host's.
    """
    for name in ("host", "user"):
        run_checked("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    with socket.socket() as probe:
        probe.bind((_ADDRESS, 0))
        port = probe.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(_SERVER.format(address=_ADDRESS, port=port, folder=folder))
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
        ways = f"command={quote(str(client))}&proxy=native"
        yield f"qemu+ssh://root@{_ADDRESS}:{port}/system?{ways}"
    finally:
        server.kill()
