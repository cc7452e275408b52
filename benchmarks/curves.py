"""Cost against work: rows, sizes of models and bodies, and how many models lie in a repository.

A first answer is measured in a fresh process each (after the imports that every model shares,
so that what is seen is the model's own); S3 is moto's server on this machine.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsRegressor

from mlserverless.main import Door
from mlserverless.settings import Settings
from rows import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from aws import BUCKET, S3Server

FIRST = """
import json, sys, time
from mlserverless import main, runtime
from mlserverless.imports import import_sklearn
import sklearn.neighbors, sklearn.linear_model
from mlserverless.settings import Settings
event = json.loads(sys.argv[2])
start = time.perf_counter()
answer = main.Door(Settings(model_repository_root=sys.argv[1]))(event, None)
assert answer["statusCode"] == 200, answer["body"]
print(time.perf_counter() - start)
"""


def settings(name: str) -> bytes:
    """A model's own file."""
    uri = {"uri": "./model.joblib"}
    kind = "mlserver_sklearn.SKLearnModel"
    return json.dumps({"name": name, "implementation": kind, "parameters": uri}).encode()


def put(root: Path, name: str, artefact: bytes) -> None:
    """One model's folder."""
    (root / name).mkdir()
    (root / name / "model-settings.json").write_bytes(settings(name))
    (root / name / "model.joblib").write_bytes(artefact)


def dumped(model: Any) -> bytes:
    """What joblib writes."""
    file = io.BytesIO()
    joblib.dump(model, file)
    return file.getvalue()


def event(rows: Any) -> dict[str, Any]:
    """A request for `m`."""
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP64", "data": rows.tolist()}
    return {
        "version": "2.0",
        "requestContext": {"http": {"method": "POST", "path": "/v2/models/m/infer"}},
        "body": json.dumps({"inputs": [tensor]}),
    }


def first(root: str, question: dict[str, Any]) -> float:
    """Milliseconds of a first answer, the median of three processes."""
    command = [sys.executable, "-c", FIRST, root, json.dumps(question)]
    found = [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in "abc"]
    return 1000 * statistics.median(found)


def show(title: str, head: str, lines: Sequence[tuple[str, ...]]) -> None:
    """One table."""
    print(f"\n{title}\n\n| {head} |\n|" + " ---: |" * (head.count("|") + 1))
    for line in lines:
        print(f"| {' | '.join(line)} |")


def main() -> None:  # noqa: PLR0915 - three tables, one after the other
    """Print every table."""
    iris = load_iris()
    model = LogisticRegression(max_iter=1000).fit(iris.data, iris.target)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "one"
        root.mkdir()
        put(root, "m", dumped(model))
        door = Door(Settings(model_repository_root=str(root)))
        warm = []
        for count in (1, 10, 100, 1_000, 10_000, 100_000):
            rows = np.resize(iris.data, (count, 4))
            question = event(rows)
            took, bare = [], []
            for _ in range(9):
                start = time.perf_counter()
                answer = door(question, None)
                took.append(time.perf_counter() - start)
                assert answer["statusCode"] == 200, answer["body"]
                start = time.perf_counter()
                model.predict(rows)
                bare.append(time.perf_counter() - start)
            both = (1000 * statistics.median(took), 1000 * statistics.median(bare))
            size = len(question["body"]) / 1000
            warm.append((f"{count:,}", f"{size:,.1f}", f"{both[0]:.2f}", f"{both[1]:.2f}"))
        show("A warm request", "rows | kB of JSON | ms | ms of predict itself", warm)

        many_models = []
        small = event(iris.data[:1])
        for models in (1, 10, 50, 200):
            many = Path(name) / f"many-{models}"
            many.mkdir()
            put(many, "m", dumped(model))
            for number in range(models - 1):
                put(many, f"other-{number}", dumped(model))
            with S3Server().running() as s3:
                os.environ.update(s3.environment)
                for path in many.rglob("*.*"):
                    s3.put(f"models/{path.relative_to(many)}", path.read_bytes())
                asked = first(f"s3://{BUCKET}/models", small)
            many_models.append((f"{models}", f"{first(str(many), small):.1f}", f"{asked:.1f}"))
        columns = "ms from a folder | ms from S3"
        show("A first answer, by models in the repository", f"models | {columns}", many_models)

        big_models = []
        for megabytes in (1, 10, 100, 500):
            count = megabytes * 1_000_000 // 8 // 4 - 1
            data = np.random.default_rng(0).normal(size=(count, 4))
            big = KNeighborsRegressor(1, algorithm="brute").fit(data, np.zeros(count, np.int8))
            folder = Path(name) / f"big-{megabytes}"
            folder.mkdir()
            raw = dumped(big)
            put(folder, "m", raw)
            with S3Server().running() as s3:
                os.environ.update(s3.environment)
                for path in folder.rglob("*.*"):
                    s3.put(f"models/{path.relative_to(folder)}", path.read_bytes())
                asked = first(f"s3://{BUCKET}/models", small)
            size = len(raw) / 1e6
            big_models.append((f"{size:.0f}", f"{first(str(folder), small):.1f}", f"{asked:.1f}"))
        show("A first answer, by size of the artefact", f"MB | {columns}", big_models)


if __name__ == "__main__":
    main()
