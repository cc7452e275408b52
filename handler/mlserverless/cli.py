"""The command `mlserverless`: serve, examine and profile models on this machine.

`start` runs the same application as the Lambda function behind a local HTTP server.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

import httptools
import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlserverless import __version__, doctor, profile, wire
from mlserverless.app import create_app
from mlserverless.errors import (
    MLServerlessError,
    RepositoryError,
    SettingsError,
    Unavailable,
    quote,
)
from mlserverless.journal import Journal, Line
from mlserverless.protocol import JSON, JSONObject
from mlserverless.registry import Registry
from mlserverless.repository import Repository, open_repository
from mlserverless.settings import disable_worker_processes

MAX_HEADER_BYTES = 65_536  # request line and headers of a request
HEADER_TIMEOUT_SECONDS = 10  # from a connection, or the first byte of a request, to its body
PROBLEMS_FOUND = 1
USAGE_ERROR = 2  # argparse's own code for a command that cannot be carried out as given

_HEADERS_TOO_LARGE = f"the headers are larger than {MAX_HEADER_BYTES} bytes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 is success. 1 means that doctor found a problem or that profile could not measure a model.
    2 means that the command could not run; one line on stderr says why.
    """
    disable_worker_processes()
    parser = argparse.ArgumentParser(
        prog="mlserverless", description="Serve scikit-learn models over HTTP, or examine them."
    )
    parser.add_argument("--version", action="version", version=f"mlserverless {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("start", help="serve models over HTTP on this machine")
    command.add_argument(
        "root",
        nargs="?",
        metavar="ROOT",
        help="the folder of your models, or s3://bucket/prefix; the working directory if left out",
    )
    command.add_argument("--host", help="the address to listen on; 127.0.0.1 if nothing is set")
    command.add_argument("--port", type=int, help="the port to listen on; 8080 if nothing is set")
    command = commands.add_parser("doctor", help="find what would keep models from being served")
    command.add_argument(
        "root",
        nargs="?",
        metavar="ROOT",
        help="as for start; if left out, MLSERVER_MODEL_REPOSITORY_ROOT or the working directory",
    )
    command = commands.add_parser("profile", help="measure the parts of each model's cold start")
    command.add_argument("root", metavar="ROOT", help="as for start")
    command.add_argument("--svg", metavar="FILE", help="write the result as a drawing, too")
    given = parser.parse_args(arguments)
    try:
        if given.command == "start":
            return _start(given.root, given.host, given.port)
        if given.command == "profile":
            return _profile(given.root, given.svg)
        return _doctor(given.root)
    except (RepositoryError, Unavailable) as error:
        message: object = doctor.add_hint(str(error))
    except MLServerlessError as error:
        message = error
    except OSError as error:
        message = error.strerror
    print(f"mlserverless: {message}", file=sys.stderr)
    return USAGE_ERROR


def _start(given_root: str | None, host: str | None, port: int | None) -> int:
    root, settings = doctor.resolve_root(
        given_root, model_control_mode="explicit", log_level="WARNING"
    )
    settings = replace(
        settings,
        host=settings.host if host is None else host,
        http_port=settings.http_port if port is None else port,
    )
    journal = Journal("DEBUG" if settings.debug else settings.log_level)
    journal.attach()
    repository = open_repository(root, settings.cache_folder)
    registry = Registry(repository, settings)
    with _listen(settings.host, settings.http_port) as listener:
        if settings.load_models_at_startup:
            registry.load_all()
        address = listener.getsockname()[:2]
        print(*_describe_models(registry, repository, root, address), sep="\n", flush=True)
        app: ASGIApp = create_app(registry, settings, threads=True)
        if settings.cors_settings is not None:
            app = _add_cors(app, settings.cors_settings)
        server = uvicorn.Server(
            uvicorn.Config(
                _journaled(app, journal),
                http=_HttpProtocol,
                loop="uvloop",
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,  # the log handler's entry replaces it, without client data
                server_header=False,
                root_path=settings.root_path,
            )
        )
        with suppress(KeyboardInterrupt):  # uvicorn has shut down and hands Ctrl-C on
            server.run(sockets=[listener])
    return 0


def _describe_models(
    registry: Registry, repository: Repository, root: str, address: tuple[str, int]
) -> Iterator[str]:
    """Yield the line that the server starts with, then one for each model that it cannot serve."""
    models = repository.models()
    by_key = {
        (model.name, model.version): model for model in reversed(models)
    }  # the first is served
    served, failed = 0, []
    for state in registry.index():
        reason = "" if state.ready else state.reason.removeprefix(f"Model {quote(state.name)} ")
        model = by_key.get((state.name, state.version))
        if not reason and model is not None:
            reason = doctor.find_missing_artifact(repository, model)
        if reason:
            label = doctor.label(state.name, state.version)
            failed.append(f"  {label} cannot be served: {doctor.add_hint(reason)}")
        else:
            served += 1
    not_served = f", {len(failed)} cannot be served," if failed else ""
    host, port = address
    host = f"[{host}]" if ":" in host else host
    yield f"serving {served} model(s) of {root}{not_served} on http://{host}:{port}"
    if not models:
        yield f"  warning: {doctor.describe_empty_root(root)}"
    yield from failed
    for message in doctor.describe_duplicates(models, root):
        yield f"  warning: {message}"


def _add_cors(app: ASGIApp, settings: JSONObject) -> ASGIApp:
    """Wrap the application as MLServer does; its defaults are those of Starlette."""
    from starlette.middleware.cors import CORSMiddleware  # noqa: PLC0415 - few servers need it
    from starlette.responses import Response  # noqa: PLC0415 - as above

    class JSONErrorsCORSMiddleware(CORSMiddleware):
        """Starlette's, but a refused preflight has the JSON error of every other response."""

        def preflight_response(self, request_headers: Headers) -> Response:
            response = super().preflight_response(request_headers)
            if response.status_code == 200:
                return response
            headers = {
                name: value
                for name, value in response.headers.items()
                if name not in ("content-length", "content-type")
            }
            body = wire.encode_json({"error": bytes(response.body).decode()})
            return Response(body, response.status_code, headers, media_type=JSON)

    return JSONErrorsCORSMiddleware(app, **settings)


def _journaled(app: ASGIApp, journal: Journal) -> ASGIApp:
    """The application, with a line of the log for every request."""

    async def journaled(scope: Scope, receive: Receive, send: Send) -> None:
        line, status, size = Line(), 500, 0

        async def sent(message: Message) -> None:
            nonlocal status, size
            status = message.get("status", status)
            size += len(message.get("body", b""))
            await send(message)

        try:
            await app({**scope, "line": line}, receive, sent)
        finally:
            journal.request(line, status, size)

    return journaled


def _doctor(given_root: str | None) -> int:
    logging.getLogger("mlserverless").addHandler(logging.NullHandler())  # findings say the same
    try:
        root, settings = doctor.resolve_root(given_root)
    except SettingsError as error:
        findings = [doctor.Finding("problem", str(error))]
    else:
        folder = given_root or "."
        findings = list(doctor.examine(root, settings, folder if os.path.isdir(folder) else None))
        if given_root is not None and root != given_root:
            findings.insert(0, doctor.Finding("ok", f"settings.json names {root}, examined here"))
    for level, message in findings:
        print(f"{level:8} {message}")
    return PROBLEMS_FOUND if any(level == "problem" for level, _ in findings) else 0


def _profile(given_root: str, svg: str | None) -> int:
    root, _ = doctor.resolve_root(given_root)
    models = sorted({model.name for model in open_repository(root).models()})
    if not models:
        raise SettingsError(doctor.describe_empty_root(root))
    profiles = [profile.profile(root, name) for name in models]
    print(profile.table(profiles))
    if svg is not None:
        with open(svg, "w", encoding="utf-8") as file:
            file.write(profile.picture(profiles))
    return PROBLEMS_FOUND if any(each.error for each in profiles) else 0


class _HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with limits for headers, without upgrades, with JSON errors.

    A client that offers to continue in another protocol (`Upgrade: h2c` of `curl --http2` and of
    Java's HttpClient, `Upgrade: websocket`) gets an HTTP/1.1 response, as RFC 9110 section 7.8
    allows. httptools stops after the headers of such a request and never parses its body. The
    request is therefore parsed a second time without its Upgrade header.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the headers of the first request."""
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self.header_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what was read; close the connection if it is not HTTP or its headers are too large.

        A chunk in which an earlier request ended does not count, because only its last part can
        belong to the next headers.
        """
        self._unset_keepalive_if_required()
        self.request_ended = False
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response(self.refusal or "Invalid HTTP request received.")
            return
        if not self.header_timer.cancelled() and not self.request_ended:
            self.header_bytes += len(data)
            if self.header_bytes > MAX_HEADER_BYTES:
                self.send_400_response(_HEADERS_TOO_LARGE)

    def _parse(self, data: bytes) -> None:
        """Feed the parser; after each offer of an upgrade, continue behind its headers."""
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                self._parse_without_upgrade()
            else:
                return

    def _parse_without_upgrade(self) -> None:
        """Replace the parser by one that has read the same headers except Upgrade."""
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def on_message_begin(self) -> None:
        """Start the timer for the rest of the headers."""
        super().on_message_begin()
        self.header_timer.cancel()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        """Start the request, unless it offers an upgrade and is parsed again without it."""
        self.header_timer.cancel()
        if self.parser.get_method() == b"CONNECT":
            self._refuse("CONNECT is not supported: this server is not a proxy")
        if len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers) > MAX_HEADER_BYTES:
            self._refuse(_HEADERS_TOO_LARGE)
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request, unless it is parsed again."""
        if not self.parser.should_upgrade():
            self.request_ended = True
            super().on_message_complete()

    def _expect_headers(self) -> None:
        self.header_bytes, self.refusal = 0, ""
        self.header_timer = self.loop.call_later(HEADER_TIMEOUT_SECONDS, self.transport.close)

    def _refuse(self, message: str) -> NoReturn:
        """Stop parsing, from within a callback of the parser."""
        self.refusal = message
        raise ValueError(message)

    def send_400_response(self, msg: str) -> None:
        """Send the error as JSON and close the connection."""
        body = wire.encode_json({"error": msg})
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: {JSON}\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything else is done; a busy one is said in one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # whoever reads the line below may connect at once
    except (OSError, OverflowError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else "ports end at 65535"
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            why = (
                "another program has taken the port: stop it, or set MLSERVER_HTTP_PORT to "
                "another port"
            )
        raise SettingsError(f"cannot listen on {host}:{port}: {why}") from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
