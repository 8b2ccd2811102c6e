"""The verb `boot-test`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.words import BootWords
from fleece.errors import UsageError


def boot_test(output: Output, cancel: CancelToken, words: BootWords) -> None:
    """`fleece boot-test STORE POINT`."""
    if not words.limit > 0:
        raise UsageError("--timeout must be more than 0 seconds")
    if words.kernel is None and (words.initrd, words.append) != (None, None):
        raise UsageError("--initrd and --append need --kernel")
    if words.permissions is not None and (words.screenshot, words.console) == (None, None):
        raise UsageError("--mode needs --screenshot or --console-log")
    store = fleece.open_store(words.store, words.secret, cancel)
    disks = tuple(dict.fromkeys(words.disks))
    result = fleece.boot_test(
        store, words.point, disks, _wish(words), _machine(words), output.listen, cancel
    )
    sign = "its agent answered" if result.sign == "agent" else f"{words.text!r} came on the console"
    roots = [f"{disk.disk}: root {disk.root}" for disk in result.disks]
    output.succeed(
        [*roots, f"point {result.point} has booted: {sign} after {result.seconds:.1f} s"],
        **(asdict(result) | {"disks": [{"disk": d.disk, "root": d.root} for d in result.disks]}),
        screenshot=words.screenshot,
        console_log=words.console,
    )


def _wish(words: BootWords) -> fleece.BootWish:
    return fleece.BootWish(
        text=words.text,
        limit=words.limit,
        screenshot=_path(words.screenshot),
        console=_path(words.console),
        mode=words.permissions,
        guest=words.guest,
        scratch=_path(words.scratch),
    )


def _machine(words: BootWords) -> fleece.BootMachine:
    return fleece.BootMachine(
        memory=words.memory,
        processors=words.processors,
        emulated=words.emulated,
        bus=words.bus,
        firmware=_path(words.firmware),
        kernel=_path(words.kernel),
        initrd=_path(words.initrd),
        append=words.append,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
