"""Direct invocation: one event loads the models, and its response has the state of each."""

from __future__ import annotations

import json
import operator
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sklearn.dummy import DummyClassifier

from aws import BUCKET, S3Server
from conftest import MakeModel
from mlserverless import main
from mlserverless.settings import Settings

MODEL = DummyClassifier().fit([[0.0]], [0])
LOAD = {"mlserverless": "load"}


def open_handler(root: object, **settings: Any) -> main.Door:
    return main.Door(Settings(model_repository_root=str(root), **settings))


def states(response: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """State and reason of each model, which the body repeats."""
    assert response["models"] == json.loads(response["body"])["models"]
    return {each["name"]: (each["state"], each["reason"]) for each in response["models"]}


def test_a_load_event_loads_every_model_and_reports_it(make_model: MakeModel) -> None:
    make_model("a", MODEL, parameters={"version": "1"})
    make_model("a2", MODEL, name="a", parameters={"version": "2"})
    handler = open_handler(make_model("b", MODEL))
    assert [] == handler.registry.loaded()
    response = handler(LOAD, None)
    assert 200 == response["statusCode"]
    assert [("a", "1"), ("a", "2"), ("b", None)] == [
        (each["name"], each["version"]) for each in response["models"]
    ]
    assert {("READY", "")} == set(states(response).values())
    loaded = handler.registry.loaded()
    assert 3 == len(loaded)
    assert response == handler(LOAD, None)
    assert loaded == handler.registry.loaded(), "and loads none a second time"
    json.dumps(response)


def test_a_load_event_may_name_the_models(make_model: MakeModel) -> None:
    make_model("a", MODEL)
    handler = open_handler(make_model("b", MODEL))
    response = handler({**LOAD, "models": ["a"]}, None)
    assert (200, {"a": ("READY", "")}) == (response["statusCode"], states(response))
    assert 1 == len(handler.registry.loaded())
    response = handler({**LOAD, "models": ["a", "nope"]}, None)
    assert 404 == response["statusCode"]
    assert ("UNAVAILABLE", "Model nope not found") == states(response)["nope"]
    response = handler({**LOAD, "models": []}, None)
    assert (200, {}) == (response["statusCode"], states(response))


class Huge:
    """Unpickles to more than there is."""

    def __reduce__(self) -> Any:
        return operator.mul, (b"x", 2**62)


def test_what_cannot_be_loaded_is_in_the_response(make_model: MakeModel) -> None:
    make_model("good", MODEL)
    make_model("huge", Huge())
    handler = open_handler(make_model("bad", b"-corrupt-"))
    response = handler(LOAD, None)
    assert 500 == response["statusCode"]
    found = states(response)
    assert ("READY", "") == found["good"]
    assert "cannot be unpickled" in found["bad"][1]
    assert "more memory" in found["huge"][1]
    assert json.loads(response["body"])["error"].startswith("2 of 3 models are not loaded: bad: ")


def test_a_repository_that_cannot_be_read_is_in_the_response(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    response = open_handler(tmp_path / "nowhere")(LOAD, None)
    assert 500 == response["statusCode"]
    assert "cannot be read" in json.loads(response["body"])["error"]
    assert "Traceback" not in caplog.text


def test_an_s3_that_is_throttled_is_a_503(s3: S3Server, digits: Path) -> None:
    for file in ("model-settings.json", "mnist-svm.joblib"):
        s3.put(f"mnist-svm/{file}", (digits / file).read_bytes())
    handler = open_handler(f"s3://{BUCKET}", cache_folder=s3.cache_folder)
    s3.fault, s3.end = (503, "SlowDown"), ".joblib"
    response = handler(LOAD, None)
    assert 503 == response["statusCode"]
    assert "S3 cannot answer" in states(response)["mnist-svm"][1]
    s3.well()
    assert 200 == handler(LOAD, None)["statusCode"]


class Waiting:
    """Unpickles when it is let."""

    go = threading.Event()

    def __reduce__(self) -> Any:
        return _wait, ()


def _wait() -> DummyClassifier:
    Waiting.go.wait(10)
    return MODEL


def test_a_load_ends_before_the_function_and_goes_on_for_the_next(make_model: MakeModel) -> None:
    make_model("a", MODEL)
    handler = open_handler(make_model("slow", Waiting()))
    handler({**LOAD, "models": ["a"]}, None)  # imports scikit-learn
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: 900)
    start = time.monotonic()
    response = handler(LOAD, context)
    assert time.monotonic() - start < 0.9
    assert 503 == response["statusCode"]
    assert ("READY", "") == states(response)["a"]
    assert "still being loaded" in states(response)["slow"][1]
    Waiting.go.set()
    assert 200 == handler(LOAD, None)["statusCode"]


def test_a_listing_that_takes_too_long_is_a_503(s3: S3Server) -> None:
    s3.put("m/model-settings.json", b"{}")
    handler = open_handler(f"s3://{BUCKET}", cache_folder=s3.cache_folder)
    s3.hang = 1.0
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: 600)
    response = handler(LOAD, context)
    assert 503 == response["statusCode"]
    assert "too long" in json.loads(response["body"])["error"]


def test_in_poll_mode_a_version_that_failed_is_not_another_that_serves(
    make_model: MakeModel,
) -> None:
    make_model("a", b"-corrupt-", name="m")
    root = make_model("b", MODEL, name="m", parameters={"version": "1"})
    handler = open_handler(root, model_control_mode="poll", poll_seconds=0)
    for _ in range(2):
        response = handler(LOAD, None)
        assert {None: "UNAVAILABLE", "1": "READY"} == {
            each["version"]: each["state"] for each in response["models"]
        }


@pytest.mark.parametrize(
    "event",
    [
        {**LOAD, "models": "a"},
        {**LOAD, "models": [1]},
        {"mlserverless": "unload"},
        {"mlserverless": ["load"]},
        {**LOAD, "Records": []},
        {**LOAD, "requestContext": {}},
    ],
    ids=str,
)
def test_an_event_that_is_not_a_load_event_loads_nothing(
    make_model: MakeModel, event: dict[str, Any]
) -> None:
    handler = open_handler(make_model("a", MODEL))
    response = handler(event, None)
    assert 400 == response["statusCode"]
    assert "models" in json.loads(response["body"])["error"] or "HTTP" in response["body"]
    assert [] == handler.registry.loaded()


def test_where_no_thread_can_be_started_the_response_says_so(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = open_handler(make_model("a", MODEL))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    response = handler(LOAD, None)
    assert 503 == response["statusCode"]
    assert "no thread can be started" in json.loads(response["body"])["error"]


def test_an_unexpected_exception_is_a_500_without_its_message(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = open_handler(make_model("a", MODEL))

    def fail() -> Callable[[], None]:
        raise ValueError("Xylophon31415")

    monkeypatch.setattr(handler.registry, "index", fail)
    response = handler(LOAD, None)
    assert 500 == response["statusCode"]
    assert "internal error" in response["body"]
    assert "Xylophon31415" not in response["body"]
