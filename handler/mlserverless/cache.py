"""Artifacts on a disk that the processes of one machine share: each is downloaded once.

A complete file has its final name, and is used only while a living process holds a lock on it. A
file that a dead process has left is not trusted, but replaced. The part of an interrupted download
has the suffix `.part`, and is continued under the same rule. Processes wait for each other on a
lock that the kernel releases when its process dies. Nothing is synced to disk: a machine that stops
loses the files and all processes that could read them.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final

from mlserverless.errors import Unavailable

_PAUSE: Final = 0.005  # seconds between two looks whether a lock is free


class Interrupted(Unavailable):
    """A download ended early; the bytes that have arrived are correct, and it can be continued."""


class Cache:
    """A folder of this user's own below `folder`, for objects by name and version."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, f"mlserverless-{os.geteuid()}")
        self._kept: dict[str, tuple[str, BinaryIO]] = {}  # what this process holds, by name

    def __del__(self) -> None:
        for _, holder in self._kept.values():
            holder.close()

    def open(
        self, name: str, version: str, size: int, fill: Callable[[BinaryIO], None], wait: float
    ) -> BinaryIO | None:
        """Return an object's bytes, `size` of them, or None if the disk cannot hold them.

        One process at a time calls `fill`, which writes them from the file's position on; what it
        raises is raised. If that is Interrupted, the bytes are retained and the next call
        continues after them. The other processes wait, at most `wait` seconds; then Unavailable
        is raised. `fill` must not write after it has ended.
        """
        stem = os.path.join(self._folder, _digest(name))
        path = f"{stem}-{_digest(version)}"
        try:
            self._make_folder()
            with _locked(f"{stem}.lock", wait):
                self._keep(name, path, _open_held(path) or self._fill(name, path, size, fill))
                return open(path, "rb")
        except OSError:  # full, read-only, or somebody else's
            return None

    def _make_folder(self) -> None:
        """Ours alone; PermissionError where others could have written what is unpickled."""
        with suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        status = os.lstat(self._folder)
        if status.st_uid != os.geteuid() or status.st_mode & 0o177077 != 0o040000:
            raise PermissionError

    def forget(self, name: str) -> None:
        """Close and delete what this process holds of an object."""
        path, holder = self._kept.pop(name, ("", None))
        if holder is not None:
            holder.close()
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _fill(self, name: str, path: str, size: int, fill: Callable[[BinaryIO], None]) -> BinaryIO:
        """Return the file, filled now and held."""
        part = f"{path}.part"
        file = _open_part(part, size)
        try:
            received = file.seek(0, os.SEEK_END)
            # A part has its whole length while it is filled: if the process dies then, the other
            # processes can tell.
            os.ftruncate(file.fileno(), size)
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk fails before S3 is called
            file.seek(received)
            fill(file)
            os.replace(part, path)
        except Interrupted:
            file.truncate()
            self._keep(name, part, file)
            raise
        except BaseException:
            file.close()
            os.unlink(part)
            if self._kept.get(name, ("", None))[0] == part:
                self.forget(name)
            raise
        return file

    def _keep(self, name: str, path: str, holder: BinaryIO) -> None:
        """Hold a version as long as this process lives, or until it holds the next one."""
        old_path, old = self._kept.get(name, (path, None))
        self._kept[name] = path, holder
        if old is not None:
            old.close()
        if old_path != path:
            with suppress(FileNotFoundError):
                os.unlink(old_path)


def _digest(text: str) -> str:
    import hashlib  # noqa: PLC0415 - INIT must not pay for it

    return hashlib.sha256(text.encode()).hexdigest()


def _locks(file: BinaryIO, how: int) -> bool:
    """Whether the lock is to be had at once."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(path: str, wait: float) -> Iterator[None]:
    until = time.monotonic() + wait
    with open(path, "ab") as file:
        while not _locks(file, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise Unavailable("another process is still downloading this model")
            time.sleep(_PAUSE)
        yield


def _open_held(path: str, mode: str = "rb") -> BinaryIO | None:
    """Open and hold a file that a living process holds; return None if no process does."""
    try:
        file: BinaryIO = open(path, mode, buffering=0)  # type: ignore[assignment] # noqa: SIM115 - an open file holds it
    except FileNotFoundError:
        return None
    if _locks(file, fcntl.LOCK_EX) or not _locks(file, fcntl.LOCK_SH):
        file.close()
        return None
    return file


def _open_part(part: str, size: int) -> BinaryIO:
    """Open the part of an object that an interrupted download has left, else an empty file.

    It is trusted if a living process holds it, and if no process died while it filled it.
    """
    file = _open_held(part, "rb+")
    if file is not None:
        if os.fstat(file.fileno()).st_size < size:
            return file
        file.close()
    with suppress(FileNotFoundError):
        os.unlink(part)
    file = open(part, "xb", buffering=0)  # noqa: SIM115 - an open file holds it
    fcntl.flock(file, fcntl.LOCK_SH)  # of a new file, which no other process knows
    return file
