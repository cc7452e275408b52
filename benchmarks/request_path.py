"""What the request path costs, beside the least that a script could do."""

from __future__ import annotations

import base64
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from mlserverless import journal
from mlserverless.main import Door
from mlserverless.settings import Settings
from rows import Row, in_turns, ratio, timed

BODY = 5_000_000  # bytes of JSON
SETTINGS = {"name": "m", "implementation": "mlserver_sklearn.SKLearnModel"}
PATH = "/v2/models/m/infer"


def event(body: bytes, **headers: str) -> dict[str, Any]:
    """A request as an HTTP API sends it: text as text, anything else as base64."""
    http = {"method": "POST", "path": PATH}
    return {
        "version": "2.0",
        "requestContext": {"http": http},
        "headers": headers,
        "body": base64.b64encode(body).decode() if headers else body.decode(),
        "isBase64Encoded": bool(headers),
    }


def rows() -> list[Row]:
    """One row of data, and five megabytes in JSON and in binary."""
    iris = load_iris()
    model = LogisticRegression(max_iter=1000).fit(iris.data, iris.target)
    with tempfile.TemporaryDirectory() as folder:
        joblib.dump(model, Path(folder) / "model.joblib")
        (Path(folder) / "model-settings.json").write_text(json.dumps(SETTINGS))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        journal.STDERR = nowhere  # type: ignore[misc] # the line of a request is written, and kept by nobody
        door = Door(Settings(model_repository_root=folder), journal.Journal("INFO", "bench"))

        def ask(question: dict[str, Any]) -> None:
            answer = door(question, None)
            assert answer["statusCode"] == 200, answer["body"]

        def tensor(rows: np.ndarray[Any, Any]) -> dict[str, Any]:
            return {"name": "x", "shape": rows.shape, "datatype": "FP64"}

        row = iris.data[:1]
        small = event(json.dumps({"inputs": [{**tensor(row), "data": row.tolist()}]}).encode())
        ask(small)
        predict, one = in_turns(2000, timed(lambda: model.predict(row)), timed(lambda: ask(small)))

        noise = np.random.default_rng(0).normal(scale=0.1, size=(80_000, 4))
        rows = np.tile(iris.data, (600, 1))[:80_000] + noise
        text = json.dumps({"inputs": [{**tensor(rows), "data": rows.tolist()}]})
        count = len(rows) * BODY // len(text)
        rows = rows[:count]
        text = json.dumps({"inputs": [{**tensor(rows), "data": rows.tolist()}]})
        size = {"binary_data_size": rows.nbytes}
        ask_binary = {
            "inputs": [{**tensor(rows), "parameters": size}],
            "parameters": {"binary_data_output": True},
        }
        head = json.dumps(ask_binary).encode()
        length = {"inference-header-content-length": str(len(head))}
        binary = event(head + rows.tobytes(), **length)
        large = event(text.encode())

        def script() -> str:
            data = np.array(json.loads(text)["inputs"][0]["data"])
            return json.dumps({"data": model.predict(data).tolist()})

        plain, as_json, as_binary = in_turns(
            15, timed(script), timed(lambda: ask(large)), timed(lambda: ask(binary))
        )

    peer = "json.loads + np.array + predict + json.dumps"
    over = (statistics.median(one) - statistics.median(predict)) * 1e3
    return [
        Row("1 row through `handler(event)`", "over `model.predict`", over, 0.10, "ms"),
        Row(f"{len(text) / 1e6:.0f} MB JSON body", peer, ratio(as_json, plain), 0.30),
        Row("the same tensor in binary", peer, ratio(as_binary, plain), 0.05),
    ]
