"""Compare the cold starts of two builds, in turns in one run, under CPython 3.13.

    python benchmarks/compare_builds.py OLD_BUILD NEW_BUILD [ROUNDS]

A build is a folder as `make build` leaves it in `.aws-sam/build`. Prints medians and the ratio of
new to old: seconds of the handler's import, and wall and CPU seconds of a process from its start
to the first digits response. For the latter joblib finds no semaphores, as on Lambda. The last
pair is the new build alone, with JOBLIB_MULTIPROCESSING=1 and as it sets it itself.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from cold_start import OURS, TIMED, python_of_lambda
from rows import in_turns, spawn

ROUNDS = 21
# Lambda has no /dev/shm: the system call behind a semaphore fails there
WITHOUT_SEMAPHORES = """
import _multiprocessing
class SemLock:
    def __init__(self, *arguments, **named):
        raise OSError(38, "Function not implemented")
_multiprocessing.SemLock = SemLock
"""


def main() -> None:
    """Measure and print one line a figure."""
    old_build, new_build = (Path(each).resolve() for each in sys.argv[1:3])
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else ROUNDS
    python = python_of_lambda()

    def process(build: Path, code: str, **more: str) -> Callable[[], dict[str, float]]:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{build / 'Function'}:{build / 'SklearnLayer' / 'python'}",
            "MLSERVER_MODEL_REPOSITORY_ROOT": str(build / "ModelsLayer" / "models"),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
            **more,
        }

        def run() -> dict[str, float]:
            cost = spawn([python, "-c", code], environment)
            is_import = code.startswith("import time")
            found = {"import": float(cost.said)} if is_import else {"wall": cost.seconds}
            return found | {"cpu": cost.cpu}

        return run

    init, first = TIMED.format("mlserverless.main"), WITHOUT_SEMAPHORES + OURS
    with_processes = process(new_build, first, JOBLIB_MULTIPROCESSING="1")
    for what, before, after in (
        ("INIT", process(old_build, init), process(new_build, init)),
        ("first response", process(old_build, first), process(new_build, first)),
        ("joblib with and without processes", with_processes, process(new_build, first)),
    ):
        old, new = in_turns(rounds, before, after)
        for figure in old[0]:
            medians = [statistics.median(each[figure] for each in costs) for costs in (old, new)]
            print(
                f"{what}, {figure}: {medians[0] * 1000:.0f} -> {medians[1] * 1000:.0f} ms, "
                f"ratio {medians[1] / medians[0]:.2f} (medians of {rounds})"
            )


if __name__ == "__main__":
    main()
