"""The FastAPI application: V2's routes, and every failure as `{"error": …}`.

Routes read raw bytes and answer raw bytes: pydantic would only slow tensor data down.
The same application stands behind the Lambda handler and the local server.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from mlserverless import imports  # noqa: F401 # isort: skip # first: what FastAPI imports may wait

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlserverless import wire
from mlserverless.errors import Forbidden, MLServerlessError, NotReady, TooLarge, quote
from mlserverless.protocol import BINARY_HEADER, JSON, TensorMetadata
from mlserverless.registry import Entry, ModelState, Registry
from mlserverless.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

EXTENSIONS: Final = ("binary_tensor_data", "model_repository")

_INFERENCE: Final = ("/v2/models/{name}/versions/{version}", "/v2/models/{name}")


def create_app(registry: Registry, settings: Settings, *, threads: bool) -> FastAPI:
    """The whole application.

    `threads` moves loading and prediction off the event loop: a server with many clients
    wants it, a Lambda environment, which has one request at a time, does not.
    """
    service = _Service(registry, settings, threads)
    app = _App(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _refused},
        telemetry={"tracing": False, "metrics": False, "logs": False},  # X-Ray's, on Lambda
    )
    # the busiest route first: they are tried in this order
    for prefix in _INFERENCE:
        for verb in ("infer", "generate"):
            app.add_route(f"{prefix}/{verb}", _guarded(service.infer), ["POST"])
            app.add_route(f"{prefix}/{verb}_stream", _guarded(service.infer_stream), ["POST"])
        app.add_route(f"{prefix}/ready", _guarded(service.model_ready), ["GET"])
        app.add_route(prefix, _guarded(service.model_metadata), ["GET"])
        app.add_route(f"{prefix}/docs", _guarded(service.docs), ["GET"])
        app.add_route(f"{prefix}/docs/dataplane.json", _guarded(service.dataplane), ["GET"])
    app.add_route("/v2/docs", _guarded(service.docs), ["GET"])
    app.add_route("/v2/docs/dataplane.json", _guarded(service.dataplane), ["GET"])
    app.add_route("/v2/health/live", _guarded(service.live), ["GET"])
    app.add_route("/v2/health/ready", _guarded(service.ready), ["GET"])
    app.add_route("/v2/repository/index", _guarded(service.index), ["POST"])
    app.add_route("/v2/repository/models/{name}/load", _guarded(service.load), ["POST"])
    app.add_route("/v2/repository/models/{name}/unload", _guarded(service.unload), ["POST"])
    app.add_route("/v2", _guarded(service.server_metadata), ["GET"])
    return app


class _App(FastAPI):
    """`/v2/` answers as `/v2` does; a redirect would lose some clients' bodies."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await super().__call__(scope, receive, send)


# ── failures ────────────────────────────────────────────────────────────────────────────


def error_response(error: MLServerlessError) -> Response:
    """A failure as every client sees it."""
    return Response(
        wire.encode_json({"error": str(error)}),
        status_code=error.status,
        headers=dict(error.headers),
        media_type=JSON,
    )


def internal_error(name: str, error: BaseException) -> MLServerlessError:
    """Log where an unforeseen failure was raised; its own words may hold a payload."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s failed with %s\n%s", name, type(error).__name__, where)
    return MLServerlessError(f"internal error; the log says more under request id {name}")


def _guarded(endpoint: Endpoint) -> Endpoint:
    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except MLServerlessError as error:
            return error_response(error)
        except MemoryError:
            return error_response(TooLarge("this request needs more memory than there is"))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - nothing may get past it
            name = request_id(request.scope.get("aws.context"))
            return error_response(internal_error(name, error))

    return guarded


def request_id(context: object) -> str:
    """Lambda's id of this request, or one of our own where there is no Lambda."""
    return getattr(context, "aws_request_id", None) or str(uuid.uuid4())


async def _refused(request: Request, error: Any) -> Response:
    """What the router refuses: no such route, or another method."""
    path, method = quote(request.scope["path"]), quote(request.method)
    sentence, headers = f"there is no route {path}", {}
    if error.status_code == 405:
        sentence = f"{path} does not take {method}"
        # Starlette keeps the methods in a set, of another order in every process
        headers["allow"] = ", ".join(sorted(error.headers["Allow"].split(", ")))
    return Response(
        wire.encode_json({"error": sentence}),
        status_code=error.status_code,
        headers=headers,
        media_type=JSON,
    )


# ── the routes ──────────────────────────────────────────────────────────────────────────


# A thread costs a small request a tenth of a millisecond, twice what its answer may take. The last
# small request to a model says what the next one will: a slow model never keeps the loop twice.
_SMALL: Final = 16_384  # bytes
_SWIFT: Final = 0.002  # seconds


