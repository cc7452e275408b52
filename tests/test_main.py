"""The door to Lambda: whole events in, whole answers out, nothing raised, little imported."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snapshot_restore_py as hooks
from sklearn.dummy import DummyClassifier

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


# ── INIT ────────────────────────────────────────────────────────────────────────────────

# the status, Retry-After and body of the readiness check and of a prediction
Report = list[tuple[int, str | None, Any]]

PRELOAD = {"MLSERVER_LOAD_MODELS_AT_STARTUP": "true"}
REPORT = """
import json, os, sys, threading
{before}
from mlserverless.main import handler
def call(path, body=None):
    http = {{"method": "POST" if body else "GET", "path": path}}
    event = {{"version": "2.0", "requestContext": {{"http": http}}, "body": body}}
    answer = handler(event, None)
    return [answer["statusCode"], answer["headers"].get("retry-after"), json.loads(answer["body"])]
infer = json.loads(open({event!r}).read())["body"]
def report():
    model = call("/v2/models/mnist-svm/infer", infer)
    print(json.dumps([call("/v2/health/ready"), model]), flush=True)
report()
sys.stdin.readline()
{after}
report()
"""


def report_before_and_after(
    recover: Callable[[], object], *, before: str = "", after: str = "", **environment: str
) -> tuple[Report, Report, str]:
    """Import the handler in a fresh process; report before and after `recover`, and its log."""
    code = REPORT.format(before=before, after=after, event=str(ROOT / "events/http-api-infer.json"))
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "handler"), **PRELOAD, **environment},
        stdin=pipe, stdout=pipe, stderr=pipe, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    reports = [process.stdout.readline()]
    recover()
    rest, logged = process.communicate("go on\n", timeout=60)
    assert 0 == process.returncode, logged
    first, second = (json.loads(each) for each in (*reports, *rest.splitlines()))
    return first, second, logged


def assert_served(report: Report) -> None:
    ready, model = report
    assert (200, {"ready": True}) == (ready[0], ready[2])
    assert (200, [8]) == (model[0], model[2]["outputs"][0]["data"])


def test_init_goes_on_without_the_folder_of_its_models_and_they_are_served_once_it_is_there(
    digits: Path, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    before, after, _ = report_before_and_after(
        lambda: root.symlink_to(digits.parent), MLSERVER_MODEL_REPOSITORY_ROOT=str(root)
    )
    reason = "the model repository cannot be read: No such file or directory"
    assert [
        [400, None, {"ready": False, "error": reason}],
        [500, None, {"error": reason}],
    ] == before
    assert_served(after)


@pytest.mark.parametrize(
    ("fault", "status", "retry"),
    [((503, "SlowDown"), 503, "1"), ((403, "AccessDenied"), 500, None)],
)
def test_init_goes_on_without_s3_and_the_models_are_served_once_it_responds(
    s3: S3Server, digits: Path, fault: tuple[int, str], status: int, retry: str | None
) -> None:
    for file in ("model-settings.json", "mnist-svm.joblib"):
        s3.put(f"mnist-svm/{file}", (digits / file).read_bytes())
    s3.fault = fault
    root = f"s3://{BUCKET}"
    before, after, _ = report_before_and_after(
        s3.well, MLSERVER_MODEL_REPOSITORY_ROOT=root, **s3.environment
    )
    assert [400, [status, retry]] == [before[0][0], list(before[1][:2])]
    assert BUCKET in before[0][2]["error"]
    assert before[0][2]["error"] == before[1][2]["error"]
    assert_served(after)


class SlowToLoad(DummyClassifier):  # type: ignore[misc] # of a library without types
    """Takes half a second to load."""

    def __setstate__(self, state: Any) -> None:
        time.sleep(0.5)
        super().__setstate__(state)


def test_a_readiness_check_that_has_no_time_to_load_what_is_missing_is_not_ready(
    make_model: MakeModel, tmp_path: Path
) -> None:
    settings = Settings(
        model_repository_root=str(tmp_path / "repository"), load_models_at_startup=True
    )
    door = main.Door(settings)
    make_model("m", SlowToLoad().fit([[0.0]], [0]))
    http = {"method": "GET", "path": "/v2/health/ready"}
    ready = {"version": "2.0", "requestContext": {"http": http}}
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: 600)
    answer = door(ready, context)
    reason = "the model repository takes too long to respond"
    assert 400 == answer["statusCode"]
    assert {"ready": False, "error": reason} == json.loads(answer["body"])
    assert 200 == door(ready, None)["statusCode"], "the load goes on"


def test_init_goes_on_where_no_thread_can_start(s3: S3Server, digits: Path) -> None:
    for file in ("model-settings.json", "mnist-svm.joblib"):
        s3.put(f"mnist-svm/{file}", (digits / file).read_bytes())
    before, after, _ = report_before_and_after(
        lambda: None,
        before="threading.stack_size(2**46)",
        after="threading.stack_size(0)",
        MLSERVER_MODEL_REPOSITORY_ROOT=f"s3://{BUCKET}",
        **s3.environment,
    )
    assert [400, [503, "1"]] == [before[0][0], list(before[1][:2])]
    assert_served(after)


def test_a_start_that_failed_is_retried_by_each_request(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    before, after, _ = report_before_and_after(
        lambda: None,
        before=f"os.chdir({str(tmp_path / 'gone')!r}); os.rmdir({str(tmp_path / 'gone')!r})",
        after=f"os.chdir({str(digits.parent)!r})",
        MLSERVER_MODEL_REPOSITORY_ROOT=".",
    )
    assert [500, 500] == [each[0] for each in before]
    assert all("internal error; the log says more under" in each[2]["error"] for each in before)
    assert_served(after)


def test_a_memory_limit_that_cannot_be_set_is_logged_and_requests_are_served(digits: Path) -> None:
    before, _, log = report_before_and_after(
        lambda: None,
        MLSERVER_MODEL_REPOSITORY_ROOT=str(digits.parent),
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE="9" * 5000,
    )
    assert_served(before)
    assert '"message":"the memory limit was not set (ValueError)"' in log


def test_without_the_runtimes_hooks_init_goes_on(digits: Path) -> None:
    before, _, log = report_before_and_after(
        lambda: None,
        before="sys.modules['snapshot_restore_py'] = None",
        MLSERVER_MODEL_REPOSITORY_ROOT=str(digits.parent),
        AWS_LAMBDA_INITIALIZATION_TYPE="snap-start",
    )
    assert_served(before)
    assert "the SnapStart hooks were not registered" in log
