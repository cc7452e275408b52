"""The routes, and every failure as `{"error": …}`, whatever raised it."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.tree import DecisionTreeClassifier
from starlette import routing

from conftest import MakeModel
from doors import Answer, Door, http_api, through
from mlserverless import main
from mlserverless.settings import Settings

MODEL = DummyClassifier().fit([[0.0]], [0])
ROW = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0]}
INFER = "/v2/models/m/infer"


def door(root: Path, **settings: Any) -> Door:
    return through(main.Door(Settings(model_repository_root=str(root), **settings)), http_api)


def ask(door: Door, path: str = INFER, **body: Any) -> Answer:
    return door("POST", path, json.dumps({"inputs": [ROW], **body}).encode())


FAULTS: tuple[type[BaseException], ...] = (
    RuntimeError,
    MemoryError,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    asyncio.CancelledError,
)


class Clumsy(BaseEstimator):
    """Raises whatever its rows ask for."""

    def fit(self, *_: Any) -> Clumsy:
        return self

    def predict(self, rows: Any) -> Any:
        raise FAULTS[int(rows[0][0])](rows)


class Echo(BaseEstimator):
    """Answers what it is asked."""

    def fit(self, *_: Any) -> Echo:
        return self

    def predict(self, rows: Any) -> Any:
        return rows


@pytest.fixture
def served(make_model: MakeModel) -> Door:
    return door(make_model("m", MODEL, parameters={"version": "v1"}))


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/v2/health/live", 200, {"live": True}),
        ("GET", "/v2/health/live/", 200, {"live": True}),
        ("GET", "/v2/health/ready", 200, {"ready": True}),
        ("GET", "/v2/models/m/ready", 200, {"name": "m", "ready": True}),
        ("GET", "/v2/models/m/versions/v1/ready/", 200, {"name": "m", "ready": True}),
        ("GET", "/v2/models/n/ready", 404, {"error": "Model n not found"}),
        ("GET", "/v2/models/m/versions/2", 404, {"error": "Model m with version 2 not found"}),
        ("GET", "/docs", 404, {"error": "there is no route /docs"}),
        ("GET", "/redoc", 404, {"error": "there is no route /redoc"}),
        ("GET", "/openapi.json", 404, {"error": "there is no route /openapi.json"}),
        ("GET", "/a%0d%0ab", 404, {"error": r"there is no route /a\r\nb"}),
        ("GET", "/v2/health/live%0a", 404, {"error": r"there is no route /v2/health/live\n"}),
        ("GET", "/v2%0A/", 404, {"error": r"there is no route /v2\n"}),
        ("GET", INFER, 405, {"error": f"{INFER} does not take GET"}),
        ("PUT", "/v2", 405, {"error": "/v2 does not take PUT"}),
        ("BREW", "/v2", 405, {"error": "/v2 does not take BREW"}),
    ],
)
def test_a_route_has_one_answer_with_or_without_a_slash(
    served: Door, method: str, path: str, status: int, body: Any
) -> None:
    answer = served(method, path)
    assert (status, body) == (answer.status, answer.json)
    assert "application/json" == answer.headers["content-type"]


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/m/ready"])
def test_head_is_get_without_a_body(served: Door, path: str) -> None:
    assert (200, b"") == (served("HEAD", path).status, served("HEAD", path).body)


def test_a_wrong_method_says_which_are_right(served: Door) -> None:
    assert "POST" == served("GET", INFER).headers["allow"]


def test_the_servers_metadata_lists_what_works(served: Door) -> None:
    assert {
        "name": "mlserverless",
        "version": Settings().server_version,
        "extensions": ["binary_tensor_data", "classification", "model_repository"],
    } == served("GET", "/v2").json


def test_a_models_metadata_is_filled_in_from_the_estimator(served: Door) -> None:
    answer = served("GET", "/v2/models/m").json
    assert ["name", "versions", "platform", "inputs", "outputs", "parameters"] == list(answer)
    assert ("m", ["v1"], "sklearn") == (answer["name"], answer["versions"], answer["platform"])
    assert ["predict", "predict_proba", "predict_log_proba"] == [
        each["name"] for each in answer["outputs"]
    ]


@pytest.mark.parametrize("verb", ["infer", "generate"])
@pytest.mark.parametrize("model", ["m", "m/versions/v1"])
def test_a_stream_is_the_same_answer_as_one_event(served: Door, model: str, verb: str) -> None:
    plain = ask(served, f"/v2/models/{model}/{verb}", id="7")
    streamed = ask(served, f"/v2/models/{model}/{verb}_stream", id="7")
    assert b"data: " + plain.body + b"\n\n" == streamed.body
    assert streamed.headers["content-type"].startswith("text/event-stream")


def test_answers_of_infer_are_compressed_when_asked_and_others_never(make_model: MakeModel) -> None:
    root = make_model("m", MODEL)
    many = {"inputs": [{**ROW, "shape": [500, 1], "data": [0] * 500}]}
    wish = {"Accept-Encoding": "gzip"}
    body = json.dumps({**many, "id": "7"}).encode()
    plain = door(root)("POST", INFER, body)
    packed = door(root)("POST", INFER, body, wish)
    assert "gzip" == packed.headers["content-encoding"]
    assert plain.body == gzip.decompress(packed.body)
    off = door(root, gzip_enabled=False)("POST", INFER, body, wish)
    error = door(root)("POST", f"/v2/models/{'x' * 999}/infer", body, wish)
    metadata = door(root)("GET", "/v2/models/m", b"", wish)
    assert not any("content-encoding" in each.headers for each in (off, error, metadata))


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"x" * 2000, {}, 413),
        (gzip.compress(b" " * 2000), {"Content-Encoding": "gzip"}, 413),
        (b"{}", {"Content-Encoding": "br"}, 415),
        (b"{}", {"Inference-Header-Content-Length": "x"}, 400),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_and_the_next_is_served(
    make_model: MakeModel, body: bytes, headers: dict[str, str], status: int
) -> None:
    limited = door(make_model("m", MODEL), max_body_bytes=1000)
    answer = limited("POST", INFER, body, headers)
    assert (status, ["error"]) == (answer.status, list(answer.json))
    assert 200 == ask(limited).status


@pytest.mark.parametrize(
    ("row", "status"), [(row, 413 if FAULTS[row] is MemoryError else 500) for row in range(7)]
)
def test_what_the_estimator_throws_is_contained_and_its_words_are_not_logged(
    make_model: MakeModel, row: int, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    clumsy = door(make_model("m", Clumsy()))
    answer = ask(clumsy, inputs=[{**ROW, "data": [row + 0.3125]}])
    assert (status, ["error"]) == (answer.status, list(answer.json))
    assert "3125" not in answer.json["error"] + caplog.text
    if status == 500:
        assert answer.json["error"].rsplit(" ", 1)[1] in caplog.text
        where = caplog.records[-1].__dict__["fields"]["where"]
        assert "test_app.py" in where
        assert "3125" not in where


class Fading(BaseEstimator):
    """Needs an attribute that a test takes away and gives back."""

    slope: float

    def fit(self, *_: Any) -> Fading:
        return self

    def predict(self, rows: Any) -> Any:
        return self.slope * rows


def test_a_model_at_fault_is_unavailable_in_the_index_until_it_predicts(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model("good", MODEL)
    faulty = door(make_model("m", Fading(), parameters={"version": "v1"}))
    response = ask(faulty)
    reason = "Model m cannot predict: its Fading has no attribute slope"
    assert (500, {"error": reason}) == (response.status, response.json)

    def states() -> Any:
        index = faulty("POST", "/v2/repository/index").json
        return [(each["name"], each["state"], each["reason"]) for each in index]

    assert [("good", "READY", ""), ("m", "UNAVAILABLE", reason)] == states()
    ready = faulty("POST", "/v2/repository/index", b'{"ready":true}').json
    assert ["good"] == [each["name"] for each in ready]
    assert 200 == ask(faulty, "/v2/models/good/infer").status
    monkeypatch.setattr(Fading, "slope", 2.0, raising=False)
    assert 200 == ask(faulty).status
    assert [("good", "READY", ""), ("m", "READY", "")] == states()


def test_a_classification_has_the_label_of_the_highest_score(served: Door) -> None:
    wanted = {"name": "predict", "parameters": {"classification": 2}}
    (output,) = ask(served, outputs=[wanted]).json["outputs"]
    assert ("predict", [1, 1], "BYTES", ["1.0:0:0"]) == (
        output["name"], output["shape"], output["datatype"], output["data"],
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_a_log_probability_of_minus_infinity_is_null_and_kept_in_binary(
    make_model: MakeModel,
) -> None:
    certain = door(make_model("m", DecisionTreeClassifier().fit([[0.0], [1.0]], [0, 1])))
    plain = {"name": "predict_log_proba"}
    (output,) = ask(certain, outputs=[plain]).json["outputs"]
    assert [0.0, None] == output["data"]
    response = ask(certain, outputs=[{**plain, "parameters": {"binary_data": True}}])
    length = int(response.headers["inference-header-content-length"])
    assert [0.0, -np.inf] == np.frombuffer(response.body[length:]).tolist()


def test_a_model_that_does_not_load_says_so_on_every_route(make_model: MakeModel) -> None:
    broken = door(make_model("m", b"-corrupt-"))
    sentence = "Model m failed to load: the artifact cannot be unpickled (KeyError)"
    infer, metadata = ask(broken), broken("GET", "/v2/models/m")
    ready = broken("GET", "/v2/models/m/ready")
    assert [500, 500, 400] == [each.status for each in (infer, metadata, ready)]
    assert 1 == len({infer.json["error"], metadata.json["error"], ready.json["error"]})
    assert sentence[:50] == infer.json["error"][:50]


def test_an_unreadable_repository_is_not_ready_and_a_500_to_its_models(tmp_path: Path) -> None:
    lost = door(tmp_path / "nowhere")
    ready = lost("GET", "/v2/health/ready")
    assert (400, False) == (ready.status, ready.json["ready"])
    assert ["ready", "error"] == list(ready.json)
    assert (500, ready.json["error"]) == (ask(lost).status, ask(lost).json["error"])
    assert 200 == lost("GET", "/v2/health/live").status


def test_preloaded_models_are_ready_at_once_or_say_which_is_not(make_model: MakeModel) -> None:
    root = make_model("m", MODEL)
    assert 200 == door(root, load_models_at_startup=True)("GET", "/v2/health/ready").status
    make_model("bad", b"-corrupt-")
    ready = door(root, load_models_at_startup=True)("GET", "/v2/health/ready")
    assert (400, "model bad is not loaded") == (ready.status, ready.json["error"])


def test_the_index_may_be_filtered_and_needs_no_body(make_model: MakeModel) -> None:
    make_model("bad", b"", implementation="other.Runtime")
    index = door(make_model("m", MODEL, parameters={"version": "v1"}))
    everything = index("POST", "/v2/repository/index").json
    bad = {
        "name": "bad",
        "state": "UNAVAILABLE",
        "reason": "implementation other.Runtime is not served here, "
        "mlserver_sklearn.SKLearnModel is",
    }
    good = {"name": "m", "version": "v1", "state": "READY", "reason": ""}
    assert [bad, good] == everything
    assert [good] == index("POST", "/v2/repository/index", b'{"ready":true}').json
    assert everything == index("POST", "/v2/repository/index", b'{"ready":false}').json


def test_load_and_unload_work_where_the_owner_allows_it(make_model: MakeModel) -> None:
    root = make_model("m", MODEL)
    control = "/v2/repository/models/{}/{}".format
    allowed = door(root, model_control_mode="explicit")
    assert [(200, b""), 404, 200, 200] == [
        allowed("POST", control("m", "unload"))[::2],
        ask(allowed).status,
        allowed("POST", control("m", "load")).status,
        ask(allowed).status,
    ]
    assert 404 == allowed("POST", control("n", "load")).status
    for verb in ("load", "unload"):
        answer = door(root)("POST", control("m", verb))
        assert (403, ["error"]) == (answer.status, list(answer.json))


def test_a_name_is_looked_up_never_joined_into_a_path(served: Door) -> None:
    for name in ("..%2Fm", "%2e%2e", "m%00", "m%2F"):
        assert 404 == ask(served, f"/v2/models/{name}/infer").status


def test_what_fails_before_any_route_is_an_answer_too(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(routing.Route, "matches", lambda *_: 1 / 0)
    answer = ask(door(make_model("m", MODEL)))
    assert (500, ["error"]) == (answer.status, list(answer.json))
    assert "failed with ZeroDivisionError" in caplog.text
