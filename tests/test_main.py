"""The door to Lambda: whole events in, whole answers out, nothing raised, little imported."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snapshot_restore_py as hooks

from aws import BUCKET, S3Server
from conftest import ROOT, MakeModel
from doors import http_api, through
from mlserverless import deadline, main
from mlserverless.repository import FolderRepository
from mlserverless.settings import Settings

EVENTS = sorted((ROOT / "events").glob("*.json"))
PREDICTED = {
    "model_name": "mnist-svm",
    "model_version": "v0.1.0",
    "id": "the-last-digit",
    "parameters": {},
    "outputs": [
        {
            "name": "predict",
            "shape": [1, 1],
            "datatype": "INT64",
            "parameters": {"content_type": "np"},
            "data": [8],
        }
    ],
}
TRACE = "1-5759e988-bd862e3fe1be46a994272793"
CONTEXT = SimpleNamespace(aws_request_id="c6af9ac6-7b61-11e6-9a41-93e8deadbeef")


def event(name: str) -> Any:
    return json.loads((ROOT / "events" / f"{name}.json").read_text())


@pytest.fixture
def door(digits: Path) -> main.Door:
    return main.Door(Settings(model_repository_root=str(digits.parent)))


@pytest.mark.parametrize("name", [path.stem for path in EVENTS])
def test_every_sort_of_event_gets_a_whole_answer(door: main.Door, name: str) -> None:
    answer = door(event(name), CONTEXT)
    assert 200 == answer["statusCode"]
    assert isinstance(answer["body"], str)
    if name.endswith("-infer"):
        assert PREDICTED == json.loads(answer["body"])


def test_each_gateway_gets_the_shape_that_it_reads(door: main.Door) -> None:
    def keys(name: str) -> set[str]:
        return set(door(event(name), CONTEXT))

    plain = {"statusCode", "headers", "body", "isBase64Encoded"}
    assert plain == keys("http-api-infer") == keys("function-url-infer") == keys("alb-infer")
    assert plain | {"multiValueHeaders"} == keys("rest-api-infer")
    many = door(event("alb-multi-value-infer"), CONTEXT)
    assert ["application/json"] == many["multiValueHeaders"]["content-type"]


def test_a_failure_has_the_shape_that_its_gateway_reads_too(door: main.Door) -> None:
    """A balancer that reads the one sort of headers makes a 502 of the other."""
    broken = {"body": "no base64!", "isBase64Encoded": True}
    shapes: dict[str, dict[str, Any]] = {
        "alb-multi-value-infer": {"multiValueHeaders": {"content-type": ["application/json"]}},
        "alb-infer": {"headers": {"content-type": "application/json"}},
        "http-api-infer": {"headers": {"content-type": "application/json"}},
    }
    for name, headers in shapes.items():
        answer = door(event(name) | broken, CONTEXT)
        body = {"statusCode": 400, "body": answer["body"], "isBase64Encoded": False}
        assert {**body, **headers} == answer


@pytest.mark.parametrize("body", ["", "no base64!"])
def test_a_question_for_the_head_gets_no_body_whatever_goes_wrong(
    door: main.Door, body: str
) -> None:
    head = {"httpMethod": "HEAD", "body": body, "isBase64Encoded": True}
    for path, status in (("/v2/health/live", 200), ("/v2/models/nope/ready", 404)):
        answer = door(event("rest-api-infer") | head | {"path": path}, CONTEXT)
        assert (400 if body else status, "") == (answer["statusCode"], answer["body"])


@pytest.mark.parametrize("hostile", [None, {}, [], 7, "x", {"requestContext": {"http": {}}}])
def test_the_door_answers_whatever_comes(door: main.Door, hostile: Any) -> None:
    answer = door(hostile, None)
    assert (400, ["error"]) == (answer["statusCode"], list(json.loads(answer["body"])))


def test_what_mangum_itself_raises_is_a_500_with_the_ids_of_its_line(
    door: main.Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the words of an estimator")

    monkeypatch.setattr(door, "mangum", broken)
    monkeypatch.setenv("_X_AMZN_TRACE_ID", f"Root={TRACE};Parent=53995c3f;Sampled=1")
    answer = door(event("http-api-infer"), CONTEXT)
    ids = {
        "request_id": CONTEXT.aws_request_id,
        "gateway_id": event("http-api-infer")["requestContext"]["requestId"],
        "trace_id": TRACE,
    }
    assert 500 == answer["statusCode"]
    assert (
        "internal error; the log says more under "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in ids.items())
    ) == json.loads(answer["body"])["error"]
    (record,) = caplog.records
    fields: dict[str, str] = record.__dict__["fields"]
    assert ids.items() <= fields.items()
    assert fields["where"].endswith(" broken")
    assert "words of an estimator" not in answer["body"] + record.getMessage()


def test_the_door_may_be_used_from_any_thread(door: main.Door) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: door(event("http-api-infer"), CONTEXT), range(20)))
    assert [PREDICTED] * 20 == [json.loads(each["body"]) for each in answers]


def test_what_would_wait_behind_the_door_is_an_error_not_a_hang(door: main.Door) -> None:
    with pytest.raises(RuntimeError, match="waited"):
        door.loop.run_until_complete(asyncio.sleep(0))


def test_a_body_that_is_no_base64_is_refused(door: main.Door) -> None:
    answer = door({**event("http-api-infer"), "isBase64Encoded": True}, CONTEXT)
    assert 400 == answer["statusCode"]


@pytest.mark.parametrize(
    "variable",
    ["MLSERVERLESS_MODEL_CONTROL_MODE", "MLSERVERLESS_POLL_SECONDS", "MLSERVERLESS_LOG_LEVEL",
     "MLSERVERLESS_REQUIRE_SHA256"],
)  # fmt: skip
def test_settings_that_cannot_be_understood_are_said_on_every_request(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "sometimes")
    answer = main._open()(event("http-api-infer"), CONTEXT)  # noqa: SLF001 - what import calls
    assert 500 == answer["statusCode"]
    assert variable in answer["body"]
    assert "sometimes" not in answer["body"], "it may be anything, and every client reads this"


def fresh(code: str, **environment: str) -> Any:
    """What a fresh interpreter prints as JSON; it has no credentials and no network to use."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "handler"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


