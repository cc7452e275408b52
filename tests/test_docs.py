"""The documents tell the truth: the routes that there are, and requests that work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from openapi_spec_validator import OpenAPIV30SpecValidator
from sklearn.dummy import DummyClassifier
from starlette.routing import Route

from conftest import MakeModel
from doors import Door, http_api, through
from mlserverless import docs, main
from mlserverless.app import create_app
from mlserverless.protocol import TensorMetadata
from mlserverless.registry import Registry
from mlserverless.repository import open_repository
from mlserverless.settings import Settings

MODEL = DummyClassifier().fit([[0.0]], [0])


def app(root: object) -> FastAPI:
    settings = Settings(model_repository_root=str(root))
    return create_app(Registry(open_repository(str(root)), settings), settings, threads=False)


@pytest.fixture(scope="module")
def door(models: Path) -> Door:
    return through(main.Door(Settings(model_repository_root=str(models))), http_api)


def test_the_servers_document_has_every_route_that_there_is(tmp_path: Path) -> None:
    served = {
        route.path.replace("{name}", "{model_name}").replace("{version}", "{model_version}")
        for route in app(tmp_path).routes
        if isinstance(route, Route) and "/docs" not in route.path
    }
    assert served == set(docs.server(3)["paths"])


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/iris-logreg", "/v2/models/versioned/versions/2"]
)
def test_a_document_is_valid_openapi_and_leads_back_to_v2(door: Door, path: str) -> None:
    document = door("GET", f"{path}/docs/dataplane.json").json
    OpenAPIV30SpecValidator(document).validate()
    steps = document["servers"][0]["url"].split("/")
    here = f"{path}/docs/dataplane.json".split("/")[1:-1]
    assert [".."] * len(here) == steps


NO_EXAMPLE = {"dbscan"}  # it has no method that can be requested


def test_an_example_works_when_it_is_pasted(door: Door) -> None:
    names = {state["name"] for state in door("POST", "/v2/repository/index").json}
    without = set()
    for name in names:
        document = door("GET", f"/v2/models/{name}/docs/dataplane.json").json
        operation = document["paths"][f"/v2/models/{name}/infer"]["post"]
        example = operation["requestBody"]["content"]["application/json"].get("example")
        if example is None:
            without.add(name)
            continue
        answer = door("POST", f"/v2/models/{name}/infer", json.dumps(example).encode())
        assert 200 == answer.status, answer.body
    assert NO_EXAMPLE == without
    assert len(names) > 30


def test_a_models_document_names_its_own_inputs(door: Door) -> None:
    document = door("GET", "/v2/models/titanic-pd/docs/dataplane.json").json
    operation = document["paths"]["/v2/models/titanic-pd/infer"]["post"]
    assert operation["description"].startswith(
        "Takes age FP64 [-1, 1], fare FP64 [-1, 1], sex BYTES"
    )


def test_a_models_document_names_its_outputs_with_their_labels(door: Door) -> None:
    document = door("GET", "/v2/models/iris-str/docs/dataplane.json").json
    description = document["paths"]["/v2/models/iris-str/infer"]["post"]["description"]
    assert "Returns predict BYTES [-1, 1], predict_proba FP64 [-1, 3]," in description
    assert 'Labels of predict_proba: ["setosa","versicolor","virginica"].' in description
    page = door("GET", "/v2/models/iris-str/docs").body.decode()
    assert "Labels of decision_function: [&quot;setosa&quot;," in page


def test_a_models_document_says_what_becomes_of_nan_and_infinity(door: Door) -> None:
    for name in ("iris-logreg", "dbscan"):
        page = door("GET", f"/v2/models/{name}/docs").body
        assert b"In a JSON response, NaN, infinity and -infinity are null" in page


def test_a_description_is_cut_where_a_model_has_very_many_tensors_or_labels() -> None:
    tensors = [TensorMetadata(f"x{i}", "FP64", (-1, 1)) for i in range(docs.MAX_SHOWN_TENSORS + 7)]
    labels = {"classes": list(range(docs.MAX_SHOWN_LABELS + 5))}
    output = TensorMetadata("predict_proba", "FP64", (-1, 105), labels)
    document = docs.model(docs.Subject("m", None, tensors, [output], None), 4)
    description = document["paths"]["/v2/models/m/infer"]["post"]["description"]
    assert ", 7 more. Returns " in description
    assert "98,99] and 5 more. " in description
    large = {"inputs": [{"data": "x" * docs.MAX_EXAMPLE_BYTES}]}
    document = docs.model(docs.Subject("m", None, tensors, [output], large), 4)
    assert b"<textarea" not in docs.page(document)


@pytest.mark.parametrize("path", ["/v2/docs", "/v2/models/iris-logreg/docs/"])
def test_a_page_needs_no_host_but_this_one(door: Door, path: str) -> None:
    page = door("GET", path)
    assert "text/html; charset=utf-8" == page.headers["content-type"]
    assert b"//" not in page.body.replace(b"<!doctype html>", b"")


def test_a_models_name_is_text_on_a_page(make_model: MakeModel) -> None:
    name = "<script>alert(1)</script>"
    root = make_model("m", MODEL, name=name)
    door = through(main.Door(Settings(model_repository_root=str(root))), http_api)
    page: Any = door("GET", "/v2/models/%3Cscript%3Ealert(1)%3C%2Fscript%3E/docs")
    if page.status == 404:  # a slash in a name cannot be asked for at all
        page = door("GET", "/v2/docs")
    assert name.encode() not in page.body


def test_an_unknown_model_has_no_document(door: Door) -> None:
    for path in ("/v2/models/nope/docs", "/v2/models/nope/docs/dataplane.json"):
        answer = door("GET", path)
        assert (404, {"error": "Model nope not found"}) == (answer.status, answer.json)
