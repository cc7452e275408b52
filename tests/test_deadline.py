"""Until when a thread may work: what waits below the door asks how long it may."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from mlserverless import deadline


def test_no_wait_is_longer_than_the_request_may_take() -> None:
    now = time.monotonic()
    assert 7.0 == deadline.left(7.0), "nobody else has a say in it"
    with deadline.until(now + 3):
        assert 2.5 == deadline.left(2.5)
        assert 2.5 < deadline.left(7.0) <= 3
    with deadline.until(now - 1):
        assert 0.0 == deadline.left(7.0), "it is over, and nothing is waited for"
    assert 7.0 == deadline.left(7.0)


def test_each_thread_has_a_deadline_of_its_own() -> None:
    with deadline.until(time.monotonic()), ThreadPoolExecutor(1) as pool:
        assert 7.0 == pool.submit(deadline.left, 7.0).result()
