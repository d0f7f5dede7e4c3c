"""The lock that keeps a second process off the data folder.

The operating system releases it when the process ends, however it ends. The file stays behind and
says which process held it last; it means nothing by itself.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

from pds.errors import Unavailable

LOCK_NAME: Final = "lock"


class FolderLock:
    """An exclusive lock on a folder, held from creation until `release`."""

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise Unavailable(f"{folder} is in use by process {holder}") from error
        os.truncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let others have the folder."""
        os.close(self._fd)
