"""Time and memory: what a function does not have is said before Lambda would end it."""

from __future__ import annotations

import gc
import gzip
import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures

from conftest import MakeModel, put_model
from doors import Answer, Handler, http_api, through
from emulator import Layout, emulator
from mlserverless import main
from mlserverless.settings import Settings

# asked for a number of seconds, takes them
SLEEP = FunctionTransformer(np.vectorize(time.sleep, otypes=[float]))
# three features are cheap, two hundred make 1.4 million columns
GROWING = PolynomialFeatures(degree=3).fit(np.zeros((1, 200)))


class Context:
    """Lambda's, for a function that is ended in so many seconds."""

    aws_request_id = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"

    def __init__(self, seconds: float) -> None:
        self.end = time.time() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int(1000 * (self.end - time.time())))


def asked(data: list[list[float]]) -> bytes:
    tensor = {"name": "x", "shape": np.shape(data), "datatype": "FP64", "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def ask(door: main.Door, seconds: float, data: list[list[float]], model: str = "m") -> Answer:
    """One request of a function that has so many seconds left."""
    handler: Handler = lambda event, _: door(event, Context(seconds))  # noqa: E731 - to name its type
    return through(handler, http_api)("POST", f"/v2/models/{model}/infer", asked(data))


@pytest.fixture
def door(make_model: MakeModel) -> main.Door:
    return main.Door(Settings(model_repository_root=str(make_model("m", SLEEP))))


def test_a_prediction_that_takes_too_long_is_a_504_in_time_and_the_next_is_served(
    door: main.Door,
) -> None:
    assert 200 == ask(door, 29, [[0.1]]).status
    start = time.monotonic()
    late = ask(door, 1.0, [[1.5]])
    assert time.monotonic() - start < 1.0
    assert (504, {"error": "this request takes longer than the function may"}) == (
        late.status,
        late.json,
    )
    assert 200 == ask(door, 29, [[0.0]]).status


@pytest.mark.parametrize("quick", [3, 40])
def test_a_model_that_was_quick_until_now_is_given_up_in_time_too(
    door: main.Door, quick: int
) -> None:
    """After a while it is asked without a thread, but for nothing larger than before."""
    assert [200] * quick == [ask(door, 29, [[0.0]]).status for _ in range(quick)]
    start = time.monotonic()
    assert 504 == ask(door, 1.0, [[1.5]] + [[0.0]] * (quick > 3)).status
    assert time.monotonic() - start < 1.0


def test_nothing_of_a_request_is_kept_once_it_is_answered(make_model: MakeModel) -> None:
    """Not even until the collector comes: a few bodies are all of a small function's memory."""
    root = make_model("m", SLEEP)
    put_model(root, "broken", b"-corrupt-")
    settings = Settings(model_repository_root=str(root), max_body_bytes=2_000_000)
    door = main.Door(settings)
    body = asked([[0.0]])
    padded = body + b" " * 1_000_000
    questions = [
        ("m", padded, {}),
        ("m", b"x" + padded, {}),
        ("m", padded * 3, {}),
        ("m", padded, {"content-encoding": "gzip"}),
        ("m", asked([[-1.0]]) + b" " * 1_000_000, {}),
        ("n", padded, {}),
        ("broken", padded, {}),
    ]

    def each() -> list[int]:
        found = []
        for model, body, headers in questions:
            event = http_api("POST", f"/v2/models/{model}/infer", body, headers)
            found.append(door(event, Context(29))["statusCode"])
        return found

    assert [200, 400, 413, 400, 400, 404, 500] == each()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(3):
            each()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert after - before < 500_000, "less than half of one body"


def test_what_was_given_up_takes_a_bounded_part_of_the_function(door: main.Door) -> None:
    assert 200 == ask(door, 29, [[0.1]]).status
    given_up = [ask(door, 0.6, [[1.5]]).status for _ in range(4)]
    assert [504] * 4 == given_up
    busy = ask(door, 0.6, [[0.0]])
    assert (503, "1") == (busy.status, busy.headers["retry-after"])
    assert 200 == ask(door, 29, [[0.0]]).status, "it waits for one that ends"


def test_where_no_thread_can_be_started_a_request_is_a_503_and_the_next_is_served(
    door: main.Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _refuse_to_start)
        refused = ask(door, 29, [[0.0]])
    assert (503, "1") == (refused.status, refused.headers["retry-after"])
    assert {"error": "no thread can be started in the memory of this process"} == refused.json
    assert 200 == ask(door, 29, [[0.0]]).status


def _refuse_to_start(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("said", [None, "soon", Mock(), float("inf"), 10**12])
def test_a_context_that_knows_no_time_is_no_reason_to_refuse(door: main.Door, said: Any) -> None:
    event = http_api("POST", "/v2/models/m/infer", asked([[0.0]]), {})
    context = SimpleNamespace(aws_request_id=said, get_remaining_time_in_millis=lambda: said)
    assert 200 == door(event, context)["statusCode"]
    assert 200 == door(event, Mock())["statusCode"]


class Waiting:
    """Unpickles when it is let."""

    go = threading.Event()
    loads = 0

    def __reduce__(self) -> Any:
        return _wait, ()


def _wait() -> FunctionTransformer:
    Waiting.loads += 1
    Waiting.go.wait(10)
    return FunctionTransformer()


def test_a_load_that_takes_too_long_is_a_503_and_goes_on_for_who_asks_again(
    make_model: MakeModel,
) -> None:
    door = main.Door(Settings(model_repository_root=str(make_model("slow", Waiting()))))
    late = ask(door, 0.8, [[1.0]], "slow")
    assert (503, "1", {"error": "Model slow is still being loaded"}) == (
        late.status,
        late.headers["retry-after"],
        late.json,
    )
    Waiting.go.set()
    assert 200 == ask(door, 29, [[1.0]], "slow").status
    assert 1 == Waiting.loads


def test_an_estimators_own_timeout_is_not_the_functions(make_model: MakeModel) -> None:
    root = make_model("m", FunctionTransformer(_time_out))
    door = main.Door(Settings(model_repository_root=str(root)))
    assert 500 == ask(door, 29, [[1.0]]).status


def _time_out(_: Any) -> Any:
    raise TimeoutError


# ── under the real runtime client and emulator ──────────────────────────────────────────


@pytest.fixture(scope="module")
def function(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handler]:
    root = tmp_path_factory.mktemp("limits")
    put_model(root, "sleep", SLEEP)
    put_model(root, "growing", GROWING)
    put_model(root, "echo", FunctionTransformer())
    limits = {"AWS_LAMBDA_FUNCTION_TIMEOUT": "3", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512"}
    with emulator(layout, MLSERVER_MODEL_REPOSITORY_ROOT=str(root), **limits) as invoke:
        yield invoke


def test_the_function_answers_before_lambda_would_end_it(function: Handler) -> None:
    door = through(function, http_api)
    statuses = [
        door("POST", "/v2/models/sleep/infer", asked([[seconds]])).status
        for seconds in (0.01, 6.0, 0.01)
    ]
    assert [200, 504, 200] == statuses


def bomb(text: bytes) -> bytes:
    """Sixteen megabytes of it, as data."""
    data = b"[" + text * (16_000_000 // len(text)) + text[:-1] + b"]"
    return b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":' + data + b"}]}"


@pytest.mark.parametrize("text", [b"[],", b"{},", b'"",', b"[[1]],"], ids=str)
def test_json_that_would_not_fit_is_a_413_and_the_process_lives(
    function: Handler, text: bytes
) -> None:
    door = through(function, http_api)
    body = gzip.compress(bomb(text))
    answer = door("POST", "/v2/models/growing/infer", body, {"content-encoding": "gzip"})
    assert 413 == answer.status
    assert {"error": "this request needs more memory than there is"} == answer.json
    assert 200 == door("GET", "/v2/health/live").status


@pytest.mark.parametrize("text", [b"x", b'\\"', b"\\u0001", "é".encode(), b'x","'], ids=str)
def test_text_that_cannot_be_spelled_is_a_413_and_the_process_lives(
    function: Handler, text: bytes
) -> None:
    """What writes JSON would end the process where its buffer does not fit."""
    door = through(function, http_api)
    data = b'["' + text * (15_000_000 // len(text)) + b'"]'
    tensor = b'{"name":"x","shape":[-1],"datatype":"BYTES","data":' + data + b"}"
    body = gzip.compress(b'{"inputs":[' + tensor + b"]}")
    answer = door("POST", "/v2/models/echo/infer", body, {"content-encoding": "gzip"})
    assert (413, ["error"]) == (answer.status, list(answer.json))
    assert 200 == door("GET", "/v2/models/echo/ready").status


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (2, "and Lambda carries 6291456"),
        (4, "and Lambda carries 6291456"),  # whose text is too much to be copied once more
        (10, "needs more memory than there is"),
        (100, "needs more memory than there is"),
    ],
)
def test_a_result_that_would_not_fit_is_a_413_and_the_next_is_served(
    function: Handler, rows: int, sentence: str
) -> None:
    door = through(function, http_api)
    numbers = np.random.default_rng(0).random((rows, 200)).tolist()
    answer = door("POST", "/v2/models/growing/infer", asked(numbers))
    assert 413 == answer.status
    assert sentence in answer.json["error"]
    assert 200 == door("GET", "/v2/models/growing/ready").status


