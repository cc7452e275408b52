"""How much memory a function has left: what cannot fit is refused before it is tried.

Lambda ends a process that touches more than it has, and with it the request. With a limit of the
process's own, an allocation fails instead, and numpy and Python say so. orjson does not: what it
would make of a body is estimated first.
"""

from __future__ import annotations

import os
import resource
from typing import Final

# What JSON becomes, in bytes, by CPython's and yyjson's own sizes.
_BUFFER: Final = 12  # for each byte of text
_WORST: Final = 48  # the same, with the objects of "[],[],[],…"
_OBJECTS: Final = {b",": 40, b"[": 56, b"{": 64, b'"': 28}
_SPELLED: Final = 60  # of a double: 25 characters at its longest, in a buffer that doubles
_SMALL: Final = 65_536  # bytes that always fit


def limit(megabytes: int | None) -> None:
    """Let an allocation fail that goes beyond so much; None is no limit.

    What is mapped is counted; what is touched, which Lambda counts, is some 70 MB less.
    """
    if megabytes is not None:
        _, hardest = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, hardest))


def check_text(body: bytes) -> None:
    """MemoryError where the objects of this JSON would not fit."""
    if len(body) < _SMALL:
        return
    free = _free()
    if free is None or len(body) * _WORST < free:  # counting takes time
        return
    if len(body) * _BUFFER + sum(body.count(each) * of for each, of in _OBJECTS.items()) > free:
        raise MemoryError


def check_numbers(count: int) -> None:
    """MemoryError where the text of so many numbers would not fit."""
    if count * _SPELLED < _SMALL:
        return
    free = _free()
    if free is not None and count * _SPELLED > free:
        raise MemoryError


# Each limit that memory may have, and where /proc/self/statm counts what it bounds, in pages.
_LIMITS: Final = ((resource.RLIMIT_DATA, 5), (resource.RLIMIT_AS, 0))


def _free() -> int | None:
    """Bytes until the nearest limit; None where there is none."""
    limits = [(resource.getrlimit(kind)[0], column) for kind, column in _LIMITS]
    bounds = [(most, column) for most, column in limits if most != resource.RLIM_INFINITY]
    if not bounds:
        return None
    with open("/proc/self/statm", "rb") as file:
        pages = [int(each) for each in file.read().split()]
    page = os.sysconf("SC_PAGE_SIZE")
    return max(0, min(most - pages[column] * page for most, column in bounds))
