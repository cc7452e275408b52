"""In a container, as Lambda runs it, every answer is the one that the handler gives here."""

from __future__ import annotations

import json
import operator
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from sklearn.dummy import DummyClassifier

import sam
from aws import BUCKET, S3Server
from conftest import ROOT, put_model
from doors import Answer, Door, http_api, over_http, through
from emulator import built_layout, python_of_lambda
from mlserverless import main
from mlserverless.settings import Settings
from test_conformance import TRANSCRIPTS, body_of

pytestmark = pytest.mark.docker

EVENTS = sorted((ROOT / "events").glob("*.json"))
OF_THE_CARRIER = {"connection", "content-length", "date", "server"}
DRAWN = re.compile(rb'"id":"[0-9a-f]{8}-[0-9a-f-]{27}"')
ROUTED = {"GET", "HEAD", "POST"}
LIMIT_OF_EVENTS = 4_000_000  # bytes, before base64
INFER = "/v2/models/mnist-svm/versions/v0.1.0/infer"


@pytest.fixture(scope="module")
def template(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The built template with the models of the recording in its layer."""
    python = python_of_lambda()
    assert python is not None, "the containers run what CPython 3.13 has compiled"
    built_layout(python)
    with sam.image():
        yield sam.template(tmp_path_factory.mktemp("sam"), models)


@pytest.fixture(scope="module", params=["layer", "s3"])
def container(request: pytest.FixtureRequest, template: Path, models: Path) -> Iterator[Door]:
    """`sam local start-api` over the models in the layer, or over the same ones in S3."""
    if request.param == "layer":
        with sam.start_api(template, ModelControlMode="explicit") as url:
            yield over_http(url)
        return
    with S3Server(sam.host_for_containers()).running() as s3:
        for path in models.rglob("*"):
            if path.is_file():
                s3.put(f"models/{path.relative_to(models)}", path.read_bytes())
        endpoint = {"AWS_ENDPOINT_URL_S3": s3.url}
        with sam.start_api(
            template, endpoint, ModelBucket=BUCKET, ModelControlMode="explicit"
        ) as url:
            yield over_http(url)


@pytest.fixture
def here(models: Path) -> Door:
    settings = Settings(model_repository_root=str(models), model_control_mode="explicit")
    return through(main.Door(settings), http_api)


def ours(answer: Answer) -> Any:
    """An answer without what its carrier added, and without an id that was drawn for it."""
    kept = {name: text for name, text in answer.headers.items() if name not in OF_THE_CARRIER}
    return answer.status, kept, DRAWN.sub(b'"id":"drawn"', answer.body)


def test_every_answer_of_the_recording_is_the_same_as_here(container: Door, here: Door) -> None:
    differing = {}
    for each in TRANSCRIPTS:
        if each["method"] not in ROUTED:  # the gateway has no route, and refuses it itself
            continue
        question = each["method"], each["path"], body_of(each), each["headers"]
        if len(question[2]) < LIMIT_OF_EVENTS:
            expected, found = ours(here(*question)), ours(container(*question))
            if expected != found:
                differing[each["name"]] = [repr(answer)[:500] for answer in (expected, found)]
    assert {} == differing


@pytest.mark.parametrize(("method", "path"), [("PUT", INFER), ("OPTIONS", INFER), ("GET", "/")])
def test_what_has_no_route_does_not_reach_the_function(
    container: Door, method: str, path: str
) -> None:
    """`sam local` returns 403, as a REST API does; an HTTP API returns 404."""
    answer = container(method, path)
    assert 403 == answer.status
    assert {"message": "Missing Authentication Token"} == answer.json


def test_a_whole_image_of_binary_data_travels_both_ways(container: Door, here: Door) -> None:
    rows = np.arange(300 * 64, dtype=np.float32).reshape(300, 64)
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP32"}
    binary = {"binary_data_output": True}
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": rows.nbytes}}],
            "parameters": binary,
            "id": "1",
        }
    ).encode()
    headers = {"inference-header-content-length": str(len(head))}
    question = "POST", INFER, head + rows.tobytes(), headers
    answer = container(*question)
    assert ours(here(*question)) == ours(answer)
    assert 300 * 8 == len(answer.body) - int(answer.headers["inference-header-content-length"])


@pytest.mark.parametrize("event", ["http-api-infer", "http-api-infer-binary"])
def test_sam_local_invoke_answers_an_event(template: Path, models: Path, event: str) -> None:
    path = ROOT / "events" / f"{event}.json"
    here = main.Door(Settings(model_repository_root=str(models)))
    assert here(json.loads(path.read_text()), None) == json.loads(sam.invoke(template, path))


def test_boto3_asks_sam_local_start_lambda(template: Path, models: Path) -> None:
    here = main.Door(Settings(model_repository_root=str(models)))
    with sam.start_lambda(template) as url:
        client = boto3.client(
            "lambda",
            endpoint_url=url,
            region_name="us-east-1",
            config=Config(signature_version=UNSIGNED, retries={"total_max_attempts": 1}),
        )
        for path in EVENTS:
            event = json.loads(path.read_text())
            answer = client.invoke(FunctionName="Function", Payload=json.dumps(event))
            assert here(event, None) == json.loads(answer["Payload"].read()), path.stem
        client.close()


class WhenLoaded:
    """Does something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.does = function, arguments

    def __reduce__(self) -> Any:
        return self.does


@pytest.mark.usefixtures("template")
def test_too_slow_and_too_big_end_in_an_answer_and_the_next_request_is_served(
    digits: Path, tmp_path: Path
) -> None:
    """What the function can foresee it answers; what ends its process, the gateway does."""
    models = tmp_path / "models"
    shutil.copytree(digits, models / "mnist-svm")
    for name, does in {
        "slow": WhenLoaded(time.sleep, 60),
        "big": WhenLoaded(operator.mul, b"x", 2_000_000_000),
        "crash": WhenLoaded(os._exit, 1),
    }.items():
        estimator = DummyClassifier().fit([[0]], [0])
        estimator.does = does
        put_model(models, name, estimator)
    event = json.loads((ROOT / "events" / "http-api-infer.json").read_text())
    digit = event["body"].encode()
    expected = {
        "slow": {"error": "Model slow is still being loaded"},
        "big": {"error": "Model big failed to load: it needs more memory than there is"},
        "crash": {"message": "Internal server error"},  # the gateway's words
    }
    with sam.start_api(sam.template(tmp_path, models), Timeout="3", MemorySize="512") as url:
        ask = over_http(url)
        for name, said in expected.items():
            answer = ask("POST", f"/v2/models/{name}/infer", digit)
            assert said == answer.json
            assert answer.status >= 500
            served = ask("POST", INFER, digit)
            assert (200, [8]) == (served.status, served.json["outputs"][0]["data"])


def test_nothing_is_left_behind_when_a_test_fails(template: Path) -> None:
    containers = ("ps", "--all", "--quiet", "--filter", "label=sam.cli.container.type=lambda")
    before = sam.docker(*containers)
    with pytest.raises(KeyError), sam.start_api(template):  # noqa: PT012 - a test within
        assert before != sam.docker(*containers)
        raise KeyError
    assert before == sam.docker(*containers)
