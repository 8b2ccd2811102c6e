"""A sink that hands over what nobody wrote: the point does not count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engine.scene import MIB, Mutation, Scene

_PACKED = "_REQUEST.pack(request.zero, request.disk, request.offset, request.length)"
_LIES = {
    "another disk": _PACKED.replace("request.disk", "request.disk + 9"),
    "too long": _PACKED.replace("request.length", "request.length + (1 << 20)"),
    "far away": _PACKED.replace("request.offset", "request.offset + (1 << 62)"),
    "garbage": 'b"\\xa5" * _REQUEST.size',
    "zeros instead": 'b"\\1" + bytes(_REQUEST.size - 1)',
}


@pytest.mark.parametrize("said", _LIES)
def test_what_a_sink_says_wrong_loses_the_point(said: str, scene: Scene, tmp_path: Path) -> None:
    scene.take()
    scene.writer().write(0, os.urandom(2 * MIB))
    lie = Mutation(said, (("nbd/handover.py", _PACKED, _LIES[said]),))
    ran = lie.engine(tmp_path).run(*scene.words("--transport", "push"))
    ran.failed(4)
    scene.nothing_left()
    assert scene.take("incremental").disks[0].dirty_bytes == 2 * MIB
    scene.check_exact()
