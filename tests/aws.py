"""A real S3 API for tests: moto's server on real sockets, every request counted.

A fault can be put before it, to answer as S3 does on a bad day.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import boto3
import requests
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from doors import SECRET

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
}
BUCKET = "models-of-the-team"


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Say nothing: the tests count for themselves."""


class S3Server:
    """`asked` holds every request as `METHOD /path`.

    `fault` is a status and S3's code, the answer to those that end with `end`, as are `drip` and
    `rate` for the bodies of these; `drip` is how many
    seconds lie between two bytes of a body; `rate` is how many bytes of it are sent in a second;
    `cut` drops its second half; `no_range` sends the whole object always; `page_keys` is how many
    keys a page of a listing has; `longer` is what its
    length is overstated by; `hang` how many seconds pass before an answer; `reset` ends the
    connection instead; `page` is answered, with its status, where S3 has none to give; `without`
    is a header that is left out. `before` is called with a request before its answer.
    `ranges` holds the Range header of every request that had one, `sent` counts the bytes of all
    bodies.
    """

    def __init__(self, host: str = "127.0.0.1", cache_folder: str = "") -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(host, 0, self, threaded=True, request_handler=_Quiet)
        self.url = f"http://{host}:{self._server.port}"
        self.cache_folder = cache_folder  # for downloads; empty for none
        self.environment = {
            "AWS_ENDPOINT_URL_S3": self.url,
            "MLSERVERLESS_CACHE_FOLDER": cache_folder,
            **CREDENTIALS,
        }
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.sent = 0
        self.well()

    def well(self) -> None:
        """Have no fault any more."""
        self.fault: tuple[int, str] | None = None
        self.end = ""
        self.drip = 0.0
        self.rate = 0
        self.cut = False
        self.no_range = False
        self.page_keys = 0
        self.longer = 0
        self.hang = 0.0
        self.reset = False
        self.page: tuple[int, bytes] | None = None
        self.without = ""
        self.before: Callable[[str], None] = lambda _: None

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """Answer one request: the fault if there is one, else what moto says."""
        asked = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.asked.append(asked)
        if "HTTP_RANGE" in environ:
            self.ranges.append(environ["HTTP_RANGE"])
        if self.no_range:
            environ.pop("HTTP_RANGE", None)
        if self.page_keys and "list-type" in environ["QUERY_STRING"]:
            environ["QUERY_STRING"] += f"&max-keys={self.page_keys}"
        self.before(asked)
        time.sleep(self.hang)
        if self.reset:
            linger = struct.pack("ii", 1, 0)
            environ["werkzeug.socket"].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(environ["werkzeug.socket"].detach())
            raise ConnectionResetError
        if self.fault is not None and asked.endswith(self.end):
            status, code = self.fault
            start(f"{status} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>planted</Message></Error>".encode()]
        if self.page is not None:
            status, page = self.page
            start(f"{status} Planted", [("Content-Type", "text/html")])
            return [page]
        lies = self.longer or self.without
        answer: Iterable[bytes] = self._moto(environ, self._lying(start) if lies else start)
        return self._sent(b"".join(answer), asked.endswith(self.end))

    def _lying(self, start: Any) -> Any:
        def lie(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            told = {name.lower(): value for name, value in headers}
            told["content-length"] = str(int(told.get("content-length", 0)) + self.longer)
            told.pop(self.without, None)
            return start(status, list(told.items()), *rest)

        return lie

    def _sent(self, body: bytes, is_slow: bool) -> Iterator[bytes]:
        if self.cut:
            body = body[: len(body) // 2]
        seconds, size = 0.0, max(1, len(body))
        if is_slow and self.drip:
            seconds, size = self.drip, 1
        elif is_slow and self.rate:
            seconds, size = 0.01, self.rate // 100
        for start in range(0, len(body), size):
            time.sleep(seconds)
            part = body[start : start + size]
            self.sent += len(part)
            yield part

    @contextmanager
    def running(self) -> Iterator[S3Server]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            # moto keeps its buckets in the process, whichever server made them
            requests.post(f"{self.url}/moto-api/reset", timeout=10)
            self.asked.clear()
            self.ranges.clear()
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
            self.client.close()

    @cached_property
    def client(self) -> Any:
        """A client of boto3 for this server; closed when the server stops."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
            aws_access_key_id="testing",
            aws_secret_access_key=SECRET,
        )

    def put(self, key: str, body: bytes, bucket: str = BUCKET) -> None:
        """Store one object, its bucket too."""
        self.client.create_bucket(Bucket=bucket)
        self.client.put_object(Bucket=bucket, Key=key, Body=body)
