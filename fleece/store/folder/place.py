"""A store's folder, from which all that lies in it is opened name by name, no link followed."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleece.folder import PRIVATE_FILE, Folder


@dataclass(frozen=True)
class Place:
    """Where a store is, and who may see what is made in it.

    Its methods raise `OSError`, with the whole path (`fleece.store.errors`).

    Attributes:
        path: of the store.
        mode: permissions of its files.
    """

    path: Path
    mode: int = PRIVATE_FILE

    @property
    def folder_mode(self) -> int:
        """Permissions of its folders: who can read files can enter them."""
        return self.mode | (self.mode & 0o444) >> 2

    @contextlib.contextmanager
    def folder(self, *names: str) -> Iterator[Folder]:
        """The store's folder, or the one that some names lead to from there."""
        with contextlib.ExitStack() as stack:
            found = stack.enter_context(Folder.open(self.path))
            for name in names:
                found = stack.enter_context(found.folder(name))
            yield found

    @contextlib.contextmanager
    def made_folder(self, name: str) -> Iterator[Folder]:
        """A folder in the store's, made if nothing has the name."""
        with self.folder() as root:
            with contextlib.suppress(FileExistsError):
                if not root.has(name):
                    root.make_folder(name, self.folder_mode).close()
                    root.sync()
            with root.folder(name) as made:
                yield made

    @contextlib.contextmanager
    def holding(self, key: str) -> Iterator[tuple[Folder, str]]:
        """The folder that a key leads to, and its last name."""
        *above, name = self.names(key)
        with self.folder(*above) as folder:
            yield folder, name

    def names(self, key: str) -> tuple[str, ...]:
        """The names that a key is made of."""
        names = tuple(key.split("/"))
        if not {"", ".", ".."}.isdisjoint(names):
            raise OSError(errno.EINVAL, f"is not in the store {self.path}", key)
        return names
