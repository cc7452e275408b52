"""The log: one JSON line a request with what an operator asks for, and nobody's data."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression

from aws import BUCKET, S3Server
from conftest import LOGS, ROOT, MakeModel
from doors import PLANTED, local_server, over_http
from mlserverless import main
from mlserverless.journal import METRICS, Journal, Line
from mlserverless.settings import Settings
from test_app import Clumsy, Echo

LOGGER = logging.getLogger("mlserverless")
CONTEXT = SimpleNamespace(aws_request_id="c6af9ac6-7b61-11e6-9a41-93e8deadbeef")
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _detached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back what a journal takes for itself."""
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(LOGGER, name, getattr(LOGGER, name))
    monkeypatch.setattr(logging.getLogger(), "handlers", logging.getLogger().handlers)
    for holder, name in ((sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(holder, name, getattr(holder, name))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Lines:
    """What has been logged since it was last asked."""
    return lambda: [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def event(name: str = "http-api-infer", **changes: Any) -> Any:
    return {**json.loads((ROOT / "events" / f"{name}.json").read_text()), **changes}


def journaled(root: object, level: str = "INFO", version: str | None = None) -> main.Door:
    journal = Journal(level, "digits", version)
    journal.attach()
    return main.Door(Settings(model_repository_root=str(root)), journal)


def test_a_request_is_one_line_with_what_an_operator_asks_for(digits: Path, lines: Lines) -> None:
    door = journaled(digits.parent)
    door(event(), CONTEXT)
    (first,) = [line for line in lines() if line["message"] == "request"]
    answer = door(event(), CONTEXT)
    (line,) = lines()
    times = ("timestamp", "load_ms", "predict_ms", "ms", "_aws")
    assert {
        "level": "INFO",
        "message": "request",
        "route": "/v2/models/{name}/versions/{version}/infer",
        "model": "mnist-svm",
        "version": "v0.1.0",
        "rows": 1,
        "bytes_in": len(event()["body"]),
        "request_id": CONTEXT.aws_request_id,
        "gateway_id": event()["requestContext"]["requestId"],
        "status": 200,
        "bytes_out": len(answer["body"]),
        "cold": False,
        "function": "digits",
    } == {name: value for name, value in line.items() if name not in times}
    assert (True, None) == (first["cold"], line["load_ms"])
    assert first["load_ms"] <= first["ms"]
    assert line["predict_ms"] <= line["ms"]


def test_a_line_is_cloudwatchs_metrics_too(digits: Path, lines: Lines) -> None:
    """By the specification: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html."""
    door = journaled(digits.parent)
    door(event(), CONTEXT)
    found: dict[str, str] = {}
    for line in lines():
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        assert ("MLServerless", [["function"]]) == (directive["Namespace"], directive["Dimensions"])
        assert abs(line["_aws"]["Timestamp"] / 1000 - line_time(line)) < 1
        for metric in directive["Metrics"]:
            assert isinstance(line[metric["Name"]], int | float)
            found[metric["Name"]] = metric["Unit"]
    failures = {"load_failures", "predict_failures", "server_errors"}
    assert {name: unit for name, unit in METRICS.items() if name not in failures} == found


def test_a_5xx_is_a_metric_of_its_function_version_and_nothing_else_is(
    make_model: MakeModel, lines: Lines
) -> None:
    door = journaled(make_model("m", b"-corrupt-"), version="7")
    door(event("http-api-infer", requestContext=asking("/v2/models/nope/infer")), CONTEXT)
    door(event("http-api-infer", requestContext=asking("/v2/models/m/infer")), CONTEXT)
    missing, _, failed = lines()
    assert {"server_errors", "function_version"}.isdisjoint(missing)
    assert ("7", 1) == (failed["function_version"], failed["server_errors"])
    (directive,) = failed["_aws"]["CloudWatchMetrics"]
    assert {
        "Namespace": "MLServerless",
        "Dimensions": [["function", "function_version"]],
        "Metrics": [{"Name": "server_errors", "Unit": "Count"}],
    } == directive


def test_timestamps_have_the_form_that_lambda_documents(digits: Path, lines: Lines) -> None:
    journaled(digits.parent)(event(), CONTEXT)
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
    assert all(re.fullmatch(pattern, line["timestamp"]) for line in lines())


def line_time(line: dict[str, Any]) -> float:
    from datetime import datetime

    return datetime.fromisoformat(line["timestamp"]).timestamp()


def test_a_load_that_fails_is_counted_and_names_its_model(
    make_model: MakeModel, lines: Lines
) -> None:
    door = journaled(make_model("m", b"-corrupt-"))
    door(event("http-api-infer", requestContext=asking("/v2/models/m/infer")), CONTEXT)
    failed, request = lines()
    assert ("ERROR", "m", 1) == (failed["level"], failed["model"], failed["load_failures"])
    assert failed["message"].startswith("Model m failed to load: ")
    assert ("ERROR", 500, "m") == (request["level"], request["status"], request["model"])


def test_a_model_at_fault_is_counted_in_the_entry_of_its_request(
    make_model: MakeModel, lines: Lines
) -> None:
    door = journaled(make_model("m", LogisticRegression()), "ERROR")
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [31415]}
    body = json.dumps({"inputs": [tensor]})
    for _ in range(2):
        door(event(requestContext=asking("/v2/models/m/infer"), body=body), CONTEXT)
    first, second = lines()
    assert {"ERROR"} == {first["level"], second["level"]}
    reason = "its LogisticRegression is not fitted; call fit before you save the model"
    for found in (first, second):
        assert (500, 1) == (found["status"], found["predict_failures"])
        assert f"Model m cannot predict: {reason}" == found["error"]
        assert "31415" not in json.dumps(found)
        (directive,) = found["_aws"]["CloudWatchMetrics"]
        assert {"Name": "predict_failures", "Unit": "Count"} in directive["Metrics"]


def asking(path: str, method: str = "POST") -> dict[str, Any]:
    return {"http": {"method": method, "path": path}}


@pytest.mark.parametrize(
    ("level", "logged"),
    [("INFO", [200, 404, 400]), ("WARNING", [404, 400]), ("ERROR", [])],
)
def test_the_level_decides_which_requests_have_a_line(
    digits: Path, lines: Lines, level: str, logged: list[int]
) -> None:
    door = journaled(digits.parent, level)
    asked = (event(), event(requestContext=asking("/v2/models/nope/infer")), None)
    for each in asked:
        door(each, CONTEXT)
    assert logged == [line["status"] for line in lines() if line["message"] == "request"]


def test_a_fault_that_is_not_the_clients_has_its_sentence_in_the_line(
    tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = journaled(tmp_path / "nowhere")(event(), CONTEXT)
    (line,) = lines()
    assert json.loads(answer["body"])["error"] == line["error"]
    monkeypatch.setenv("MLSERVERLESS_POLL_SECONDS", "soon")
    answer = main._open()(event(), CONTEXT)  # noqa: SLF001 - what import calls
    (line,) = lines()
    assert json.loads(answer["body"])["error"] == line["error"]
    assert (500, CONTEXT.aws_request_id) == (line["status"], line["request_id"])


def test_a_clients_words_are_in_no_line(make_model: MakeModel, lines: Lines) -> None:
    """Path, body, headers, query and an unknown model's name: nothing of them is repeated."""
    root = make_model("m", Clumsy())
    door = journaled(root, "DEBUG")
    word = PLANTED[-1]
    headers = {"authorization": word, "x-word": word, "content-encoding": word}
    tensor = {"name": word, "shape": [1, 1], "datatype": "FP64", "data": [0.31415]}
    body = json.dumps({"id": word, "inputs": [tensor], "parameters": {word: word}})
    for path in (f"/{word}", f"/v2/models/{word}/infer", "/v2/models/m/infer"):
        for given in (headers, {}):
            for text in (body, word, body.replace("0.31415", f'"{word}"')):
                context = asking(path) | {"requestId": f"{word} {{}}"}
                raw: dict[str, Any] = {"rawQueryString": word, "cookies": [word]}
                asked = event(requestContext=context, headers=given, body=text, **raw)
                door(asked, CONTEXT)
    found = lines()
    assert 18 == sum(line["message"] == "request" for line in found)
    assert "31415" not in json.dumps(found)


def test_a_warning_is_its_kind_and_place_without_its_words() -> None:
    code = (
        "import warnings\nfrom mlserverless.main import handler\nwarnings.warn('Xylophon31415')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={"PYTHONPATH": str(ROOT / "handler")},
        capture_output=True,
        text=True,
        check=True,
    )
    line = json.loads(done.stderr)
    assert ("WARN", "UserWarning was raised", "<string>:3") == (
        line["level"],
        line["message"],
        line["where"],
    )


FOREIGN = (
    "import logging, sys, threading\n"
    "from mlserverless.main import handler\n"
    "logging.getLogger('team.model').warning('Xylophon31415 %s', 'Xylophon31415')\n"
    "class Late:\n"
    "    def __del__(self): raise ValueError('Xylophon31415')\n"
    "Late()\n"
    "def fail(): raise KeyError('Xylophon31415')\n"
    "thread = threading.Thread(target=fail)\n"
    "thread.start()\n"
    "thread.join()\n"
)


def test_what_others_log_or_raise_unseen_is_its_kind_and_place_without_its_words() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN],
        env={"PYTHONPATH": str(ROOT / "handler")},
        capture_output=True,
        text=True,
        check=True,
    )
    logged, deleted, thread = [json.loads(line) for line in done.stderr.splitlines()]
    assert ("WARN", "team.model logged a message", "<string>:3") == (
        logged["level"],
        logged["message"],
        logged["where"],
    )
    assert "ValueError was raised where nobody catches it" == deleted["message"]
    assert ("ERROR", "<string>:7 fail") == (thread["level"], thread["where"].split("; ")[-1])


def test_a_line_is_never_longer_than_a_pipe_takes_whole(
    make_model: MakeModel, lines: Lines
) -> None:
    """Else those of several processes would be torn."""
    root = make_model("m" * 200, b"", uri="x" * 9000)
    door = journaled(root)
    door(event("http-api-infer", requestContext=asking(f"/v2/models/{'m' * 200}/infer")), CONTEXT)
    assert lines()
    journal = Journal("INFO")
    words = {"error": "e" * 9000, "where": "w" * 9000, "model": "m" * 9000}
    journal.emit(
        logging.makeLogRecord({"name": "mlserverless", "msg": "x" * 9000, "fields": words})
    )
    (line,) = lines()
    assert 4096 > len(json.dumps(line))
    assert "x" * 200 == line["message"]


def test_threads_write_whole_lines_and_lose_none(lines: Lines) -> None:
    journal = Journal("INFO")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: journal.request(Line(), 200, 0), range(2000)))
    assert [200] * 2000 == [line["status"] for line in lines()]


