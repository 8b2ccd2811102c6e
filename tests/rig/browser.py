"""A real browser without a screen: what a page looks like, and what it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

PROGRAM = "/usr/bin/chromium-headless-shell"


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, as Debian has it."""
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


def shown(page: Page, file: Path) -> list[str]:
    """Load a file into a page; gives all that the page asked for, and said, on its way."""
    told: list[str] = []
    page.on("request", lambda asked: told.append(asked.url))
    page.on("console", lambda said: told.append(f"console: {said.text}"))
    page.on("dialog", lambda dialog: told.append(f"dialog: {dialog.message}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.goto(file.as_uri())
    return told
