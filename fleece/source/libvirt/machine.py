"""The machine of a guest of libvirt's: its definition, its UEFI variables, the state of its TPM."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from xml.etree.ElementTree import Element

from fleece.delta.part import Part, PartKind
from fleece.errors import FleeceError
from fleece.source.base import Machine
from fleece.source.libvirt.domain import Domain
from fleece.source.libvirt.places import tpm_state, variables
from fleece.source.still import Mark, file_at_rest, folder_at_rest, mark_of

Marks = Mapping[PartKind, Mark]
"""Of the files that a machine's parts are read from."""


def marks_of(domain: Domain) -> Marks:
    """What tells later whether the files of the guest's machine have been written since.

    What cannot be looked at has none; `machine_of` says why.
    """
    found = {}
    for kind, place in _PLACES.items():
        with contextlib.suppress(FleeceError, ValueError):
            if (path := place(domain)) is not None:
                found[kind] = mark_of(path)
    return found


def machine_of(domain: Domain, before: Marks | None = None) -> Machine:
    """The guest's machine, as it is now.

    The definition is the one that the guest would start with next; libvirt leaves passwords out of
    it and tells of secrets only which they are. NVRAM and TPM state are files, which QEMU and swtpm
    write when the guest does: each is read until it comes out the same twice, and so is as of a
    moment just after the point.

    Args:
        domain: the guest.
        before: marks of just before the point; None: nobody writes, or it is not known.
    """
    parts, missing = [], []

    def part(kind: PartKind, told: Callable[[], bytes | None]) -> None:
        try:
            data = told()
        except (FleeceError, OSError, ValueError) as error:
            missing.append(f"{kind}: {_reason(error)}")
        else:
            if data is not None:
                parts.append(Part(kind, data))

    part(PartKind.LIBVIRT_XML, lambda: domain.saved_definition().encode())
    part(PartKind.NVRAM, lambda: _nvram(domain))
    part(PartKind.TPM, lambda: _tpm(domain))
    written: Iterable[PartKind] = () if before is None else _written(before, marks_of(domain))
    told = {each.kind for each in parts}
    return Machine(tuple(parts), tuple(missing), tuple(kind for kind in written if kind in told))


def _written(before: Marks, now: Marks) -> Iterator[PartKind]:
    return (kind for kind in now if kind in before and now[kind] != before[kind])


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename} cannot be read ({error.strerror})"
    return str(error)


def _nvram(domain: Domain) -> bytes | None:
    """The file of the UEFI variables; None: the guest has none, or none yet."""
    path = _nvram_path(domain)
    if path is None:
        return None
    try:
        return file_at_rest(path)
    except FileNotFoundError:
        if domain.is_active():
            raise
        return None  # libvirt makes it when the guest is first started


def _nvram_path(domain: Domain) -> str | None:
    """Where the UEFI variables are; None: the guest has none.

    For a guest that only says that it wants UEFI libvirt chooses the firmware anew at each start.
    While that is off it does not tell where the variables are: in its own place.
    """
    root = domain.definition()
    told, stateless = root.find("os/nvram"), root.find("os/loader[@stateless='yes']")
    if told is None:
        if root.find("os[@firmware='efi']") is None or stateless is not None:
            return None
        return str(variables(domain.name, of_system=not domain.is_of_session()))
    source = told.find("source")
    path = (told.text or "").strip() if source is None else source.get("file", "")
    if not path:
        raise ValueError("only variables that are in a file can be kept")
    return path


def _tpm(domain: Domain) -> bytes | None:
    """The files of swtpm; None: the guest has no emulated TPM, or it was never started."""
    path = _tpm_path(domain)
    if path is None:
        return None
    try:
        return folder_at_rest(path, _is_state)
    except FileNotFoundError:
        if domain.is_active():
            raise
        return None


def _is_emulated(tpm: Element) -> bool:
    backend = tpm.find("backend")
    return backend is not None and backend.get("type") == "emulator"


def _tpm_path(domain: Domain) -> str | None:
    """Where a guest's swtpm has its state: what the definition says, or libvirt's own place.

    None: the guest has no emulated TPM.
    """
    found = [each for each in domain.definition().iterfind("devices/tpm") if _is_emulated(each)]
    if not found:
        return None
    tpm = found[0]
    source = tpm.find("backend/source")
    if source is not None:
        named = source.get("path", "")
        if source.get("type") != "dir" or not named:
            raise ValueError("only a TPM whose state is in a folder can be kept")
        return named
    backend = tpm.find("backend")
    version = None if backend is None else backend.get("version")
    return str(tpm_state(domain.uuid, version, of_system=not domain.is_of_session()))


def _is_state(name: str) -> bool:
    """Whether a file of swtpm's is part of its state: no lock, and nothing half written.

    It writes into a file that begins with TMP, and renames that (swtpm_nvstore_dir.c).
    """
    return not name.startswith((".", "TMP"))


_PLACES: Mapping[PartKind, Callable[[Domain], str | None]] = {
    PartKind.NVRAM: _nvram_path,
    PartKind.TPM: _tpm_path,
}
