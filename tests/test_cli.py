"""`mlserverless start`: the documented folder, S3, one line for what goes wrong, status 2."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from aws import BUCKET, S3Server
from conftest import IMPLEMENTATION, MakeModel
from doors import Answer, local_server, over_http
from mlserverless import cli


@pytest.fixture(autouse=True)
def _hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore what a server that runs in this process changes for its log."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    for name in (None, "mlserverless"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", list(logger.handlers))
        monkeypatch.setattr(logger, "level", logger.level)


def serve_here(use: Callable[[str], None], *arguments: str) -> int:
    """Run `mlserverless start` in this process until `use`, called with its URL, returns.

    Unlike a process of its own it is measured by coverage.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    failures: list[BaseException] = []
    ended = threading.Event()

    def use_and_interrupt() -> None:
        try:
            while not ended.is_set():
                with suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                time.sleep(0.01)
            use(f"http://127.0.0.1:{port}")
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=use_and_interrupt, daemon=True)
    thread.start()
    status = cli.main(["start", "--port", str(port), *arguments])
    ended.set()
    thread.join(timeout=30)
    for failure in failures:
        raise failure
    return status


def test_one_server_serves_offers_preflights_and_bad_requests_and_ends_with_status_0(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "model_repository_root": str(digits),
        "cors_settings": CORS,
        "load_models_at_startup": True,
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))

    def use(url: str) -> None:
        call = over_http(url)
        assert [200, 400] == [
            call("OPTIONS", INFER, headers=PREFLIGHT | changes).status
            for changes in ({}, {"Origin": "https://b.example"})
        ]
        with connected(url) as connection:
            send_in(connection, inference(OFFERS["curl"]), inference(""))
            assert [200, 200] == [status for status, _ in responses(connection, 2)]
        for request in (
            b"no HTTP\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nx: " + b"y" * (cli.MAX_HEADER_BYTES + 1),
            b"GET / HTTP/1.1\r\nHost: x\r\nx: " + b"y" * cli.MAX_HEADER_BYTES + b"\r\n\r\n",
        ):
            assert sent(url, request).startswith(b"HTTP/1.1 400 ")

    assert 0 == serve_here(use, str(tmp_path))
    assert f"serving 1 model(s) of {digits} on http://127.0.0.1:" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["mnist-svm", "."])
def test_a_models_folder_and_the_folder_above_it_both_work(digits: Path, folder: str) -> None:
    with local_server(digits.parent / folder) as url:
        ready = over_http(url)("GET", "/v2/models/mnist-svm/versions/v0.1.0/ready")
    assert (200, {"name": "mnist-svm", "ready": True}) == (ready.status, ready.json)


def test_the_start_line_counts_what_is_served_and_the_next_ones_say_what_is_not(
    make_model: MakeModel,
) -> None:
    make_model("m", b"", implementation="other.Runtime")
    make_model("gone", None, parameters={"version": "1"})
    make_model("twin", b"", name="same")
    make_model("twin2", b"", name="same")
    root = make_model("good", b"")
    with started(root) as (server, url):
        assert server.stdout is not None
        rest = [server.stdout.readline().strip() for _ in range(3)]
        assert f"serving 2 model(s) of {root}, 2 cannot be served, on {url}\n" == start_lines[url]
    assert [
        (
            "gone 1 cannot be served: its artifact, model.joblib, is not in the repository; "
            "copy the file there, or correct parameters.uri in model-settings.json"
        ),
        (
            "m cannot be served: implementation other.Runtime is not served here, "
            f"{IMPLEMENTATION} is; if it is a scikit-learn estimator, set implementation to that"
        ),
        (
            "warning: same is declared more than once: in twin, twin2; only one of them is served, "
            "give each another name or another parameters.version"
        ),
    ] == rest


