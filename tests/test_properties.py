"""Whatever comes: arrays keep their values, bodies and events get an answer, never an accident."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    TargetEncoder,
)

from conftest import ROOT, MakeModel
from doors import Door, http_api, through
from mlserverless import codec, main, runtime, wire
from mlserverless.metadata import Column, InputSchema
from mlserverless.protocol import DATATYPES, InferenceRequest, InferenceResponse, RequestOutput
from mlserverless.settings import ModelSettings, Settings

MODEL = ModelSettings(name="m", location="/")
SHAPES = arrays.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=4)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)


def back(values: Any, *, binary: bool) -> Any:
    """The values after a whole round: encoded, spelled, read and decoded again."""
    asked = RequestOutput("x", {"binary_data": binary})
    outputs = codec.encode([(asked, values)], InferenceRequest(None, {}, (), ()), MODEL)
    encoded = wire.encode(InferenceResponse("m", None, "", outputs))
    length = encoded.headers.get("Inference-Header-Content-Length")
    end = len(encoded.body) if length is None else int(length)
    (output,) = orjson.loads(encoded.body[:end])["outputs"]
    text = orjson.dumps({"inputs": [output]})
    request = wire.decode(text + encoded.body[end:], None if length is None else str(len(text)))
    return codec.decode(request, MODEL, 10**9)


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("datatype", codec.DTYPES)
@given(data=st.data())
def test_any_array_of_any_datatype_survives(datatype: str, binary: bool, data: Any) -> None:
    dtype = codec.DTYPES[datatype]
    elements = arrays.from_dtype(dtype, allow_infinity=binary if dtype.kind == "f" else None)
    values = data.draw(arrays.arrays(dtype, SHAPES, elements=elements))
    found = back(values, binary=binary)
    assert (dtype, values.shape) == (found.dtype, found.shape)
    np.testing.assert_array_equal(values, found)


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_any_text_survives(binary: bool, texts: list[str]) -> None:
    assert [[text] for text in texts] == back(np.array(texts), binary=binary).tolist()


# ── rows ────────────────────────────────────────────────────────────────────────────────

TRAINING = pd.DataFrame(
    {
        "size": [1.0, None, 3.0, 4.0, 2.0, 5.0] * 4,
        "count": [1, 2, 3, 4, 5, 6] * 4,
        "sex": ["m", "f", None, "f", "m", "x"] * 4,
        "town": pd.Series(["a", None, "b", "b", "a", "c"] * 4, dtype=object),
    }
)
TARGET = [0, 1, 1, 0, 1, 0] * 4


def encoded(text: Any, town: Any) -> Any:
    """A pipeline over all columns; `town` is object with None where training had it so."""
    columns = ColumnTransformer(
        [
            ("number", SimpleImputer(), ["size", "count"]),
            ("sex", text, ["sex"]),
            ("town", town, ["town"]),
        ],
        sparse_threshold=0,
    )
    return make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(TRAINING, TARGET)


def categories() -> Any:
    columns = make_column_transformer(
        (OrdinalEncoder(encoded_missing_value=-1), ["sex"]),
        remainder="drop",
    )
    return make_pipeline(columns, HistGradientBoostingClassifier(max_iter=3)).fit(TRAINING, TARGET)


def frequent() -> Any:
    return make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
    )


# None is a category of town where an encoder sees it; NaN is missing elsewhere
TABLE_MODELS = {
    "imputed": (encoded(frequent(), "drop"), np.nan),
    "categories of NaN and None": (encoded(OneHotEncoder(), OneHotEncoder()), None),
    "ordinal": (categories(), np.nan),
    "target": (encoded(TargetEncoder(cv=2), "drop"), np.nan),
}
DATATYPES_OF_COLUMNS = {"size": "FP64", "count": "INT64", "sex": "BYTES", "town": "BYTES"}
ROWS = st.lists(
    st.tuples(
        st.none() | st.floats(-9, 9),
        st.integers(-9, 9),
        st.sampled_from(["m", "f", "x", None]),
        st.sampled_from(["a", "b", "c", None]),
    ),
    min_size=1,
    max_size=5,
)


def table_model(name: str) -> runtime.Model:
    estimator, missing = TABLE_MODELS[name]
    model = runtime.Model(estimator, MODEL, 10**9)
    columns = [
        Column(each, datatype, missing=missing if each == "town" else np.nan)
        for each, datatype in DATATYPES_OF_COLUMNS.items()
    ]
    model.schema = InputSchema(tuple(columns), has_names=True)
    return model


def probabilities(model: runtime.Model, rows: list[Any]) -> list[Any]:
    inputs = [
        {
            "name": name,
            "shape": [len(rows)],
            "datatype": datatype,
            "data": [row[at] for row in rows],
        }
        for at, (name, datatype) in enumerate(DATATYPES_OF_COLUMNS.items())
    ]
    wanted = [{"name": "predict_proba"}]
    text = orjson.dumps({"inputs": inputs, "outputs": wanted, "parameters": {"content_type": "pd"}})
    (output,) = model.infer(wire.decode(text)).outputs
    found: list[Any] = output.data.reshape(output.shape).tolist()
    return found


@pytest.mark.parametrize("name", TABLE_MODELS)
@settings(deadline=None, max_examples=30)
@given(rows=ROWS)
def test_the_prediction_for_a_row_never_depends_on_the_other_rows(
    name: str, rows: list[Any]
) -> None:
    model = table_model(name)
    together = probabilities(model, rows)
    alone = [found for row in rows for found in probabilities(model, [row])]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    frame = pd.DataFrame(
        {
            column: pd.Series([row[at] for row in rows], dtype=TRAINING[column].dtype)
            for at, column in enumerate(TRAINING.columns)
        }
    )
    np.testing.assert_allclose(together, model.estimator.predict_proba(frame), rtol=1e-12)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "data", "content_type", "binary_data", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.text(max_size=3) | JSON,
        "shape": st.lists(st.integers(-2, 3), max_size=3) | JSON,
        "datatype": st.sampled_from(DATATYPES) | JSON,
        "data": st.lists(st.integers() | st.floats() | st.text(max_size=3), max_size=4) | JSON,
    },
    optional={"parameters": JSON},
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=2) | JSON},
    optional={"id": JSON, "parameters": JSON, "outputs": JSON},
)


@pytest.fixture
def echo(make_model: MakeModel) -> Door:
    extra = {"predict_fn": "transform"}
    root = make_model("m", FunctionTransformer(), parameters={"extra": extra})
    return through(main.Door(Settings(model_repository_root=str(root))), http_api)


def fair(door: Door, body: bytes, headers: dict[str, str] | None = None) -> None:
    """The answer is 200, or a 4xx that says why in one line."""
    answer = door("POST", "/v2/models/m/infer", body, headers or {})
    if answer.status != 200:
        assert 400 <= answer.status < 500, answer.body
        assert ["error"] == list(answer.json)
        assert answer.json["error"].isprintable()


ONE_DOOR = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@ONE_DOOR
@given(body=st.binary(max_size=200))
def test_any_bytes_as_a_body_are_answered(echo: Door, body: bytes) -> None:
    fair(echo, body)
    fair(echo, body, {"Content-Encoding": "gzip"})
    fair(echo, body, {"Inference-Header-Content-Length": str(len(body) // 2)})


@ONE_DOOR
@given(request=REQUEST | JSON)
def test_any_json_as_a_body_is_answered(echo: Door, request: Any) -> None:
    fair(echo, json.dumps(request).encode())


HEADERS = st.dictionaries(
    st.sampled_from(["Host", "x-forwarded-port", "content-encoding", "accept-encoding", "é"]),
    st.none() | st.text(max_size=9) | st.integers(),
)
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "version": st.sampled_from(["1.0", "2.0", 2, None]),
        "resource": JSON,
        "httpMethod": st.sampled_from(["GET", "POST", "HEAD", ""]) | JSON,
        "path": st.sampled_from(["/v2", "/prod/v2/models/m/infer", "//", ""]) | st.text() | JSON,
        "rawPath": st.text() | JSON,
        "headers": HEADERS | JSON,
        "multiValueHeaders": st.dictionaries(st.text(), st.lists(st.text() | st.none())) | JSON,
        "queryStringParameters": JSON,
        "cookies": JSON,
        "body": st.text() | JSON,
        "isBase64Encoded": st.booleans() | JSON,
        "Records": st.lists(JSON) | JSON,
        "requestContext": st.fixed_dictionaries(
            {},
            optional={
                "http": st.fixed_dictionaries(
                    {"method": st.sampled_from(["GET", "POST"]) | JSON, "path": st.text() | JSON}
                )
                | JSON,
                "elb": JSON,
                "stage": st.text() | JSON,
            },
        )
        | JSON,
    },
)


@ONE_DOOR
@given(event=EVENTS | JSON)
def test_any_event_gets_a_valid_proxy_answer(tmp_path: Path, event: Any) -> None:
    door = main.Door(Settings(model_repository_root=str(tmp_path)))
    assert 200 <= whole(door, event) < 500


# ── a corpus of events ──────────────────────────────────────────────────────────────────


DIGIT = "@events/requests/digit.json"  # stands in the corpus for what lies there


def corpus() -> list[dict[str, Any]]:
    """What gateways, schedulers, test buttons and attackers have sent, each with its status."""
    text = (ROOT / DIGIT[1:]).read_text()
    lines = (ROOT / "tests" / "corpus" / "events.jsonl").read_text().splitlines()
    cases: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for case in cases:
        if isinstance(case["event"], dict) and case["event"].get("body") == DIGIT:
            case["event"]["body"] = text
    return cases


CORPUS = corpus()


@pytest.fixture(scope="module")
def digits_door(digits: Path) -> main.Door:
    return main.Door(Settings(model_repository_root=str(digits.parent)))


def whole(door: main.Door, event: Any) -> int:
    """The status of an answer that every gateway can carry; an assertion else."""
    answer = door(event, None)
    answer = json.loads(json.dumps(answer))
    assert isinstance(answer["statusCode"], int)
    assert isinstance(answer["body"], str)
    assert isinstance(answer["isBase64Encoded"], bool)
    for headers in (answer.get("headers", {}), answer.get("multiValueHeaders", {})):
        assert isinstance(headers, dict)
    if "HEAD" in json.dumps(event) and not answer["body"]:
        return int(answer["statusCode"])
    if answer["statusCode"] >= 400:
        assert json.loads(answer["body"])["error"].isprintable()
    return int(answer["statusCode"])


@pytest.mark.parametrize("case", CORPUS, ids=[case["why"] for case in CORPUS])
def test_every_event_of_the_corpus_is_answered_as_it_was(
    digits_door: main.Door, case: dict[str, Any]
) -> None:
    assert case["status"] == whole(digits_door, case["event"])


def test_what_is_no_request_is_answered_without_a_look_at_the_models(tmp_path: Path) -> None:
    """A ping that keeps an environment warm costs nothing: a repository is not even opened."""
    nowhere = main.Door(Settings(model_repository_root=str(tmp_path / "nowhere")))
    pings = [case for case in CORPUS if "ping" in case["why"] or "scheduled" in case["why"]]
    assert [400] * 4 == [whole(nowhere, case["event"]) for case in pings]


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """An event of the corpus with some of its leaves replaced or gone."""
    event = copy.deepcopy(draw(st.sampled_from(CORPUS))["event"])
    for _ in range(draw(st.integers(1, 3))):
        holder = event
        while isinstance(holder, dict) and holder:
            key = draw(st.sampled_from(sorted(holder)))
            if isinstance(holder[key], dict) and holder[key] and draw(st.booleans()):
                holder = holder[key]
                continue
            holder[key] = draw(JSON)
            if draw(st.booleans()):
                del holder[key]
            break
    return event


@settings(max_examples=300, deadline=None)
@given(event=mutations())
def test_any_mutation_of_the_corpus_is_answered(digits_door: main.Door, event: Any) -> None:
    assert whole(digits_door, event) < 500
