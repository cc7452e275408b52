"""A small gateway: HTTP in, whole HTTP API events to a handler, its proxy answers out as HTTP."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from doors import Handler, http_api

SIGNATURE = (
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d+/(?P<region>[^/]+)/(?P<service>[^/]+)"
    r"/aws4_request, ?SignedHeaders=(?P<names>[^,]+), ?Signature=(?P<signature>\w+)"
)


@contextmanager
def gateway(handler: Handler, signer: Credentials | None = None) -> Iterator[str]:
    """Serve a handler on a free port of 127.0.0.1; one request at a time, as Lambda does.

    With a signer, only what is signed with its key (AWS_IAM) passes; all else is 403.
    """
    one_at_a_time = threading.Lock()

    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            sent = self.body()
            if signer is not None and not self.signed(signer, sent):
                self.send_error(403)
                return
            event = http_api(self.command, self.path, sent, dict(self.headers.items()))
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

        def signed(self, signer: Credentials, sent: bytes) -> bool:
            """Whether botocore would have signed this request as it is signed."""
            said = self.headers.get("authorization", "")
            found = re.fullmatch(SIGNATURE, said)
            if found is None or found["key"] != signer.access_key:
                return False
            names = found["names"].split(";")
            headers = {name: self.headers[name] for name in names}
            url = f"http://{self.headers['host']}{self.path}"
            request = AWSRequest(self.command, url, headers, sent)
            request.context["timestamp"] = self.headers["x-amz-date"]
            check = SigV4Auth(signer, found["service"], found["region"])
            canonical = check.canonical_request(request)
            wanted = check.signature(check.string_to_sign(request, canonical), request)
            return bool(wanted == found["signature"] and found["service"] == "execute-api")

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

    with serving(Request) as url:
        yield url


@contextmanager
def serving(requests: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer by a class of requests on a free port of 127.0.0.1; yields the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), requests) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
