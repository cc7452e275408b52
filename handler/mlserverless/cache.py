"""Artefacts on a disk that the processes of one machine share: each is downloaded once.

A file has its name only when it is whole, and is used only while a living process holds it:
what a dead one has left is no more than what stands in the way. Whoever waits does so on a lock
that the kernel takes back from the dead. Nothing is synced: a machine that stops loses its
disk's promises and every process that would read them together.
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
        """The bytes of an object, `size` of them; None where the disk cannot take them.

        Whoever comes first lets `fill` write them, and what it raises is raised; the others wait,
        at most `wait` seconds: Unavailable then.
        """
        stem = os.path.join(self._folder, _digest(name))
        path = f"{stem}-{_digest(version)}"
        try:
            self._make_folder()
            with _locked(f"{stem}.lock", wait):
                self._keep(name, path, _held(path) or _filled(path, size, fill))
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


def _held(path: str) -> BinaryIO | None:
    """The file, held by this process too, if another one that lives does."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - kept open: that is what holds it
    except FileNotFoundError:
        return None
    if _locks(file, fcntl.LOCK_EX) or not _locks(file, fcntl.LOCK_SH):
        file.close()
        return None
    return file


def _filled(path: str, size: int, fill: Callable[[BinaryIO], None]) -> BinaryIO:
    """The file, filled now and held."""
    part = f"{path}.part"
    with suppress(FileNotFoundError):  # of one that died, or was given up and may still write
        os.unlink(part)
    file = open(part, "xb", buffering=0)  # noqa: SIM115 - kept open: that is what holds it
    try:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so before S3 is asked
        fill(file)
        fcntl.flock(file, fcntl.LOCK_SH)
        os.replace(part, path)
    except BaseException:
        file.close()
        os.unlink(part)
        raise
    return file
