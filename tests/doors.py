"""The ways into the one application: HTTP to the local server, and Lambda's events."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

# What a log must never hold: a header's value and a query of every request of these doors, the
# secret of S3, and words that requests of the tests have in their bodies.
SECRET: Final = "secret-Nachtigall"  # noqa: S105 - of nobody
PLANTED: Final = (
    "token-Zaunkoenig",
    "query-Rotkehlchen",
    SECRET,
    "the-last-digit",
    "Xylophon31415",
)
_HEADER: Final = {"authorization": f"Bearer {PLANTED[0]}"}

Handler = Callable[[Any, Any], dict[str, Any]]


class Answer(NamedTuple):
    """What came back; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


class Door(Protocol):
    """Sends one request and returns its answer."""

    def __call__(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = ...
    ) -> Answer: ...


def http_api(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """A request as an HTTP API (payload 2.0) or a Function URL sends it."""
    return {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": PLANTED[1],
        "headers": {name.lower(): value for name, value in headers.items()},
        "requestContext": {"http": {"method": method, "path": path}, "stage": "$default"},
        **_body(body),
    }


def rest_api(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """A request as a REST API (payload 1.0) sends it."""
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": dict(headers),
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "requestContext": {"stage": "prod", "path": f"/prod{path}"},
        **_body(body),
    }


def _body(body: bytes) -> dict[str, Any]:
    try:
        return {"body": body.decode() or None, "isBase64Encoded": False}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


def through(handler: Handler, event: Callable[..., dict[str, Any]]) -> Door:
    """The handler as a door, asked by events of one sort."""

    def ask(
        method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        # a whole round through JSON, as Lambda does it
        sent = json.loads(json.dumps(event(method, path, body, {**_HEADER, **(headers or {})})))
        answer = json.loads(json.dumps(handler(sent, None)))
        raw = answer["body"]
        many = {name: ",".join(each) for name, each in answer.get("multiValueHeaders", {}).items()}
        found = {name.lower(): text for name, text in (answer["headers"] | many).items()}
        unpacked = base64.b64decode(raw) if answer["isBase64Encoded"] else raw.encode()
        return Answer(answer["statusCode"], found, unpacked)

    return ask


def over_http(url: str) -> Door:
    """A running server as a door."""
    address = urlsplit(url)

    def ask(
        method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        try:
            connection.request(method, path, body, {**_HEADER, **(headers or {})})
            answer = connection.getresponse()
            found = {name.lower(): text for name, text in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    return ask


@contextmanager
def local_server(folder: Path, **environment: str) -> Iterator[str]:
    """`mlserverless start FOLDER` in a process of its own, on a free port; yields its URL."""
    command = [sys.executable, "-m", "mlserverless.cli", "start", str(folder)]
    with subprocess.Popen(
        command,
        env={**os.environ, "MLSERVER_HTTP_PORT": "0", **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            found = re.search(r"http://\S+", said)
            assert found is not None, f"the server did not start: {said}"
            yield found[0]
        finally:
            process.terminate()
            process.wait(timeout=30)
