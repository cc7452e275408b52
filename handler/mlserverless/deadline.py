"""Until when a thread may work for its request: whatever waits below the door asks here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
