"""Every storage that there is keeps the promises of `fleece.store.backend`."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleece.store.backend import Backend
from fleece.store.folder.backend import FolderBackend
from fleece.store.remote.backend import SHELL_VARIABLE, RemoteBackend
from fleece.store.s3.backend import S3Backend
from fleece.store.s3.client.address import Address
from fleece.store.s3.client.bucket import Bucket
from fleece.store.s3.client.retry import Perseverance
from fleece.testing.backend import BackendContract
from tests.contract.memory import MemoryBackend
from tests.contract.shell import shell
from tests.rig.s3 import SeaweedFs, settings_at


class TestFolder(BackendContract):
    """A folder."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        return FolderBackend(tmp_path / "store")


class TestRemote(BackendContract):
    """A folder that another fleece serves, over its standard streams."""

    @pytest.fixture
    def backend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
        monkeypatch.setenv(SHELL_VARIABLE, str(shell(tmp_path)))
        return RemoteBackend(f"ssh://host{tmp_path}/store")


class TestMemory(BackendContract):
    """What shows that the promises are about no folder."""

    @pytest.fixture
    def backend(self) -> Backend:
        return MemoryBackend()

    def reopened(self, backend: Backend) -> Backend:
        """It is gone with its process."""
        return backend


@pytest.fixture
def environment(seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server, where users name it."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment")
class TestBucket(BackendContract):
    """A bucket."""

    resumes = False
    locked = False

    @pytest.fixture
    def backend(self, seaweedfs: SeaweedFs) -> Backend:
        self.port = seaweedfs.port
        return S3Backend(seaweedfs.bucket(locked=self.locked))

    def hurried(self, backend: Backend) -> Backend:
        """Each call is tried once."""
        name = backend.address.removeprefix("s3://")
        once = Perseverance(seconds=0, strange=0)
        return S3Backend(Bucket(Address(name), settings_at(self.port, name), once))


class TestLockedBucket(TestBucket):
    """A bucket with versions and object lock, which locks nothing by itself."""

    locked = True
