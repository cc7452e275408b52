"""The short form of `make soak`: nothing grows, nothing stays open, nothing fails."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conftest import ROOT
from doors import local_server, over_http
from soak import DIGIT, PATH, State, flat


def test_four_thousand_mixed_requests_leave_a_process_as_it_was() -> None:
    done = subprocess.run(
        [sys.executable, "tests/soak.py", "4000", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr), done.stdout
    assert "nothing grew or failed" in done.stdout


def test_what_grows_is_named() -> None:
    warm = State(100.0, 5, 1)
    assert [] == flat(warm, State(104.0, 5, 1))
    assert [
        "memory from 100.0 to 106.0 MB",
        "open files from 5 to 6",
        "threads from 1 to 2",
    ] == flat(warm, State(106.0, 6, 2))


def test_eight_clients_at_once_are_all_answered(digits: Path) -> None:
    everybody = threading.Barrier(8)
    with local_server(digits) as url, ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> list[int]:
            everybody.wait(30)
            return [over_http(url)("POST", PATH, DIGIT).status for _ in range(50)]

        assert [[200] * 50] * 8 == list(pool.map(ask, range(8)))