LATE = ("sklearn", "scipy", "numpy", "joblib", "pandas", "boto3", "botocore", "uvicorn")


def test_importing_the_handler_imports_nothing_heavy_and_touches_no_network(
    s3: S3Server,
) -> None:
    code = (
        "import json, socket, sys\n"
        "def refuse(*_): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "from mlserverless.main import handler\n"
        f"print(json.dumps([name for name in {LATE!r} if name in sys.modules]))\n"
    )
    root = f"s3://{BUCKET}"
    assert [] == fresh(code, MLSERVER_MODEL_REPOSITORY_ROOT=root, **s3.environment)
    assert [] == s3.asked


def test_the_first_request_loads_the_model_from_s3_and_the_second_asks_nothing(
    s3: S3Server, digits: Path
) -> None:
    for file in ("model-settings.json", "mnist-svm.joblib"):
        s3.put(f"models/mnist-svm/{file}", (digits / file).read_bytes())
    s3.asked.clear()
    door = main.Door(
        Settings(model_repository_root=f"s3://{BUCKET}/models", cache_folder=s3.cache_folder)
    )
    assert [] == s3.asked
    first = door(event("http-api-infer"), CONTEXT)
    assert PREDICTED == json.loads(first["body"])
    assert 3 == len(s3.asked), "one listing, one settings file, one artefact"
    assert first == door(event("http-api-infer"), CONTEXT)
    assert 3 == len(s3.asked)


def test_a_download_that_takes_longer_than_the_function_succeeds_at_last(
    s3: S3Server, digits: Path
) -> None:
    """Each invocation continues it; a response says how far it is."""
    for file in ("model-settings.json", "mnist-svm.joblib"):
        s3.put(f"mnist-svm/{file}", (digits / file).read_bytes())
    size = (digits / "mnist-svm.joblib").stat().st_size
    handler = main.Door(
        Settings(model_repository_root=f"s3://{BUCKET}", cache_folder=s3.cache_folder)
    )
    assert 404 == through(handler, http_api)("GET", "/v2/models/nope").status, "all is imported"
    s3.end, s3.rate = ".joblib", size
    responses = []
    for _ in range(10):
        context = SimpleNamespace(get_remaining_time_in_millis=lambda: 900)
        responses.append(handler(event("http-api-infer"), context))
        if responses[-1]["statusCode"] == 200:
            break
        assert (503, "1") == (responses[-1]["statusCode"], responses[-1]["headers"]["retry-after"])
    assert PREDICTED == json.loads(responses[-1]["body"])
    arrived = re.findall(r"(\d+) of \d+ bytes of the artifact", json.dumps(responses))
    assert s3.ranges
    assert [f"bytes={each}-" for each in arrived] == s3.ranges


@pytest.mark.parametrize(
    ("initialization", "seconds"),
    [("on-demand", 6.0), ("provisioned-concurrency", 100.0), ("snap-start", 100.0), (None, None)],
)
def test_init_waits_for_s3_no_longer_than_lambda_waits_for_init(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    initialization: str | None,
    seconds: float | None,
) -> None:
    """It ends INIT after 10 s, or 130 s, and starts it again."""
    monkeypatch.setattr(hooks, "_before_snapshot_registry", [])
    monkeypatch.setattr(hooks, "_after_restore_registry", [])
    monkeypatch.delenv("AWS_LAMBDA_INITIALIZATION_TYPE", raising=False)
    if initialization is not None:
        monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", initialization)
    left: list[float] = []
    make_model("m", b"")
    declared = FolderRepository.models

    def models(*arguments: Any) -> Any:
        left.append(deadline.left(1e6))
        return declared(*arguments)

    monkeypatch.setattr(FolderRepository, "models", models)
    root = str(make_model("n", b""))
    main.Door(Settings(model_repository_root=root, load_models_at_startup=True))
    assert (seconds or 1e6) == pytest.approx(left[0], abs=1)


@pytest.mark.parametrize(
    ("fault", "status", "retry"),
    [((403, "AccessDenied"), 500, None), ((503, "SlowDown"), 503, "1")],
)
def test_s3s_bad_days_are_a_500_or_a_503_and_the_next_request_tries_again(
    s3: S3Server, digits: Path, fault: tuple[int, str], status: int, retry: str | None
) -> None:
    for file in ("model-settings.json", "mnist-svm.joblib"):
        s3.put(f"mnist-svm/{file}", (digits / file).read_bytes())
    door = main.Door(Settings(model_repository_root=f"s3://{BUCKET}", cache_folder=s3.cache_folder))
    s3.fault = fault
    answer = door(event("http-api-infer"), CONTEXT)
    assert (status, retry) == (answer["statusCode"], answer["headers"].get("retry-after"))
    s3.fault = None
    assert 200 == door(event("http-api-infer"), CONTEXT)["statusCode"]
