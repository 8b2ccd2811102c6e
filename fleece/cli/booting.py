"""The verb `boot-test`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.errors import UsageError


def boot_test(
    output: Output,
    cancel: CancelToken,
    store: str,
    point: str,
    disks: list[str],
    guest: str | None,
    text: str | None,
    limit: float,
    screenshot: str | None,
    console: str | None,
    permissions: int | None,
    scratch: str | None,
    secret: fleece.Secret | None,
    **machine: object,
) -> None:
    """`fleece boot-test STORE POINT`."""
    if not limit > 0:
        raise UsageError("--timeout must be more than 0 seconds")
    if machine["kernel"] is None and (machine["initrd"], machine["append"]) != (None, None):
        raise UsageError("--initrd and --append need --kernel")
    if permissions is not None and (screenshot, console) == (None, None):
        raise UsageError("--mode needs --screenshot or --console-log")
    result = fleece.boot_test(
        fleece.open_store(store, secret),
        point,
        tuple(dict.fromkeys(disks)),
        guest=guest,
        wish=fleece.BootWish(text, limit, _path(screenshot), _path(console), permissions),
        machine=fleece.BootMachine(**machine),  # type: ignore[arg-type]
        scratch=_path(scratch),
        listener=output.listen,
        cancel=cancel,
    )
    sign = "its agent answered" if result.sign == "agent" else f"{text!r} came on the console"
    roots = [f"{disk.disk}: root {disk.root}" for disk in result.disks]
    output.succeed(
        [*roots, f"point {result.point} has booted: {sign} after {result.seconds:.1f} s"],
        **(asdict(result) | {"disks": [{"disk": d.disk, "root": d.root} for d in result.disks]}),
        screenshot=screenshot,
        console_log=console,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
