"""How the state of an emulated TPM is put where libvirt has it.

The user that swtpm runs as must own it: `swtpm_user` of qemu.conf, else tss if there is one, else
root (libvirt 9.0, `virQEMUDriverConfigNew`). When it is there libvirt makes no new TPM.
"""

from __future__ import annotations

import contextlib
import grp
import io
import os
import pwd
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fleece.delta.part import LARGEST
from fleece.errors import StoreError, TargetError
from fleece.there import is_taken

_CONFIGURATION = Path("/etc/libvirt/qemu.conf")
_USUAL = "tss"
_MOST_FILES = 64
_PRIVATE = 0o700
_PASSABLE = 0o711


@dataclass(frozen=True)
class StateFolder:
    """Where the state of a guest's TPM is.

    Attributes:
        path: of the folder.
        owner: user and group that it must have; None: this user.
    """

    path: Path
    owner: tuple[int, int] | None


def state_folder(path: Path, *, of_system: bool) -> StateFolder:
    """A place of a TPM's state, which this user may write.

    Args:
        path: of it.
        of_system: the libvirt is the host's own.

    Raises:
        TargetError: this user may not write there.
    """
    if not of_system:
        return StateFolder(path, None)
    if os.geteuid() != 0:
        raise TargetError(
            "the guest has a TPM, and only root may put its state there",
            where=path.parents[1],
            hint="run fleece as root",
        )
    return StateFolder(path, _owner())


def _owner() -> tuple[int, int]:
    """User and group that swtpm runs as."""
    try:
        text = _CONFIGURATION.read_text(errors="replace")
    except OSError:
        text = ""
    said = dict(re.findall(r'(?m)^\s*(swtpm_user|swtpm_group)\s*=\s*"?([^"\s#]+)', text))
    user, group = said.get("swtpm_user", _USUAL), said.get("swtpm_group", _USUAL)
    return _number(user, lambda name: pwd.getpwnam(name).pw_uid), _number(
        group, lambda name: grp.getgrnam(name).gr_gid
    )


def _number(name: str, look: Callable[[str], int]) -> int:
    if name.lstrip("+").isdecimal():
        return int(name.lstrip("+"))
    try:
        return look(name)
    except KeyError:
        return 0


def state_files(archive: bytes) -> dict[str, bytes]:
    """The files of a TPM's state, by name, out of the archive that a point has of it.

    Raises:
        StoreError: it is no such archive.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                name = member.name.removeprefix("./")
                source = tar.extractfile(member) if member.isreg() else None
                plain = name and "/" not in name and name not in (".", "..", ".lock")
                if source is None or not plain or len(found) >= _MOST_FILES:
                    raise StoreError(f"the TPM's state has no place for {member.name!r}")
                if member.size > LARGEST:
                    raise StoreError(f"the TPM's state is too large ({member.name!r})")
                found[name] = source.read()
    except tarfile.TarError as error:
        raise StoreError(f"the TPM's state is no archive ({error})") from error
    return found


def check_free(place: StateFolder, *, force: bool) -> None:
    """See that no TPM's state is replaced that must not be.

    Raises:
        TargetError: one would be, or that cannot be told.
    """
    with _placing(place):
        if not force and is_taken(place.path):
            raise TargetError(
                "is the state of a TPM already", where=place.path, hint="--force replaces it"
            )


@contextlib.contextmanager
def _placing(place: StateFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetError(
            f"the TPM's state cannot be put there ({error.strerror})", where=place.path
        ) from error


@contextlib.contextmanager
def placed_state(place: StateFolder, files: dict[str, bytes], *, force: bool) -> Iterator[None]:
    """Put a TPM's state in its place; if the context fails, what was there is back.

    Raises:
        TargetError: there is one already, or it cannot be written.
    """
    token = secrets.token_hex(4)
    new = place.path.with_name(f"{place.path.name}.new-{token}")
    old = place.path.with_name(f"{place.path.name}.old-{token}")
    with contextlib.ExitStack() as undo:
        with _placing(place):
            made_parent = not is_taken(place.path.parent)
            place.path.parent.mkdir(parents=True, exist_ok=True)
            if made_parent:
                undo.callback(_remove_empty, place.path.parent)
                place.path.parent.chmod(_PASSABLE)
            undo.callback(shutil.rmtree, new, ignore_errors=True)
            _write(new, files, place.owner)
            check_free(place, force=force)
            if is_taken(place.path):
                place.path.rename(old)
                undo.callback(old.rename, place.path)
            new.rename(place.path)
            undo.callback(shutil.rmtree, place.path, ignore_errors=True)
        yield
        undo.pop_all()
        shutil.rmtree(old, ignore_errors=True)


def _write(folder: Path, files: dict[str, bytes], owner: tuple[int, int] | None) -> None:
    folder.mkdir(mode=_PRIVATE)
    for name, data in files.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
            if owner is not None:
                os.fchown(descriptor, *owner)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
