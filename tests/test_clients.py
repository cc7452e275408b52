"""Clients of MLServer and Triton work unchanged: numpy in, numpy out, every value equal.

Their packages are pinned apart, in `.venv-clients`; each runs `clients/ask.py` against the local
server and against the handler behind a small gateway.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from conftest import ROOT, put_model
from doors import local_server
from gateway import gateway
from mlserverless import main
from mlserverless.settings import Settings

SCRIPT = ROOT / "tests" / "clients" / "ask.py"
PYTHON = ROOT / ".venv-clients" / "bin" / "python"

with_clients = pytest.mark.skipif(
    not (ROOT / ".venv-clients" / "ready").exists(),
    reason="`make test` found no Python from 3.11 to 3.13 to run the clients with",
)


def asked() -> Any:
    """The script's own inputs."""
    spec = importlib.util.spec_from_file_location("ask", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ASKED = asked()
DIGITS = GaussianNB(var_smoothing=0.1).fit(*load_digits(return_X_y=True))
TEXTS = make_pipeline(CountVectorizer(), LogisticRegression()).fit(
    ["good nice", "bad poor"], np.array(["yes", "no"])
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clients")
    put_model(root, "digits", DIGITS, parameters={"version": "v1"})
    extra = {"predict_fn": "transform"}
    put_model(root, "echo", FunctionTransformer(), parameters={"extra": extra})
    put_model(root, "words", TEXTS, parameters={"content_type": "str"})
    return root


@pytest.fixture(scope="module", params=["local-server", "handler"])
def url(request: pytest.FixtureRequest, root: Path) -> Iterator[str]:
    if request.param == "local-server":
        with local_server(root) as address:
            yield address
    else:
        settings = Settings(model_repository_root=str(root), model_control_mode="explicit")
        with gateway(main.Door(settings)) as address:
            yield address


def run(client: str, url: str, folder: Path) -> dict[str, Any]:
    """What a client got, by the name of the question."""
    file = folder / "answers.npz"
    done = subprocess.run(
        [PYTHON, SCRIPT, client, url, file], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    with np.load(file, allow_pickle=True) as found:
        return {name.replace("~", "/"): found[name] for name in found.files}


def texts(array: Any) -> list[str]:
    """BYTES as text: some clients give bytes, some strings."""
    return [each.decode() if isinstance(each, bytes) else str(each) for each in array.ravel()]


@with_clients
@pytest.mark.parametrize("client", ["triton", "triton_aio", "kserve", "httpx"])
def test_a_client_gets_what_the_estimator_called_directly_gives(
    client: str, url: str, tmp_path: Path
) -> None:
    found = run(client, url, tmp_path)
    for datatype, dtype in (("FP32", np.float32), ("FP64", np.float64), ("INT64", np.int64)):
        rows = ASKED.ROWS.astype(dtype)
        for method in ASKED.METHODS:
            direct = getattr(DIGITS, method)(rows)
            direct = direct.reshape(len(rows), -1)
            answer = found.pop(f"digits/{datatype}/{method}")
            assert (direct.dtype, direct.shape) == (answer.dtype, answer.shape)
            np.testing.assert_array_equal(direct, answer)
    for datatype, values in ASKED.EVERYTHING.items():
        answer = found.pop(f"echo/{datatype}")
        assert values.shape == answer.shape
        if datatype == "BYTES":
            assert texts(values) == texts(answer)
        else:
            assert values.dtype == answer.dtype
            np.testing.assert_array_equal(values, answer)
    assert texts(TEXTS.predict(ASKED.WORDS.ravel())) == texts(found.pop("words/predict"))
    assert {} == found


@with_clients
def test_triton_loads_and_unloads(url: str, tmp_path: Path) -> None:
    assert {} == run("triton_control", url, tmp_path)


QUESTION = {
    "inputs": [
        {"name": "x", "shape": [5, 64], "datatype": "FP32", "data": ASKED.ROWS.ravel().tolist()}
    ]
}


def test_requests_as_the_documentation_has_it(url: str) -> None:
    answer = requests.post(f"{url}/v2/models/digits/infer", json=QUESTION, timeout=30)
    assert DIGITS.predict(ASKED.ROWS).tolist() == answer.json()["outputs"][0]["data"]


@pytest.mark.parametrize("flags", [[], ["-H", "Content-Type: application/json"], ["--http1.0"]])
def test_curl_with_a_form_type_a_json_type_and_an_old_http(url: str, flags: list[str]) -> None:
    command = ["curl", "-sS", *flags, "-d", json.dumps(QUESTION), f"{url}/v2/models/digits/infer"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert DIGITS.predict(ASKED.ROWS).tolist() == json.loads(done.stdout)["outputs"][0]["data"]


def test_curl_with_a_body_in_chunks(url: str) -> None:
    headers = ["-H", "Transfer-Encoding: chunked"]
    command = ["curl", "-sS", *headers, "-d", json.dumps(QUESTION), f"{url}/v2/models/digits/infer"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "outputs" in json.loads(done.stdout)
