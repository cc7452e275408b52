"""How much memory a function has left: what cannot fit is refused before it is tried.

Lambda ends a process that touches more than it has, and with it the request. With a limit of the
process's own, an allocation fails instead, and numpy and Python say so. orjson does not: what it
would make of a body, or spell, is estimated first.
"""

from __future__ import annotations

import os
import resource
from typing import Any, Final

# What JSON becomes, in bytes, by CPython's and yyjson's own sizes.
_BUFFER: Final = 12  # for each byte of text
_WORST: Final = 48  # the same, with the objects of "[],[],[],…"
_OBJECTS: Final = {b",": 40, b"[": 56, b"{": 64, b'"': 28}
_SMALL: Final = 65_536  # bytes that always fit
# What orjson takes at most to spell, in bytes, as measured: it reserves room for a whole list at
# once, in a buffer that doubles and is copied.
ITEM: Final = 280  # of a list
NUMBER: Final = 60  # of an array
_ASCII: Final = 14
_CHARACTER: Final = 36  # of a text that is not all ASCII


def limit(megabytes: int | None) -> None:
    """Let an allocation fail that goes beyond so much; None is no limit.

    What is mapped is counted; what is touched, which Lambda counts, is some 70 MB less.
    """
    if megabytes is not None:
        _, hardest = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, hardest))


def check_json(text: bytes) -> None:
    """MemoryError where the objects of this JSON would not fit."""
    if len(text) < _SMALL:
        return
    free = _free()
    if free is None or len(text) * _WORST < free:  # counting takes time
        return
    if len(text) * _BUFFER + sum(text.count(each) * of for each, of in _OBJECTS.items()) > free:
        raise MemoryError


def check(size: int) -> None:
    """MemoryError where so many bytes would not fit."""
    if size < _SMALL:
        return
    free = _free()
    if free is not None and size > free:
        raise MemoryError


def of_text(text: str) -> int:
    """Bytes that spelling it may take."""
    return len(text) * (_ASCII if text.isascii() else _CHARACTER)


def check_spelling(value: Any) -> None:
    """MemoryError where the JSON of these objects, however nested, would not fit."""
    size, level = 0, [value]
    while level:
        below: list[Any] = []
        for each in level:
            if type(each) is str:
                size += of_text(each)
            elif type(each) is dict:
                below += (*each.keys(), *each.values())
            elif type(each) in (list, tuple):
                below += each
            else:
                size += NUMBER * getattr(each, "size", 0)  # an array
        size += ITEM * len(level)
        level = below
    check(size)


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
