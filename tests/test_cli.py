"""`mlserverless start DIR`: the documented folder, one line for what goes wrong, status 2."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import MakeModel
from doors import local_server, over_http
from mlserverless import cli


@pytest.mark.parametrize("folder", ["mnist-svm", "."])
def test_a_models_folder_and_the_folder_above_it_both_work(digits: Path, folder: str) -> None:
    with local_server(digits.parent / folder) as url:
        ready = over_http(url)("GET", "/v2/models/mnist-svm/versions/v0.1.0/ready")
    assert (200, {"name": "mnist-svm", "ready": True}) == (ready.status, ready.json)


def test_a_model_that_cannot_be_served_is_said_and_the_rest_is_served(
    make_model: MakeModel,
) -> None:
    root = make_model("m", b"", implementation="other.Runtime")
    command = [sys.executable, "-m", "mlserverless.cli", "start", str(root)]
    with subprocess.Popen(
        command, env={"MLSERVER_HTTP_PORT": "0"}, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        said = [server.stdout.readline() for _ in range(2)]
        server.terminate()
    assert "serving 1 model(s)" in said[0]
    assert "m cannot be served: implementation other.Runtime is not served here" in said[1]


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
    found = []
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


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server whose log is read, and its URL."""
    command = [sys.executable, "-m", "mlserverless.cli", "start", str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env={"MLSERVER_HTTP_PORT": "0"}, stdout=pipe, stderr=pipe, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server, server.stdout.readline().split()[-1]
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


def test_a_folder_that_is_not_there_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert 2 == cli.main(["start", "NOWHERE"])
    assert "mlserverless: NOWHERE is no folder\n" == capsys.readouterr().err


def test_a_busy_port_is_one_line_and_status_2(
    digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        monkeypatch.setenv("MLSERVER_HTTP_PORT", str(port))
        assert 2 == cli.main(["start", str(digits)])
    said = capsys.readouterr().err
    assert f"mlserverless: cannot listen on 127.0.0.1:{port}: Address already in use\n" == said


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
