"""libnbd's bindings: only the real ones will do, and their absence is explained."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from fleece.errors import ExitCode, UsageError
from fleece.nbd.binding import libnbd
from fleece.nbd.uri import is_uri, unix_uri


def test_a_module_of_the_same_name_that_is_not_libnbd_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nbd", ModuleType("nbd"))
    with pytest.raises(UsageError, match=r"PyPI's notebook tool.*pip uninstall nbd") as caught:
        libnbd()
    assert caught.value.code is ExitCode.USAGE


def test_a_module_with_an_nbd_class_of_its_own_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = ModuleType("nbd")
    fake.__dict__["NBD"] = object
    fake.__file__ = "/somewhere/nbd/__init__.py"
    monkeypatch.setitem(sys.modules, "nbd", fake)
    with pytest.raises(UsageError, match=r"^/somewhere/nbd/__init__\.py: this module is"):
        libnbd()


def test_missing_bindings_are_a_usage_error_that_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nbd", None)
    with pytest.raises(UsageError, match="python3-libnbd"):
        libnbd()


def test_the_real_bindings_are_taken() -> None:
    pytest.importorskip("nbd")
    assert hasattr(libnbd().NBD, "block_status")


@pytest.mark.parametrize(
    "text", ["nbd://host", "nbds://host:1/x", "nbd+unix:///x?socket=/y", "nbds+unix:///?socket=y"]
)
def test_nbd_uris_are_told_from_files(text: str) -> None:
    assert is_uri(text)
    assert not is_uri(f"./{text}")
    assert not is_uri(text.replace("://", ":", 1))


def test_an_export_name_cannot_break_out_of_its_uri() -> None:
    assert unix_uri("/run/a b?c", "x/y?z&socket=q") == (
        "nbd+unix:///x%2Fy%3Fz%26socket%3Dq?socket=/run/a%20b%3Fc"
    )
