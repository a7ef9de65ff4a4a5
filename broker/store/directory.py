"""A data directory: made with private permissions, and held by one process at a time."""

import os
from pathlib import Path
from typing import Final

from ..errors import StoreError

LOCK_NAME: Final = "lock"

try:
    import fcntl
except ImportError:  # pragma: no cover - not a POSIX system
    fcntl = None  # type: ignore[assignment]


class Directory:
    """Holds the lock of ``path`` until ``release``; the system lets go of it if the process dies.

    Raises StoreError if the directory cannot be made or another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.is_dir():
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
                _flush(path.parent)  # or the directory itself might not outlive a power cut
            self._lock: int | None = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"data directory {path}: {error.strerror}") from None
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            self.release()
            raise StoreError(
                f"data directory {path} is in use by another broker{f' (process {holder})' if holder else ''}; "
                "stop it or choose another directory"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _flush(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
