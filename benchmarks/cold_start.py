"""Cold starts of what `make build` made, beside scripts on stock wheels, under CPython 3.13.

The bare script does what nobody can leave out: `joblib.load`, `predict`, `print`. Its wheels have
valid bytecode; no bytecode is written while measuring.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from rows import ROOT, Cost, Row, in_turns, ratio, spawn

BUILT = ROOT / ".aws-sam" / "build"
STOCK = ROOT / "build" / "stock"
MODELS = BUILT / "ModelsLayer" / "models"
EVENT = ROOT / "events" / "http-api-infer.json"
QUESTION = ROOT / "events" / "requests" / "digit.json"
PARTS = ("layers/sklearn", "handler")
ROUNDS = 9

BARE = f"""
import json, joblib, numpy
model = joblib.load({str(MODELS / "mnist-svm" / "mnist-svm.joblib")!r})
data = json.load(open({str(QUESTION)!r}))["inputs"][0]["data"]
print(model.predict(numpy.array(data)))
"""
OURS = f"""
import json
from mlserverless.main import handler
class Context:  # as Lambda gives it
    aws_request_id = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"
    get_remaining_time_in_millis = lambda self: 29_000
print(handler(json.load(open({str(EVENT)!r})), Context())["body"])
"""
TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def python_of_lambda() -> str:
    """CPython 3.13 itself, no virtual environment."""
    command = ["uv", "python", "find", "--no-project", "--system", "3.13"]
    environment = {**os.environ, "PYENV_VERSION": "3.13"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def stock(python: str) -> None:
    """The same versions as deployed, as pip leaves them, with valid bytecode."""
    if (STOCK / "ready").exists():
        return
    target = ["uv", "pip", "install", "--quiet", "--target", str(STOCK), "--python", python]
    constraints = [f"--constraint={ROOT / part / 'requirements.txt'}" for part in PARTS]
    # not pandas: scikit-learn would import it, where it is
    subprocess.run([*target, *constraints, "scikit-learn", "fastapi"], check=True)
    mode = ["--invalidation-mode", "unchecked-hash"]
    subprocess.run([python, "-m", "compileall", "-q", *mode, str(STOCK)], check=False)
    (STOCK / "ready").touch()


def out_of_the_page_cache(*folders: Path) -> None:
    """Have the kernel forget every file below."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                file = os.open(path, os.O_RDONLY)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)


def rows() -> list[Row]:
    """The five of the cold start."""
    python = python_of_lambda()
    stock(python)
    base = {"PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    deployed = base | {
        "PYTHONPATH": f"{BUILT / 'Function'}:{BUILT / 'SklearnLayer' / 'python'}",
        "MLSERVER_MODEL_REPOSITORY_ROOT": str(MODELS),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
    }
    peer = base | {"PYTHONPATH": str(STOCK)}

    def bare() -> Cost:
        return spawn([python, "-c", BARE], peer)

    def ours() -> Cost:
        return spawn([python, "-c", OURS], deployed)

    def forgotten(work: object, folder: Path) -> Cost:
        out_of_the_page_cache(folder, Path(python).parent.parent / "lib")
        assert callable(work)
        cost: Cost = work()
        return cost

    assert "[8]" in bare().said
    assert '"data":[8]' in ours().said
    mine, theirs = in_turns(ROUNDS, ours, bare)
    os.sync()
    mine_cold, theirs_cold = in_turns(
        5, lambda: forgotten(ours, BUILT), lambda: forgotten(bare, STOCK)
    )
    init, fastapi = in_turns(
        ROUNDS,
        lambda: float(spawn([python, "-c", TIMED.format("mlserverless.main")], deployed).said),
        lambda: float(spawn([python, "-c", TIMED.format("fastapi")], peer).said),
    )
    script = "a bare script: joblib.load, predict"

    def of(name: str, mine: list[Cost], theirs: list[Cost]) -> float:
        return ratio(
            [getattr(cost, name) for cost in mine], [getattr(cost, name) for cost in theirs]
        )

    forgotten_all = of("seconds", mine_cold, theirs_cold)
    return [
        Row("spawn → exit with the first digits answer", script, of("seconds", mine, theirs), 0.60),
        Row("the same, no file in the page cache", script, forgotten_all, 0.60),
        Row("CPU seconds of the same", script, of("cpu", mine, theirs), 0.60),
        Row("peak memory of the same", script, of("megabytes", mine, theirs), 0.80),
        Row("INIT: import of the handler", "importing FastAPI alone", ratio(init, fastapi), 0.80),
    ]
