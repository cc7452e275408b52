"""A small gateway: HTTP in, whole HTTP API events to a handler, its proxy answers out as HTTP."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from doors import Handler, http_api


@contextmanager
def gateway(handler: Handler) -> Iterator[str]:
    """Serve a handler on a free port of 127.0.0.1; one request at a time, as Lambda does."""
    one_at_a_time = threading.Lock()

    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            event = http_api(self.command, self.path, self.body(), dict(self.headers.items()))
            with one_at_a_time:
                found = handler(event, None)
            raw = found["body"]
            body = base64.b64decode(raw) if found["isBase64Encoded"] else raw.encode()
            headers = {name.lower(): value for name, value in found["headers"].items()}
            self.send_response(found["statusCode"])
            for name, value in (headers | {"content-length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_HEAD = answer  # noqa: N815 - http.server's names

        def body(self) -> bytes:
            if self.headers.get("transfer-encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Request) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
