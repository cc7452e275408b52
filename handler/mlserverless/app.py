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
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mlserverless import imports  # noqa: F401 # isort: skip # first: what FastAPI imports may wait

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mlserverless import memory, wire
from mlserverless.errors import (
    Forbidden,
    MLServerlessError,
    NotReady,
    TooLarge,
    TooSlow,
    Unavailable,
    quote,
)
from mlserverless.journal import Line, milliseconds
from mlserverless.protocol import BINARY_HEADER, JSON, TensorMetadata
from mlserverless.registry import Entry, ModelState, Registry
from mlserverless.settings import Settings

if TYPE_CHECKING:
    from mlserverless.runtime import Model

log = logging.getLogger(__name__)

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

EXTENSIONS: Final = ("binary_tensor_data", "model_repository")

_MODEL: Final = ("/v2/models/{name}/versions/{version}", "/v2/models/{name}")


def create_app(registry: Registry, settings: Settings, *, threads: bool) -> FastAPI:
    """The whole application.

    `threads` moves loading and prediction off the event loop: a server with many clients
    wants it, a Lambda environment, which has one request at a time, does not.
    """
    service = _Service(registry, settings, threads)

    def add(path: str, endpoint: Endpoint, method: str = "GET") -> None:
        app.add_route(path, _guarded(path, endpoint), [method])

    app = _App(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # X-Ray's, on Lambda
    )
    # the busiest routes first: they are tried in this order
    for verb in ("infer", "generate"):
        for model in _MODEL:
            add(f"{model}/{verb}", service.infer, "POST")
    for model in _MODEL:
        for verb in ("infer_stream", "generate_stream"):
            add(f"{model}/{verb}", service.infer_stream, "POST")
        add(f"{model}/ready", service.model_ready)
        add(model, service.model_metadata)
        add(f"{model}/docs", service.docs)
        add(f"{model}/docs/dataplane.json", service.dataplane)
    add("/v2/docs", service.docs)
    add("/v2/docs/dataplane.json", service.dataplane)
    add("/v2/health/live", service.live)
    add("/v2/health/ready", service.ready)
    add("/v2/repository/index", service.index, "POST")
    add("/v2/repository/models/{name}/load", service.load, "POST")
    add("/v2/repository/models/{name}/unload", service.unload, "POST")
    add("/v2", service.server_metadata)
    return app