def test_the_address_of_ipv6_is_written_in_brackets(
    make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_model("gone", None)
    make_model("twin", b"", name="same")
    make_model("twin2", b"", name="same")

    def use(url: str) -> None:
        assert 404 == over_http(url)("GET", "/v2/models/nothing").status

    assert 0 == serve_here(use, "--host", "::ffff:127.0.0.1", str(root))
    assert "1 cannot be served, on http://[::ffff:127.0.0.1]:" in capsys.readouterr().out


def test_a_root_without_models_is_a_warning_that_names_it(tmp_path: Path) -> None:
    with started(tmp_path) as (server, _):
        assert server.stdout is not None
        line = server.stdout.readline()
    assert (
        f"  warning: no model-settings.json below {tmp_path}; copy your model's folder there\n"
        == line
    )


def put_in_s3(s3: S3Server, folder: Path) -> None:
    for path in folder.iterdir():
        s3.put(f"prod/{folder.name}/{path.name}", path.read_bytes())


def ready(url: str) -> int:
    return over_http(url)("GET", "/v2/models/mnist-svm/ready").status


def test_models_of_s3_are_served_as_those_of_a_folder(s3: S3Server, digits: Path) -> None:
    put_in_s3(s3, digits)
    with started(f"s3://{BUCKET}/prod") as (_, url):
        assert f"serving 1 model(s) of s3://{BUCKET}/prod on {url}\n" == start_lines[url]
        assert 200 == ready(url)


@pytest.mark.parametrize("argument", ["folder", "working directory"])
@pytest.mark.parametrize("root", [f"s3://{BUCKET}/prod", "{parent}", "models"])
def test_settings_json_may_name_another_root(
    s3: S3Server, digits: Path, tmp_path: Path, root: str, argument: str
) -> None:
    put_in_s3(s3, digits)
    (tmp_path / "models").symlink_to(digits.parent)
    named = root.format(parent=digits.parent)
    (tmp_path / "settings.json").write_text(json.dumps({"model_repository_root": named}))
    server = started(tmp_path) if argument == "folder" else started(None, cwd=tmp_path)
    with server as (_, url):
        assert "serving 1 model(s)" in start_lines[url]
        assert 200 == ready(url)


def test_an_argument_wins_over_the_variable_and_is_what_a_command_without_one_takes(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLSERVER_MODEL_REPOSITORY_ROOT", str(tmp_path))
    with started(digits) as (_, url):
        assert 200 == ready(url)
    monkeypatch.setenv("MLSERVER_MODEL_REPOSITORY_ROOT", str(digits))
    with started(None, cwd=tmp_path) as (_, url):
        assert 200 == ready(url)


def test_host_and_port_may_be_given_and_win_over_settings(digits: Path, tmp_path: Path) -> None:
    settings = {"model_repository_root": str(digits), "host": "127.0.0.2", "http_port": 1}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with started(tmp_path, "--port", "0", "--host", "127.0.0.1") as (_, url):
        assert url.startswith("http://127.0.0.1:")
        assert 200 == ready(url)


def put_parallel_models(make_model: MakeModel) -> tuple[Path, dict[str, list[Any]]]:
    """Estimators that would call joblib's workers, each with what it predicts here."""
    x, y = np.arange(40.0).reshape(20, 2), np.array([0, 1] * 10)
    union = FeatureUnion([("a", StandardScaler()), ("b", MinMaxScaler())], n_jobs=2)
    tree = DecisionTreeClassifier(random_state=0)
    estimators = {
        "union": make_pipeline(union, DecisionTreeClassifier(random_state=0)),
        "forest": RandomForestClassifier(4, n_jobs=2, random_state=0),
        "bagging": BaggingClassifier(tree, 4, n_jobs=2, random_state=0),
        "columns": make_pipeline(
            ColumnTransformer([("a", StandardScaler(), [0]), ("b", MinMaxScaler(), [1])], n_jobs=2),
            DecisionTreeClassifier(random_state=0),
        ),
    }
    predicted = {}
    for name, estimator in estimators.items():
        with joblib.parallel_config(backend="sequential"):
            predicted[name] = estimator.fit(x, y).predict(x).tolist()
        root = make_model(name, estimator)
    return root, predicted


def children(process: int) -> list[str]:
    """The process ids of a process's children."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += (task / "children").read_text().split()
    return found


def test_no_estimator_starts_processes_behind_the_local_server(make_model: MakeModel) -> None:
    root, predicted = put_parallel_models(make_model)
    data = np.arange(40.0).tolist()
    tensor = {"name": "x", "shape": [20, 2], "datatype": "FP64", "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    with started(root) as (server, url):
        for name, expected in predicted.items():
            response = over_http(url)("POST", f"/v2/models/{name}/infer", body)
            assert (200, expected) == (response.status, response.json["outputs"][0]["data"])
            assert [] == children(server.pid), name


def connected(url: str, wait: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=wait)


def sent(url: str, head: bytes, wait: float = 10) -> bytes:
    """What a server answers to these bytes, until it hangs up."""
    with connected(url, wait) as connection:
        connection.sendall(head)
        return connection.makefile("rb").read()


def test_what_is_no_http_is_refused_in_the_same_form(digits: Path) -> None:
    with local_server(digits) as url:
        head, _, body = sent(url, b"no http at all\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert ["error"] == list(json.loads(body))


def test_a_head_has_its_bounds(digits: Path) -> None:
    with local_server(digits) as url:
        start = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n"
        large = sent(url, start + b"x: " + b"y" * cli.MAX_HEADER_BYTES)
        many = sent(url, start + b"a: b\r\n" * 20_000)
        assert [b"HTTP/1.1 400 Bad Request"] * 2 == [
            each.split(b"\r\n")[0] for each in (large, many)
        ]
        assert f"the headers are larger than {cli.MAX_HEADER_BYTES} bytes".encode() in large
        assert b"" == sent(url, start, wait=cli.HEADER_TIMEOUT_SECONDS + 10), (
            "it came to no end in time"
        )
        assert 200 == over_http(url)("GET", "/v2/health/live").status


def test_a_body_over_the_limit_ends_its_connection_and_no_other(digits: Path) -> None:
    """What a client goes on sending would be taken for its next request."""
    with local_server(digits, MLSERVERLESS_MAX_BODY_BYTES="100") as url:
        path = "/v2/models/mnist-svm/infer"
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\n".encode()
        announced = sent(url, head + b"content-length: 1000000\r\n\r\n")
        chunked = sent(
            url,
            head
            + b"transfer-encoding: chunked\r\n\r\n"
            + b"64\r\n"
            + b"x" * 100
            + b"\r\n1\r\nx\r\n",
        )
        for answer in (announced, chunked):
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert b"\r\nconnection: close\r\n" in answer.lower()
        assert 200 == over_http(url)("GET", "/v2/health/live").status


# What `curl --http2` and Java's HttpClient (17, by default) send to http:// URLs, and a browser's
# WebSocket; recorded from these clients.
OFFERS = {
    "curl": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    "java": "Connection: Upgrade, HTTP2-Settings\r\n"
    "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\nUpgrade: h2c\r\n",
    "websocket": "connection: keep-alive, upgrade\r\nUPGRADE: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
}
TENSOR = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64}
BODY = json.dumps({"id": "7", "inputs": [TENSOR]}).encode()


def inference(headers: str, *, body: bytes = BODY, framing: str | None = None) -> bytes:
    """The bytes of one inference request."""
    framing = f"Content-Length: {len(body)}\r\n" if framing is None else framing
    head = f"POST /v2/models/mnist-svm/infer HTTP/1.1\r\nHost: x\r\n{headers}{framing}\r\n"
    return head.encode() + body


def responses(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Read so many responses of one connection: their status and body."""
    found: list[tuple[int, bytes]] = []
    with connection.makefile("rb") as stream:
        while len(found) < count:
            status = int(stream.readline().split()[1])
            headers = http.client.parse_headers(stream)
            if status != 100:
                found.append((status, stream.read(int(headers["content-length"]))))
    return found


def send_in(connection: socket.socket, *writes: bytes) -> None:
    """Send each part so that the server reads it before the next is sent."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for part in writes:
        connection.sendall(part)
        time.sleep(0.05)


CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_to_upgrade_is_ignored_however_the_request_arrives(
    digits: Path, offer: str
) -> None:
    headers = OFFERS[offer]
    request = inference(headers)
    end_of_headers = request.index(b"\r\n\r\n") + 4
    middle = request.index(b"\r\n", 60) + 1  # within a line break
    chunked = inference(headers, body=CHUNKED, framing="Transfer-Encoding: chunked\r\n")
    with local_server(digits) as url:
        expected = over_http(url)("POST", "/v2/models/mnist-svm/infer", BODY).body
        for writes in (
            [request],
            [request[:end_of_headers], request[end_of_headers:]],
            [request[: end_of_headers - 2], request[end_of_headers - 2 :]],
            [
                request[:middle],
                request[middle : end_of_headers + 10],
                request[end_of_headers + 10 :],
            ],
            [chunked],
            [chunked[:-20], chunked[-20:]],
            [request[number : number + 40] for number in range(0, len(request), 40)],
        ):
            with connected(url) as connection:
                send_in(connection, *writes)
                assert [(200, expected)] == responses(connection, 1)
                send_in(connection, request)  # the same connection, as both clients keep it
                assert [(200, expected)] == responses(connection, 1)
        with connected(url) as connection:  # three requests at once
            connection.sendall(request + chunked + inference("") + request)
            assert [(200, expected)] * 4 == responses(connection, 4)


def test_an_offer_to_upgrade_with_expect_gets_100_and_then_its_response(digits: Path) -> None:
    request = inference(OFFERS["curl"] + "Expect: 100-continue\r\n")
    head, _, body = request.partition(b"\r\n\r\n")
    with local_server(digits) as url, connected(url) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == connection.recv(1000)
        connection.sendall(body)
        assert 200 == responses(connection, 1)[0][0]


def test_an_offer_to_upgrade_without_a_body_gets_the_response_of_its_route(digits: Path) -> None:
    lines = f"HTTP/1.1\r\nHost: x\r\n{OFFERS['websocket']}\r\n"
    with local_server(digits) as url, connected(url) as connection:
        connection.sendall(f"GET /v2/health/live {lines}GET /socket {lines}".encode())
        assert [(200, b'{"live":true}'), (404, b'{"error":"there is no route /socket"}')] == [
            (status, body) for status, body in responses(connection, 2)
        ]
        connection.sendall(f"GET /v2/health/live {lines}".replace("keep-alive", "close").encode())
        assert 200 == responses(connection, 1)[0][0]
        assert b"" == connection.recv(1), "Connection: close beside the offer was not obeyed"


def test_an_offer_to_upgrade_does_not_weaken_the_checks_of_a_request(digits: Path) -> None:
    both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    large = "x: " + "y" * cli.MAX_HEADER_BYTES + "\r\n"
    with local_server(digits) as url:
        for request in (
            inference(OFFERS["curl"], framing=both),
            inference(OFFERS["curl"] + large),
            inference(large),  # in one write, too
            b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",  # HTTP/2 without an offer
        ):
            head, _, body = sent(url, request).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 "), request[:40]
            assert ["error"] == list(json.loads(body))
        assert 200 == over_http(url)("GET", "/v2/health/live").status


def test_a_body_before_the_next_headers_does_not_count_as_headers(digits: Path) -> None:
    filler = b" " * (cli.MAX_HEADER_BYTES + 1)
    request = inference("", body=BODY + filler)
    with local_server(digits) as url, connected(url) as connection:
        send_in(connection, request + b"GET /v2/health/live HTTP/1.1\r\n", b"Host: x\r\n\r\n")
        assert [200, 200] == [status for status, _ in responses(connection, 2)]


start_lines: dict[str, str] = {}  # of each server, by its URL


@contextmanager
def started(
    root: Path | str | None, *options: str, cwd: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server whose output is read, and its URL."""
    command = [sys.executable, "-m", "mlserverless.cli", "start", *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command if root is None else [*command, str(root)],
        env={"MLSERVER_HTTP_PORT": "0", **os.environ},
        stdout=pipe,
        stderr=pipe,
        text=True,
        cwd=cwd,
    ) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            url = line.split()[-1]
            start_lines[url] = line
            yield server, url
        finally:
            server.terminate()


def test_a_client_that_hangs_up_is_no_fault_of_the_servers(digits: Path) -> None:
    head = b"POST /v2/models/mnist-svm/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx"
    with started(digits) as (server, url):
        assert server.stderr is not None
        with connected(url) as connection:
            connection.sendall(head)
        line = json.loads(server.stderr.readline())
        server.send_signal(2)
    assert ("WARN", 400) == (line["level"], line["status"])


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (
            "NOWHERE",
            (
                "NOWHERE is not a folder; name the folder that holds your models, "
                "or s3://bucket/prefix"
            ),
        ),
        ("S3://b/p", "S3://b/p is not a folder; for S3 write s3://b/p"),
        ("s3:/b/p", "s3:/b/p is not a folder; for S3 write s3://b/p"),
        ("s3//b/p", "s3//b/p is not a folder; for S3 write s3://b/p"),
        ("arn:aws:s3:::b/p", "arn:aws:s3:::b/p is not a folder; for S3 write s3://b/p"),
        ("s3://", "s3:// names no bucket; write s3://bucket/prefix"),
        ("s3://b//p", "the prefix of s3://b//p starts with a slash; write s3://b/p"),
    ],
)
@pytest.mark.parametrize("where", ["argument", "settings.json", "variable"])
def test_a_root_that_cannot_exist_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    root: str,
    message: str,
    where: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["start", root]
    if where == "variable":
        monkeypatch.setenv("MLSERVER_MODEL_REPOSITORY_ROOT", root)
        arguments = ["start"]
    elif where == "settings.json":
        (tmp_path / "settings.json").write_text(json.dumps({"model_repository_root": root}))
        arguments = ["start", "."]
        message = f"settings.json: model_repository_root: {message}"
    assert 2 == cli.main(arguments)
    assert f"mlserverless: {message}\n" == capsys.readouterr().err


