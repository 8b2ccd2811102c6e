"""Give a file its name when it is whole, unless something has that name."""

from __future__ import annotations

import errno
import os

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What file systems without hard links answer; ENOSYS is FUSE's."""


def name_new(
    path: str | os.PathLike[str], name: str | os.PathLike[str], folder: int | None = None
) -> None:
    """Give a file, or a symbolic link, a name that must be free.

    The old name may stay: the caller removes it. Where the file system has no hard links it is
    renamed, and of two who do that at the same moment the second one's holds.

    Args:
        path: what it is called now.
        name: what it shall be called.
        folder: descriptor of the folder that both are relative to; None: the working one.

    Raises:
        FileExistsError: something has the name.
        OSError: it cannot be done.
    """
    try:
        os.link(path, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if _is_there(name, folder):
            raise FileExistsError(
                errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(name)
            ) from None
        os.rename(path, name, src_dir_fd=folder, dst_dir_fd=folder)


def _is_there(name: str | os.PathLike[str], folder: int | None) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True
