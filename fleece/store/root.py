"""A store's folder: the one door to all that lies in it.

Whoever can write into a store must not have another file of the host read or written through it.
So what lies in it is opened name by name from the store's own folder down, and no link is followed
(`fleece.folder`). Links on the way to the store are the user's own affair.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleece.delta.blob import Blob
from fleece.fileblob import FileBlob
from fleece.folder import PRIVATE_FILE, Folder


@dataclass(frozen=True)
class Root:
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
    def holding(self, path: str | os.PathLike[str]) -> Iterator[tuple[Folder, str]]:
        """The folder that a path of the store lies in, and its name there."""
        *above, name = self.names(path)
        with self.folder(*above) as folder:
            yield folder, name

    def blob(self, path: str) -> Blob:
        """A delta of the store, open to be read.

        Raises:
            DeltaError: it cannot be opened, or it is no regular file.
        """

        def opened() -> int:
            with self.holding(path) as (folder, name):
                return folder.file(name)

        return FileBlob(path, opened)

    def has(self, path: str | os.PathLike[str]) -> bool:
        """Whether anything has a path."""
        try:
            with self.holding(path) as (folder, name):
                return folder.has(name)
        except FileNotFoundError:
            return False

    def names(self, path: str | os.PathLike[str]) -> tuple[str, ...]:
        """The names that lead from the store to a path in it."""
        try:
            names = Path(path).relative_to(self.path).parts
        except ValueError:
            names = ()
        if not names or ".." in names:
            raise OSError(errno.EINVAL, f"is not in the store {self.path}", os.fspath(path))
        return names