def test_a_body_that_fits_is_not_refused_for_its_size(function: Handler) -> None:
    """Five megabytes of numbers, in a function of the least memory that the template allows."""
    rows = np.random.default_rng(0).random((1300, 200)).tolist()
    body = asked(rows)
    assert len(body) > 5_000_000
    answer = through(function, http_api)("POST", "/v2/models/echo/infer", body)
    assert (200, [1300, 200]) == (answer.status, answer.json["outputs"][0]["shape"])


def test_a_tables_json_that_would_not_fit_is_a_413_and_the_process_lives(
    function: Handler,
) -> None:
    """The last, for with pandas in it the function has less to give the others."""
    door = through(function, http_api)
    for text in (b"1.5,", b"[],"):
        data = b'["[' + text * (12_000_000 // len(text)) + b'1]"]'
        tensor = (
            b'{"name":"x","shape":[1],"datatype":"BYTES",'
            b'"parameters":{"content_type":"pd_json"},"data":' + data + b"}"
        )
        body = gzip.compress(
            b'{"parameters":{"content_type":"pd"},"inputs":[' + tensor + b"]}", compresslevel=1
        )
        answer = door("POST", "/v2/models/echo/infer", body, {"content-encoding": "gzip"})
        assert (413, ["error"]) == (answer.status, list(answer.json))
    assert 200 == door("GET", "/v2/models/echo/ready").status