def test_an_s3_that_cannot_be_read_at_the_start_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLSERVER_HTTP_PORT", "0")
    s3.put("m/model-settings.json", b"{}")
    assert 2 == cli.main(["start", "s3://no-such-bucket/models"])
    message = "mlserverless: bucket no-such-bucket does not exist; correct the bucket's name\n"
    assert message == capsys.readouterr().err
    s3.fault = (503, "SlowDown")
    assert 2 == cli.main(["start", f"s3://{BUCKET}"])
    assert "check the network and the endpoint" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["start"], ["doctor"], ["profile"]])
def test_help_is_there_for_every_command(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert (0, True) == (caught.value.code, "usage: mlserverless" in capsys.readouterr().out)


# ── CORS ────────────────────────────────────────────────────────────────────────────────

ORIGIN = {"Origin": "https://a.example"}
PREFLIGHT = {
    **ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-a",
}
INFER = "/v2/models/mnist-svm/infer"
CORS = {
    "allow_origins": ["https://a.example"],
    "allow_methods": ["POST"],
    "allow_headers": ["x-a"],
    "expose_headers": ["x-b"],
    "allow_credentials": "true",
    "max_age": "5",
    "allow_origin_regex": None,
    "unknown": 1,
}


def cors_headers(response: Answer) -> dict[str, str]:
    return {
        name.removeprefix("access-control-"): value
        for name, value in response.headers.items()
        if name.startswith("access-control-")
    }


def test_a_preflight_gets_the_response_of_mlserver(digits: Path, tmp_path: Path) -> None:
    """Recorded from MLServer 1.7.1, which does not use its expose_headers setting, however."""
    settings = {"model_repository_root": str(digits), "cors_settings": CORS}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with local_server(tmp_path) as url:
        call = over_http(url)
        response = call("OPTIONS", INFER, headers=PREFLIGHT)
        assert (200, b"OK") == (response.status, response.body)
        assert {
            "allow-origin": "https://a.example",
            "allow-methods": "POST",
            "allow-headers": "Accept, Accept-Language, Content-Language, Content-Type, x-a",
            "allow-credentials": "true",
            "max-age": "5",
        } == cors_headers(response)
        for strange, why in (
            ({"Origin": "https://b.example"}, "origin"),
            ({"Access-Control-Request-Method": "DELETE"}, "method"),
            ({"Access-Control-Request-Headers": "x-c"}, "headers"),
        ):
            response = call("OPTIONS", INFER, headers=PREFLIGHT | strange)
            assert (400, {"error": f"Disallowed CORS {why}"}) == (response.status, response.json)
            assert "application/json" == response.headers["content-type"]
            assert str(len(response.body)) == response.headers["content-length"]
            assert ("allow-origin" in cors_headers(response)) == (why != "origin")
        assert 405 == call("OPTIONS", INFER).status, "no preflight"


def test_every_response_to_an_allowed_origin_can_be_read_by_its_page(
    digits: Path, tmp_path: Path
) -> None:
    settings = {
        "model_repository_root": str(digits),
        "cors_settings": CORS,
        "max_body_bytes": len(BODY),
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    requests = [
        (200, "POST", INFER, BODY),
        (400, "POST", INFER, b"{}"),
        (404, "GET", "/v2/models/nothing", b""),
        (404, "GET", "/nothing", b""),
        (405, "GET", INFER, b""),
        (413, "POST", INFER, b" " * (len(BODY) + 1)),
    ]
    with local_server(tmp_path) as url:
        call = over_http(url)
        for status, method, path, body in requests:
            response = call(method, path, body, ORIGIN)
            assert status == response.status
            assert {
                "allow-origin": "https://a.example",
                "allow-credentials": "true",
                "expose-headers": "x-b",
            } == cors_headers(response)
            assert "Origin" in response.headers["vary"]
            strange = call(method, path, body, {"Origin": "https://b.example"})
            assert "allow-origin" not in cors_headers(strange)


@pytest.mark.parametrize(
    ("variable", "origin"),
    [
        ('{"allow_origins": ["*"]}', "*"),
        ('{"allow_origin_regex": "https://.*"}', "https://a.example"),
        ("{}", None),
        ("null", None),
        (None, None),
    ],
)
def test_the_variable_has_the_same_effect_and_without_settings_no_origin_is_allowed(
    digits: Path, variable: str | None, origin: str | None
) -> None:
    environment = {} if variable is None else {"MLSERVER_CORS_SETTINGS": variable}
    with local_server(digits, **environment) as url:
        response = over_http(url)("GET", "/v2/health/live", headers=ORIGIN)
        preflight = over_http(url)("OPTIONS", INFER, headers=PREFLIGHT)
    assert origin == cors_headers(response).get("allow-origin")
    assert (405 if variable in ("null", None) else 400) == preflight.status, "POST is not allowed"


def test_a_busy_port_is_one_line_and_status_2(
    digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        monkeypatch.setenv("MLSERVER_HTTP_PORT", str(port))
        assert 2 == cli.main(["start", str(digits)])
    said = capsys.readouterr().err
    assert said == (
        f"mlserverless: cannot listen on 127.0.0.1:{port}: another program has taken the port: "
        "stop it, or set MLSERVER_HTTP_PORT to another port\n"
    )


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MLSERVER_HTTP_PORT", "70000", "ports end at 65535"),
        ("MLSERVER_HTTP_PORT", "x", "MLSERVER_HTTP_PORT must be a whole number\n"),
        ("MLSERVER_HOST", "::bad::", "cannot listen on ::bad:::"),
    ],
)
def test_a_setting_that_cannot_hold_is_one_line_and_status_2(
    digits: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    said: str,
) -> None:
    monkeypatch.setenv(variable, value)
    assert 2 == cli.main(["start", str(digits)])
    error = capsys.readouterr().err
    assert said in error
    assert 1 == error.count("\n")


def test_ctrl_c_ends_the_server_cleanly(digits: Path) -> None:
    with started(digits) as (server, url):
        assert 200 == over_http(url)("GET", "/v2/health/live").status
        server.send_signal(2)
        _, errors = server.communicate(timeout=30)
    assert 0 == server.returncode
    assert "Traceback" not in errors
