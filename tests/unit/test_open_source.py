"""A source is opened by its scheme, and no kind of source is loaded before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fleece


@pytest.mark.parametrize("text", ["", "qmp", "qmp:", "/run/web1.qmp", "nfs:/run/web1.qmp", "QMP:x"])
def test_a_source_of_no_known_scheme_is_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(fleece.UsageError, match="a source is written qmp:SOCKET"):
        fleece.open_source(text)


def test_a_socket_that_is_not_there_is_an_error_of_the_source(tmp_path: Path) -> None:
    options = fleece.SourceOptions(scratch=tmp_path)
    with pytest.raises(fleece.SourceError):
        fleece.open_source(f"qmp:{tmp_path}/none.qmp", options)


def test_a_freeze_that_nobody_is_asked_for_is_refused() -> None:
    with pytest.raises(fleece.UsageError, match="none is asked for"):
        fleece.open_source("qmp:/none", fleece.SourceOptions(require_freeze=True))


def test_no_kind_of_source_is_loaded_before_it_is_asked_for() -> None:
    code = "import sys, fleece; fleece.open_source; fleece.backup; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "fleece.source.open" in loaded
    assert not {name for name in loaded if name.startswith(("fleece.source.qemu", "qemu"))}
