"""The script that nbdkit's Python plugin runs for `fleece serve`: nbdkit's words, no thought.

The interpreter is the one that nbdkit embeds. It knows nothing of fleece until it has read, from
standard input, where Python's packages are, and then what to serve (`fleece.engine.serve.serve`):
two lines, so that the packages are loaded while the parent still reads the store. So nothing about
the store, and no key, is ever on a command line.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import nbdkit

if TYPE_CHECKING:
    from fleece.disk.chain import ChainDisk
    from fleece.engine.serve.plugin_exports import Exports

API_VERSION = 2

_HINT = (
    "install fleece into an environment of the Python that the distribution's nbdkit is made for"
)


class _State:
    exports: Exports
    socket: str
    folder: str | None


def config_complete() -> None:
    """Load fleece, then read the wish and open the chains."""
    said = json.loads(sys.stdin.readline())
    mine = [*sys.version_info[:2]]
    if mine != said["python"]:
        versions = (".".join(map(str, version)) for version in (mine, said["python"]))
        _refuse("nbdkit's plugin is Python {}, fleece runs on Python {}".format(*versions))
    _State.socket, _State.folder = said["socket"], said["folder"]
    sys.path[:] = said["path"]
    try:
        from fleece.engine.serve.plugin_exports import Exports, Report, Wish

        for name in said["modules"]:
            importlib.import_module(name)
    except ImportError as error:
        _refuse(f"nbdkit's Python cannot load fleece ({error})")
    line = sys.stdin.readline()
    if not line:
        raise RuntimeError("the parent has given up")
    try:
        _State.exports = Exports(Wish(**json.loads(line)))
    except Exception as error:
        Report.of("failed", error).send()
        raise


def _refuse(what: str) -> NoReturn:
    """Fail as `plugin_exports.Report` would, which is not there yet; exit code 2: usage."""
    report = {"fleece": "failed", "where": None, "what": what, "hint": _HINT, "code": 2}
    os.write(2, (json.dumps(report) + "\n").encode())
    raise RuntimeError(what)


def thread_model() -> int:
    """Any number of reads at once: libzstd works outside the interpreter's lock."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def list_exports(readonly: bool, is_tls: bool) -> list[str]:
    """The disks' names."""
    return _State.exports.names


def open(readonly: bool) -> ChainDisk:
    """The disk of the export that the client named."""
    try:
        return _State.exports.disk(nbdkit.export_name())
    except Exception:
        nbdkit.set_error(errno.ENOENT)
        raise


def get_size(disk: ChainDisk) -> int:
    """In bytes."""
    return disk.size


def block_size(disk: ChainDisk) -> tuple[int, int, int]:
    """Least, preferred (a leaf) and largest request."""
    return 1, 64 * 1024, 32 * 1024 * 1024


def can_multi_conn(disk: ChainDisk) -> bool:
    """All connections see the same bytes."""
    return True


def can_extents(disk: ChainDisk) -> bool:
    """Block status is known."""
    return True


def extents(disk: ChainDisk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """What is zero, for `base:allocation`."""
    zeros = nbdkit.EXTENT_ZERO | nbdkit.EXTENT_HOLE
    found = _State.exports.extents(disk, offset, count)
    return [(start, length, zeros if zero else 0) for start, length, zero in found]


def pread(disk: ChainDisk, buffer: memoryview, offset: int, flags: int) -> None:
    """Read, every byte checked."""
    try:
        _State.exports.read(disk, buffer, offset)
    except Exception:
        nbdkit.set_error(errno.EIO)
        raise


def cleanup() -> None:
    """Leave nothing behind, even if the parent was killed."""
    with contextlib.suppress(OSError):
        os.unlink(_State.socket)
        if _State.folder is not None:
            os.rmdir(_State.folder)
