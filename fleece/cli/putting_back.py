"""The verb `restore-guest`: a whole guest, into libvirt or beside a script."""

from __future__ import annotations

from dataclasses import asdict

import fleece
from fleece.cancel import CancelToken
from fleece.cli.output import Output
from fleece.cli.words import RestoreGuestWords
from fleece.errors import UsageError


def restore_guest(output: Output, cancel: CancelToken, words: RestoreGuestWords) -> None:
    """`fleece restore-guest STORE POINT TARGETDIR`."""
    wished = words.target_format
    result = fleece.restore_guest(
        fleece.open_store(words.store, words.secret, cancel),
        words.point,
        words.folder,
        fleece.GuestOptions(
            guest=words.guest,
            name=words.name,
            keep_identity=words.keep_identity,
            connect=words.connect,
            script=words.script,
            trusted=words.trusted,
            places=_places(words.places),
            image_format=None if wished is None else fleece.ImageFormat(wished),
            start=words.start,
            force=words.force,
        ),
        output.listen,
        cancel,
    )
    lines = [f"{disk.target}: root {disk.root}, read back and compared" for disk in result.disks]
    state = ", and it is running" if result.started else ""
    fields = {key: value for key, value in asdict(result).items() if key != "told"}
    output.succeed([*lines, f"{result.told}{state}"], **fields)


def _places(given: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for disk, path in given:
        if disk in found:
            raise UsageError("--map names it twice", where=f"disk {disk}")
        found[disk] = path
    return found