def test_a_pipe_that_nobody_reads_keeps_no_request(digits: Path) -> None:
    code = (
        "import json, sys\n"
        "from mlserverless.main import handler\n"
        "event = json.load(open(sys.argv[1]))\n"
        "print({handler(event, None)['statusCode'] for _ in range(2000)})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT / "events" / "http-api-health.json")],
        env={
            "PYTHONPATH": str(ROOT / "handler"),
            "MLSERVER_MODEL_REPOSITORY_ROOT": str(digits.parent),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert "{200}\n" == process.stdout.readline()
            lines = process.stderr.read().splitlines()
        finally:
            process.kill()
    assert 10 < len(lines) < 2000, "as many as fit"
    assert all(json.loads(line)["status"] == 200 for line in lines)


@pytest.mark.parametrize("trace", ["Self=Xylophon31415", "Root=Xylophon31415", "\udcff", ""])
def test_an_id_that_is_none_is_not_repeated(
    digits: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch, trace: str
) -> None:
    """A client's header has a say in X-Ray's."""
    monkeypatch.setenv("_X_AMZN_TRACE_ID", trace)
    journaled(digits.parent)(event("http-api-health"), CONTEXT)
    (line,) = lines()
    assert "trace_id" not in line


def test_bytes_are_bytes_whatever_the_characters(make_model: MakeModel, lines: Lines) -> None:
    door = journaled(make_model("m", Echo()))
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["é" * 50]}
    body = json.dumps({"inputs": [tensor]}, ensure_ascii=False)
    answer = door(event(requestContext=asking("/v2/models/m/infer"), body=body), CONTEXT)
    assert 200 == answer["statusCode"]
    line = lines()[-1]
    assert (len(body.encode()), len(answer["body"].encode())) == (
        line["bytes_in"],
        line["bytes_out"],
    )


def test_who_asks_for_everything_gets_no_signature_of_a_library(s3: S3Server, digits: Path) -> None:
    """Lambda's LogLevel=DEBUG is the root logger's, and botocore would log how it signs."""
    for file in ("model-settings.json", "mnist-svm.joblib"):
        s3.put(f"mnist-svm/{file}", (digits / file).read_bytes())
    code = (
        "import json, logging, sys\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "from mlserverless.main import handler\n"
        "print(handler(json.load(open(sys.argv[1])), None)['statusCode'])\n"
    )
    environment = {
        "PYTHONPATH": str(ROOT / "handler"),
        "MLSERVER_MODEL_REPOSITORY_ROOT": f"s3://{BUCKET}",
        "AWS_LAMBDA_LOG_LEVEL": "DEBUG",
        **s3.environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "events" / "http-api-infer.json")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "200\n" == done.stdout
    assert ["model mnist-svm loaded", "request"] == [
        json.loads(line)["message"] for line in done.stderr.splitlines() if line.startswith("{")
    ]
    assert not re.search("signature|authorization|AWS4-HMAC", done.stderr, re.IGNORECASE)


def test_nobody_who_reads_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlserverless.journal.STDERR", 9999)
    Journal("INFO").request(Line(), 200, 0)
    Journal("INFO").emit(logging.LogRecord("x", 20, "", 0, "%s", ("word",), None))


def test_the_local_server_logs_what_went_wrong_and_on_request_everything(
    digits: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for debug, logged in (("false", [404]), ("true", [200, 404])):
        with local_server(digits.parent, MLSERVER_DEBUG=debug) as url:
            for path in ("/v2/health/live", "/v2/nowhere?Xylophon31415"):
                over_http(url)("GET", path)
        found = capfd.readouterr().err
        lines = [json.loads(line) for line in found.splitlines()]
        requests = [line for line in lines if line["message"] == "request"]
        assert logged == [line["status"] for line in requests]
        assert "Xylophon31415" not in found
        assert all("_aws" not in line for line in lines)


@pytest.mark.last
def test_the_logs_of_this_whole_run_hold_nothing_that_was_planted(
    request: pytest.FixtureRequest,
) -> None:
    """Headers, queries, bodies, credentials: of the handler, emulator, containers and servers."""
    kept: list[str] = request.config.stash[LOGS]
    logs = "\n".join(kept)
    assert [] == [word for word in PLANTED if word in logs]
    if len(request.session.items) > 1000:  # all of them, so that there was something to find
        assert logs.count('"message":"request"') > 1000
        assert logs.count("/v2/models/{name}/infer") > 100
