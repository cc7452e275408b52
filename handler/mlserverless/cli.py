"""The other door: `mlserverless start DIR`, a local server over the same application.

For a developer's machine; what is deployed is `main`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

import httptools
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlserverless import __version__, doctor, profile, wire
from mlserverless.app import create_app
from mlserverless.errors import MLServerlessError, SettingsError
from mlserverless.journal import Journal, Line
from mlserverless.protocol import JSON
from mlserverless.registry import Registry
from mlserverless.repository import open_repository
from mlserverless.settings import Settings

MAX_HEADER_BYTES = 65_536  # request line and headers of a request
HEADER_TIMEOUT_SECONDS = 10  # from a connection, or the first byte of a request, to its body
USAGE_ERROR = 2  # argparse's own code for a command that cannot be carried out as given

_HEADERS_TOO_LARGE = f"the headers are larger than {MAX_HEADER_BYTES} bytes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a failure is one line on stderr and the status 2.

    `doctor` has the status 1 when it found a problem.
    """
    parser = argparse.ArgumentParser(prog="mlserverless", description=__doc__)
    parser.add_argument("--version", action="version", version=f"mlserverless {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("start", help="serve a folder of models over HTTP")
    command.add_argument("folder", help="holds model-settings.json files, itself or below")
    command = commands.add_parser("doctor", help="say what would keep models from being served")
    command.add_argument(
        "root",
        nargs="?",
        help="a folder, or s3://bucket/prefix; without it, what the settings say",
    )
    command = commands.add_parser("profile", help="say where each model's cold start goes")
    command.add_argument("root", help="a folder, or s3://bucket/prefix")
    command.add_argument("--svg", metavar="FILE", help="draw it, too")
    given = parser.parse_args(arguments)
    try:
        if given.command == "start":
            return _start(given.folder)
        if given.command == "profile":
            return _profile(given.root, given.svg)
        return _doctor(given.root)
    except (MLServerlessError, OSError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        print(f"mlserverless: {words}", file=sys.stderr)
        return USAGE_ERROR


def _start(folder: str) -> int:
    if not os.path.isdir(folder):
        raise SettingsError(f"{folder} is no folder")
    settings = replace(
        Settings.load(folder, model_control_mode="explicit", log_level="WARNING"),
        model_repository_root=folder,
    )
    journal = Journal("DEBUG" if settings.debug else settings.log_level)
    journal.attach()
    registry = Registry(open_repository(folder, settings.cache_folder), settings)
    listener = _listen(settings.host, settings.http_port)
    if settings.load_models_at_startup:
        registry.load_all()
    states = registry.index()
    host, port = listener.getsockname()[:2]
    print(f"serving {len(states)} model(s) of {folder} on http://{host}:{port}", flush=True)
    for state in states:
        if not state.ready:
            print(f"  {state.name} cannot be served: {state.reason}", flush=True)
    server = uvicorn.Server(
        uvicorn.Config(
            _journaled(create_app(registry, settings, threads=True), journal),
            http=_HttpProtocol,
            loop="uvloop",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,  # the journal's, which says no client's words
            server_header=False,
            root_path=settings.root_path,
        )
    )
    with suppress(KeyboardInterrupt):  # uvicorn has shut down and hands Ctrl-C on
        server.run(sockets=[listener])
    return 0


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


def _doctor(root: str | None) -> int:
    logging.getLogger("mlserverless").addHandler(logging.NullHandler())  # the lines say it all
    settings = Settings.load()
    findings = list(doctor.examine(root or settings.model_repository_root, settings))
    for well, sentence in findings:
        print(f"{'ok' if well else 'problem':8} {sentence}")
    return 0 if all(well for well, _ in findings) else 1


def _profile(root: str, svg: str | None) -> int:
    repository = open_repository(root)
    found = [profile.profile(root, name) for name in sorted({m.name for m in repository.models()})]
    if not found:
        raise SettingsError(f"no model-settings.json below {root}")
    print(profile.table(found))
    if svg is not None:
        with open(svg, "w", encoding="utf-8") as file:
            file.write(profile.picture(found))
    return 0


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
        raise SettingsError(f"cannot listen on {host}:{port}: {why}") from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
