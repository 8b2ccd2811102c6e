"""Fixtures of these tests: those of the engine's."""

from __future__ import annotations

from tests.engine.conftest import pair, scene

__all__ = ["pair", "scene"]
