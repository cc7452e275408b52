"""One row of the table: two things measured in turns in one run, or one beside a goal."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Row:
    """`measured` is a ratio of medians (ours over the peer's), or milliseconds."""

    what: str
    peer: str
    measured: float
    goal: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return (
            self.measured <= self.goal
            if not self.unit.startswith("at least")
            else (self.measured >= self.goal)
        )


class Cost(NamedTuple):
    """What a process took, from spawn to exit."""

    seconds: float
    cpu: float
    megabytes: float
    said: str


def spawn(command: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """Run a process to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    return Cost(took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, said)


def in_turns(rounds: int, *works: Callable[[], Any]) -> list[list[Any]]:
    """What each gives back, called one after the other, round by round."""
    found: list[list[Any]] = [[] for _ in works]
    for _ in range(rounds):
        for work, kept in zip(works, found, strict=True):
            kept.append(work())
    return found


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """A call of it, in seconds."""

    def call() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return call


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the medians."""
    return statistics.median(ours) / statistics.median(theirs)