class _Service:
    """The endpoints, over one registry."""

    def __init__(self, registry: Registry, settings: Settings, threads: bool) -> None:
        self.registry = registry
        self.settings = settings
        self.threads = threads

    async def infer(self, request: Request) -> Response:
        answer = await self._answer(request)
        if self.settings.gzip_enabled:
            answer = wire.compress(answer, request.headers.get("accept-encoding", ""))
        return Response(answer.body, headers=dict(answer.headers), media_type=answer.media_type)

    async def infer_stream(self, request: Request) -> Response:
        answer = await self._answer(request)
        body = b"data: " + answer.body + b"\n\n"
        return Response(body, media_type="text/event-stream")

    async def _answer(self, request: Request) -> wire.Encoded:
        entry = await self._entry(request)
        body = await self._body(request)
        header_length = request.headers.get(BINARY_HEADER)
        if entry.swift and len(body) < _SMALL:
            return self._infer(entry, body, header_length)
        return await self._run(self._infer, entry, body, header_length)

    def _infer(self, entry: Entry, body: bytes, header_length: str | None) -> wire.Encoded:
        model = self.registry.get(entry)
        start = time.perf_counter()
        answer = wire.encode(model.infer(wire.decode(body, header_length)))
        if len(body) < _SMALL:
            entry.swift = time.perf_counter() - start < _SWIFT
        return answer

    async def model_metadata(self, request: Request) -> Response:
        entry = await self._entry(request)
        model = await self._run(self.registry.get, entry)
        settings = entry.settings
        return _json(
            {
                "name": settings.name,
                "versions": settings.versions or self.registry.versions(settings.name),
                "platform": settings.platform or "sklearn",
                "inputs": [_tensor(tensor) for tensor in model.inputs()],
                "outputs": [_tensor(tensor) for tensor in model.outputs()],
                "parameters": {},
            }
        )

    async def model_ready(self, request: Request) -> Response:
        entry = await self._entry(request)
        try:
            await self._run(self.registry.get, entry)
        except MLServerlessError as error:
            raise NotReady(str(error)) from error
        return _json({"name": entry.settings.name, "ready": True})

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        reason = await self._run(self.registry.unready)
        if reason is None:
            return _json({"ready": True})
        return _json({"ready": False, "error": reason}, status=NotReady.status)

    async def server_metadata(self, _: Request) -> Response:
        return _json(
            {
                "name": self.settings.server_name,
                "version": self.settings.server_version,
                "extensions": EXTENSIONS,
            }
        )

    async def docs(self, request: Request) -> Response:
        from mlserverless.docs import page  # noqa: PLC0415 - as below

        return Response(page(await self._document(request)), media_type="text/html")

    async def dataplane(self, request: Request) -> Response:
        return _json(await self._document(request))

    async def _document(self, request: Request) -> dict[str, Any]:
        """The OpenAPI document of the server, or of the model that the path names."""
        from mlserverless import docs  # noqa: PLC0415 - few ask for it, and never a client

        depth = request.scope["path"].count("/")
        if "name" not in request.path_params:
            return docs.server(depth)
        entry = await self._entry(request)
        model = await self._run(self.registry.get, entry)
        example = await self._run(model.example)
        name, version = request.path_params["name"], request.path_params.get("version")
        subject = docs.Subject(name, version, model.inputs(), model.outputs(), example)
        return docs.model(subject, depth)

    async def index(self, request: Request) -> Response:
        question = wire.decode_object(await self._body(request))
        states = await self._run(self.registry.index)
        if question.get("ready") is True:
            states = [state for state in states if state.ready]
        return _json([_state(state) for state in states])

    async def load(self, request: Request) -> Response:
        self._control()
        await self._run(self.registry.load, request.path_params["name"])
        return Response(b"")

    async def unload(self, request: Request) -> Response:
        self._control()
        await self._run(self.registry.unload, request.path_params["name"])
        return Response(b"")

    def _control(self) -> None:
        if self.settings.model_control_mode != "explicit":
            raise Forbidden(
                "this server's models cannot be loaded or unloaded by request; "
                "MLSERVERLESS_MODEL_CONTROL_MODE=explicit allows it"
            )

    async def _entry(self, request: Request) -> Entry:
        params = request.path_params
        name, version = params["name"], params.get("version")
        if self.registry.settled:  # a dictionary's answer needs no thread
            return self.registry.find(name, version)
        return await self._run(self.registry.find, name, version)

    async def _body(self, request: Request) -> bytes:
        """The whole body, unpacked; refused as soon as it is over the limit."""
        limit = self.settings.max_body_bytes
        parts, size = [], 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise TooLarge(f"the body is larger than {limit} bytes")
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return wire.unpack(body, request.headers.get("content-encoding", ""), limit)

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        if self.threads:
            return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)
        return work(*arguments)


def _json(value: Any, status: int = 200) -> Response:
    return Response(wire.encode_json(value), status_code=status, media_type=JSON)


def _tensor(tensor: TensorMetadata) -> dict[str, Any]:
    spelled: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": tensor.shape,
    }
    if tensor.parameters:
        spelled["parameters"] = tensor.parameters
    return spelled


def _state(state: ModelState) -> dict[str, Any]:
    spelled = {"name": state.name}
    if state.version is not None:
        spelled["version"] = state.version
    return {
        **spelled,
        "state": "READY" if state.ready else "UNAVAILABLE",
        "reason": state.reason,
    }
