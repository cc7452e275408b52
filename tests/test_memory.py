"""What would not fit is refused before it is tried; where nobody set a limit, nothing is."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlserverless import memory

FREE = 64 << 20  # bytes


@pytest.fixture
def _limited() -> Iterator[None]:
    """A process that may take so much more than it has."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    most = pages * os.sysconf("SC_PAGE_SIZE") + FREE
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.usefixtures("_limited")
def test_what_would_not_fit_is_refused_before_it_is_tried() -> None:
    memory.check(FREE // 2)
    with pytest.raises(MemoryError):
        memory.check(2 * FREE)


@pytest.mark.parametrize("text", [b"[],", b"{},", b'"",'], ids=str)
@pytest.mark.usefixtures("_limited")
def test_json_is_measured_by_what_it_becomes(text: bytes) -> None:
    memory.check_json(b"1," * 500_000)
    memory.check_json(text * 10_000)
    with pytest.raises(MemoryError):
        memory.check_json(text * 1_000_000)


@pytest.mark.parametrize(
    "item",
    ["é" * 1_000_000, 1.5, [[]], {"key": {}}, [np.zeros(1)]],
    ids=["text", "number", "list", "object", "array"],
)
@pytest.mark.usefixtures("_limited")
def test_what_is_spelled_is_measured_however_it_is_nested(item: Any) -> None:
    memory.check_spelling([item])
    with pytest.raises(MemoryError):
        memory.check_spelling({"x": [[item] * 2_000_000]})


def test_without_a_limit_anything_may_be_tried() -> None:
    memory.limit(None)
    memory.check(1 << 62)
    memory.check_json(b"[]," * 1_000_000)
    memory.check_spelling(["é" * 1_000_000])


def test_a_functions_memory_is_its_limit() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        memory.limit(100_000)
        assert 100_000 << 20 == resource.getrlimit(resource.RLIMIT_DATA)[0]
        with pytest.raises(MemoryError):
            memory.check(100_000 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
