"""Until when a thread may work for its request: whatever waits below the door asks here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_MAX_FUNCTION_SECONDS: Final = 900.0  # Lambda's longest timeout
_RESPONSE_SECONDS: Final = 0.5  # of a function's time that sending its response takes at most

_thread = threading.local()


@contextmanager
def until(moment: float) -> Iterator[None]:
    """Let what runs in the block end by `moment`, of `time.monotonic()`."""
    _thread.moment = moment
    try:
        yield
    finally:
        del _thread.moment


def left(most: float) -> float:
    """Seconds that may be waited for something, `most` of them where nobody else has a say."""
    moment = getattr(_thread, "moment", None)
    return most if moment is None else max(0.0, min(most, moment - time.monotonic()))


def seconds_left(context: Any) -> float | None:
    """Return the seconds until Lambda ends an invocation, less those that its response needs.

    None if the context of the invocation does not say when that is.
    """
    read = getattr(context, "get_remaining_time_in_millis", None)
    milliseconds = read() if callable(read) else None
    if not isinstance(milliseconds, int | float):
        return None
    return max(0.0, min(milliseconds / 1000, _MAX_FUNCTION_SECONDS) - _RESPONSE_SECONDS)
