"""What was built answers under the real runtime client and emulator as the handler does here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sklearn.preprocessing import FunctionTransformer

from aws import BUCKET, S3Server
from conftest import ROOT, put_model
from doors import Handler, http_api, through
from emulator import Layout, emulator
from mlserverless import main
from mlserverless.settings import Settings

TRANSFORM = {"predict_fn": "transform"}
EVENTS = sorted((ROOT / "events").glob("*.json"))


@pytest.fixture(scope="module")
def function(layout: Layout) -> Iterator[Handler]:
    with emulator(layout) as invoke:
        yield invoke


@pytest.fixture(scope="module")
def here(digits: Path) -> main.Door:
    return main.Door(Settings(model_repository_root=str(digits.parent)))


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_the_built_function_answers_each_event_as_the_handler_does(
    function: Handler, here: main.Door, path: Path
) -> None:
    event = json.loads(path.read_text())
    assert here(event, None) == function(event, None)


@pytest.mark.parametrize("hostile", [None, [], {}, "x", {"Records": [{"messageId": "1"}]}])
def test_the_built_function_answers_whatever_comes(
    function: Handler, here: main.Door, hostile: Any
) -> None:
    assert here(hostile, None) == function(hostile, None)


def test_the_built_function_answers_from_s3(
    layout: Layout, here: main.Door, s3: S3Server, digits: Path
) -> None:
    for file in ("model-settings.json", "mnist-svm.joblib"):
        s3.put(f"models/mnist-svm/{file}", (digits / file).read_bytes())
    event = json.loads((ROOT / "events" / "http-api-infer.json").read_text())
    root = f"s3://{BUCKET}/models"
    with emulator(layout, MLSERVER_MODEL_REPOSITORY_ROOT=root, **s3.environment) as function:
        s3.asked.clear()
        assert here(event, None) == function(event, None)
        assert 3 == len(s3.asked), "one listing, one settings file, one artefact"
        assert here(event, None) == function(event, None)
        assert 3 == len(s3.asked)


def test_the_built_function_starts_without_s3_and_serves_once_it_responds(
    layout: Layout, here: main.Door, s3: S3Server, digits: Path
) -> None:
    for file in ("model-settings.json", "mnist-svm.joblib"):
        s3.put(f"models/mnist-svm/{file}", (digits / file).read_bytes())
    event = json.loads((ROOT / "events" / "http-api-infer.json").read_text())
    s3.fault = (503, "SlowDown")
    with emulator(
        layout,
        MLSERVER_MODEL_REPOSITORY_ROOT=f"s3://{BUCKET}/models",
        MLSERVER_LOAD_MODELS_AT_STARTUP="true",
        **s3.environment,
    ) as function:
        answer = function(event, None)
        assert (503, "1") == (answer["statusCode"], answer["headers"]["retry-after"])
        s3.well()
        assert here(event, None) == function(event, None)


def test_the_built_function_answers_a_table(layout: Layout, tmp_path: Path) -> None:
    """Pandas is in the layer, and a request that needs it finds it."""
    root = put_model(tmp_path, "echo", FunctionTransformer(), parameters={"extra": TRANSFORM})
    column = {"name": "a", "shape": [2], "datatype": "BYTES", "data": ["x", None]}
    body = json.dumps({"parameters": {"content_type": "pd"}, "inputs": [column]}).encode()
    with emulator(layout, MLSERVER_MODEL_REPOSITORY_ROOT=str(root)) as function:
        answer = through(function, http_api)("POST", "/v2/models/echo/infer", body)
    assert [{**column, "shape": [2, 1], "parameters": {"content_type": "str"}}] == answer.json[
        "outputs"
    ]


def test_an_empty_endpoint_is_amazons_own(layout: Layout) -> None:
    """The template always declares the variable; empty must not lead boto3 anywhere."""
    root = "s3://not a bucket"
    with emulator(
        layout, MLSERVER_MODEL_REPOSITORY_ROOT=root, AWS_ENDPOINT_URL_S3="", AWS_REGION="eu-west-1"
    ) as function:
        event = json.loads((ROOT / "events" / "http-api-infer.json").read_text())
        assert "not a bucket is not the name of a bucket" in function(event, None)["body"]