class _App(FastAPI):
    """`/v2/` answers as `/v2` does; a redirect would lose some clients' bodies.

    `scope["line"]` is the request's line of the log, brought by the door.
    """

    def build_middleware_stack(self) -> ASGIApp:
        """One layer in place of FastAPI's six: there are no forms, no telemetry, no files here."""
        return self._answered

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.router(scope, receive, send)
        except HTTPException as error:
            await _refused(scope, error)(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - nothing may get past it
            await error_response(internal_error(scope["line"], error))(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "line" not in scope:
            scope["line"] = scope.get("aws.event", {}).get("line") or Line()
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


def internal_error(line: Line, error: BaseException) -> MLServerlessError:
    """Log where an unforeseen failure was raised; its own words may hold a payload."""
    if "request_id" not in line.ids:  # where there is no Lambda to give one
        line.ids = {"request_id": str(uuid.uuid4()), **line.ids}
    name, kind = line.ids["request_id"], type(error).__name__
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error(
        "request %s failed with %s", name, kind, extra={"fields": {**line.ids, "where": where}}
    )
    ids = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in line.ids.items())
    return MLServerlessError(f"internal error; the log says more under {ids}")


def _guarded(route: str, endpoint: Endpoint) -> Endpoint:
    async def guarded(request: Request) -> Response:
        line = _line(request)
        line.route = route
        try:
            return await endpoint(request)
        except MLServerlessError as error:
            if error.status >= 500:
                line.error = str(error)
            return error_response(error)
        except MemoryError:
            return error_response(TooLarge("this request needs more memory than there is"))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - nothing may get past it
            return error_response(internal_error(line, error))

    return guarded


def _line(request: Request) -> Line:
    line: Line = request.scope["line"]
    return line


def _refused(scope: Scope, error: HTTPException) -> Response:
    """What the router refuses: no such route, or another method."""
    path, method = quote(scope["path"]), quote(scope["method"])
    sentence, headers = f"there is no route {path}", {}
    if error.status_code == 405:
        sentence = f"{path} does not take {method}"
        # Starlette keeps the methods in a set, of another order in every process
        allowed = (error.headers or {}).get("Allow", "")
        headers["allow"] = ", ".join(sorted(allowed.split(", ")))
    return Response(
        wire.encode_json({"error": sentence}),
        status_code=error.status_code,
        headers=headers,
        media_type=JSON,
    )


# ── the routes ──────────────────────────────────────────────────────────────────────────


# A thread costs a small request a tenth of a millisecond, twice what its answer may take. The last
# small request to a model says what the next one will: a slow model never keeps the loop twice, and
# only once can it take a function's time unseen.
_SMALL: Final = 16_384  # bytes
_SWIFT: Final = 0.002  # seconds
_LONGEST: Final = 900.0  # seconds that Lambda gives a function at most
_MARGIN: Final = 0.5  # seconds of a function's time that an answer needs to get out
_WORKERS: Final = 4  # predictions of a function, those that were given up among them


class _Service:
    """The endpoints, over one registry."""

    def __init__(self, registry: Registry, settings: Settings, threads: bool) -> None:
        self.registry = registry
        self.settings = settings
        self.threads = threads
        self.workers = ThreadPoolExecutor(_WORKERS)

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
        model = self.registry.kept(entry) or await self._model(request, entry)
        asked = (_line(request), entry, model, body, request.headers.get(BINARY_HEADER))
        if entry.swift and len(body) < _SMALL:
            return self._infer(*asked)
        return await self._run(request, self._infer, *asked)

    def _infer(
        self, line: Line, entry: Entry, model: Model, body: bytes, header_length: str | None
    ) -> wire.Encoded:
        start = time.perf_counter()
        memory.check_text(body)
        answer = model.infer(wire.decode(body, header_length))
        memory.check_numbers(sum([prod(output.shape) for output in answer.outputs]))
        encoded = wire.encode(answer)
        line.predict_ms = milliseconds(start)
        line.rows = answer.outputs[0].shape[0] if answer.outputs else 0
        if len(body) < _SMALL:
            entry.swift = line.predict_ms < _SWIFT * 1000
        return encoded

    async def _model(self, request: Request, entry: Entry) -> Model:
        """The model of an entry, loaded if need be."""
        model = self.registry.kept(entry)
        if model is not None:
            return model
        start = time.perf_counter()
        try:
            return await self._run(request, self.registry.get, entry)
        except TooSlow as error:  # the load goes on, and who asks again may find it done
            raise Unavailable(
                f"Model {quote(entry.settings.name)} is still being loaded"
            ) from error
        finally:
            _line(request).load_ms = milliseconds(start)

    async def model_metadata(self, request: Request) -> Response:
        entry = await self._entry(request)
        model = await self._model(request, entry)
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
            await self._model(request, entry)
        except MLServerlessError as error:
            raise NotReady(str(error)) from error
        return _json({"name": entry.settings.name, "ready": True})

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        reason = await self._run(request, self.registry.unready)
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
        model = await self._model(request, entry)
        example = await self._run(request, model.example)
        name, version = request.path_params["name"], request.path_params.get("version")
        subject = docs.Subject(name, version, model.inputs(), model.outputs(), example)
        return docs.model(subject, depth)

    async def index(self, request: Request) -> Response:
        question = wire.decode_object(await self._body(request))
        states = await self._run(request, self.registry.index)
        if question.get("ready") is True:
            states = [state for state in states if state.ready]
        return _json([_state(state) for state in states])

    async def load(self, request: Request) -> Response:
        self._control()
        await self._run(request, self.registry.load, request.path_params["name"])
        return Response(b"")

    async def unload(self, request: Request) -> Response:
        self._control()
        await self._run(request, self.registry.unload, request.path_params["name"])
        return Response(b"")

    def _control(self) -> None:
        if self.settings.model_control_mode != "explicit":
            raise Forbidden(
                "this server's models cannot be loaded or unloaded by request; "
                "MLSERVERLESS_MODEL_CONTROL_MODE=explicit allows it"
            )

    async def _entry(self, request: Request) -> Entry:
        params, line = request.path_params, _line(request)
        name, version = params["name"], params.get("version")
        if self.registry.at_hand(name, version):  # a dictionary's answer needs no thread
            entry = self.registry.find(name, version)
        else:
            entry = await self._run(request, self.registry.find, name, version)
        line.model, line.version = entry.settings.name, entry.settings.version
        return entry

    async def _body(self, request: Request) -> bytes:
        """The whole body, unpacked; refused as soon as it is over the limit."""
        limit = self.settings.max_body_bytes
        parts, size = [], 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise TooLarge(f"the body is larger than {limit} bytes")
        _line(request).bytes_in = size
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return wire.unpack(body, request.headers.get("content-encoding", ""), limit)

    async def _run(self, request: Request, work: Callable[..., T], *arguments: Any) -> T:
        """What work returns: on another thread, or in the time that the function has left."""
        if self.threads:
            return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)
        seconds = _seconds_left(request)
        if seconds is None:
            return work(*arguments)
        future = self.workers.submit(work, *arguments)
        try:
            return future.result(seconds)
        except TimeoutError as error:
            if future.done():  # its own
                raise
            if future.cancel():  # it never began
                raise Unavailable("earlier requests still take all of the function") from error
            raise TooSlow("this request takes longer than the function may") from error


def _seconds_left(request: Request) -> float | None:
    """Until Lambda ends the function, less what an answer needs; None where nobody does."""
    ask = getattr(request.scope.get("aws.context"), "get_remaining_time_in_millis", None)
    left = ask() if callable(ask) else None
    return max(0.0, min(left / 1000, _LONGEST) - _MARGIN) if isinstance(left, int | float) else None


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
