"""The FastAPI application: V2's routes, and every failure as `{"error": …}`.

Routes read raw bytes and answer raw bytes: pydantic would only slow tensor data down.
The same application stands behind the Lambda handler and the local server.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mlserverless import imports  # noqa: F401 # isort: skip # first: what FastAPI imports may wait

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mlserverless import deadline, memory, wire
from mlserverless.errors import (
    NO_THREAD_MESSAGE,
    REPOSITORY_TIMEOUT_MESSAGE,
    AnswerTooLarge,
    BadRequest,
    Forbidden,
    MLServerlessError,
    NotReady,
    PredictionError,
    TooLarge,
    TooSlow,
    Unavailable,
    quote,
)
from mlserverless.journal import Line, milliseconds, places
from mlserverless.protocol import BINARY_HEADER, JSON, TensorMetadata
from mlserverless.registry import Entry, ModelState, Registry
from mlserverless.settings import Settings

if TYPE_CHECKING:
    from mlserverless.runtime import Model

log = logging.getLogger(__name__)

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

EXTENSIONS: Final = ("binary_tensor_data", "classification", "model_repository")

_MODEL: Final = ("/v2/models/{name}/versions/{version}", "/v2/models/{name}")


def create_app(
    registry: Registry, settings: Settings, *, threads: bool, answer_limit: int | None = None
) -> FastAPI:
    """The whole application.

    `threads` moves loading and prediction off the event loop: a server with many clients
    wants it, a Lambda environment, which has one request at a time, does not. No body of an
    answer is larger than `answer_limit` bytes.
    """
    service = _Service(registry, settings, threads)

    def add(path: str, endpoint: Endpoint, method: str = "GET") -> None:
        app.add_route(path, _guarded(path, endpoint, answer_limit), [method])

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
        scope["until"] = time.monotonic() + _PATIENCE
        if scope["type"] == "http" and scope["path"].endswith(("/", "\n")):
            # Starlette takes a line's end for the path's
            path = scope["path"].replace("\n", "\\n").rstrip("/")
            scope = {**scope, "path": path or "/"}
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
    where = places(error.__traceback__)
    log.error(
        "request %s failed with %s", name, kind, extra={"fields": {**line.ids, "where": where}}
    )
    ids = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in line.ids.items())
    return MLServerlessError(f"internal error; the log says more under {ids}")


def _guarded(route: str, endpoint: Endpoint, answer_limit: int | None) -> Endpoint:
    async def guarded(request: Request) -> Response:
        line = _line(request)
        line.route = route
        try:
            return _carried(await endpoint(request), answer_limit, request)
        except MLServerlessError as error:
            if error.status >= 500:
                line.error = str(error)
            return error_response(error)
        except MemoryError:
            return error_response(TooLarge("this request needs more memory than there is"))
        except ClientDisconnect:
            return error_response(BadRequest("the client has gone before its body had come"))
        except Exception as error:  # noqa: BLE001 - nothing may get past it
            return error_response(internal_error(line, error))

    return guarded


def _carried(answer: Response, limit: int | None, request: Request) -> Response:
    if limit is not None and len(answer.body) > limit:
        # the sender of an event may accept less than Lambda carries
        event = request.scope.get("aws.event", {})
        raise AnswerTooLarge(len(answer.body), event.get("response_limit", limit))
    return answer


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


# A thread costs a small request a tenth of a millisecond, twice what its answer may take. A model
# that has answered a number of small requests at once in a row is asked for no larger ones without:
# a slow model never keeps the loop twice in so many, nor a function's time unseen.
_SMALL: Final = 16_384  # bytes
_SWIFT: Final = 2.0  # milliseconds
_PROVEN: Final = 16  # requests
_PATIENCE: Final = 25.0  # seconds that a request may wait for S3: its gateway gives up after 29
_THREADS: Final = 40  # requests of a server that wait for models at the same time
_WORKERS: Final = 4  # predictions of a function, those that were given up among them


class _Service:
    """The endpoints, over one registry."""

    def __init__(self, registry: Registry, settings: Settings, threads: bool) -> None:
        self.registry = registry
        self.settings = settings
        self.threads = threads
        self.over = _Unread if threads else TooLarge
        self.workers = ThreadPoolExecutor(_THREADS if threads else _WORKERS)

    async def infer(self, request: Request) -> Response:
        answer = await self._answer(request, packed=self.settings.gzip_enabled)
        return Response(answer.body, headers=dict(answer.headers), media_type=answer.media_type)

    async def infer_stream(self, request: Request) -> Response:
        answer = await self._answer(request, packed=False)
        body = b"data: " + answer.body + b"\n\n"
        return Response(body, media_type="text/event-stream")

    async def _answer(self, request: Request, *, packed: bool) -> wire.Encoded:
        entry = await self._entry(request)
        body = await self._body(request)
        model = self.registry.kept(entry) or await self._model(request, entry)
        asked = (request, entry, model, body, packed)
        if entry.swift >= _PROVEN and len(body) <= entry.swift_bytes:
            return self._infer(*asked)
        return await self._run(request, self._infer, *asked)

    def _infer(
        self, request: Request, entry: Entry, model: Model, body: bytes, packed: bool
    ) -> wire.Encoded:
        line, start = _line(request), time.perf_counter()
        memory.check_json(body)
        try:
            answer = model.infer(wire.decode(body, request.headers.get(BINARY_HEADER)))
        except PredictionError:
            line.predict_failures = 1
            raise
        memory.check(sum([wire.most_bytes(output) for output in answer.outputs]))
        encoded = wire.encode(answer)
        if packed:
            encoded = wire.compress(encoded, request.headers.get("accept-encoding", ""))
        line.predict_ms = milliseconds(start)
        line.rows = answer.outputs[0].shape[0] if answer.outputs else 0
        if line.predict_ms >= _SWIFT:
            entry.swift = 0
        elif len(body) < _SMALL and len(answer.outputs) < 2:
            entry.swift_bytes = max(len(body), entry.swift_bytes if entry.swift else 0)
            entry.swift += 1
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
        versions = await self._found(request, self.registry.versions, settings.name)
        inputs, outputs = await self._run(request, _describe_tensors, model)
        return _json(
            {
                "name": settings.name,
                "versions": settings.versions or versions,
                "platform": settings.platform or "sklearn",
                "inputs": [_tensor(tensor) for tensor in inputs],
                "outputs": [_tensor(tensor) for tensor in outputs],
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
        try:
            reason = await self._found(request, self.registry.unready)
        except Unavailable as error:  # no time left to find out
            reason = str(error)
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
        inputs, outputs = await self._run(request, _describe_tensors, model)
        example = await self._run(request, model.example)
        name, version = request.path_params["name"], request.path_params.get("version")
        subject = docs.Subject(name, version, inputs, outputs, example)
        return docs.model(subject, depth)

    async def index(self, request: Request) -> Response:
        question = wire.decode_object(await self._body(request))
        states = await self._found(request, self.registry.index)
        if question.get("ready") is True:
            states = [state for state in states if state.ready]
        return _json([_state(state) for state in states])

    async def load(self, request: Request) -> Response:
        self._control()
        await self._found(request, self.registry.load, request.path_params["name"])
        return Response(b"")

    async def unload(self, request: Request) -> Response:
        self._control()
        await self._found(request, self.registry.unload, request.path_params["name"])
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
        entry = self.registry.at_hand(name, version)  # a dictionary's answer needs no thread
        if entry is None:
            entry = await self._found(request, self.registry.find, name, version)
        line.model, line.version = entry.settings.name, entry.settings.version
        return entry

    async def _body(self, request: Request) -> bytes:
        """The whole body, unpacked; refused as soon as it is over the limit."""
        limit = self.settings.max_body_bytes
        parts, size = [], 0
        if self.threads:  # a function has the whole body before it is asked
            announced = request.headers.get("content-length", "")
            if announced.isdecimal() and int(announced[:20]) > limit:
                raise self.over(f"the body is larger than {limit} bytes")
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise self.over(f"the body is larger than {limit} bytes")
        _line(request).bytes_in = size
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        encoding = request.headers.get("content-encoding", "")
        return await self._run(request, wire.unpack, body, encoding, limit) if encoding else body

    async def _found(self, request: Request, ask: Callable[..., T], *arguments: Any) -> T:
        """What the registry answers; the repository is at fault when it takes too long."""
        try:
            return await self._run(request, ask, *arguments)
        except TooSlow as error:
            raise Unavailable(REPOSITORY_TIMEOUT_MESSAGE) from error

    async def _run(self, request: Request, work: Callable[..., T], *arguments: Any) -> T:
        """What work returns: on another thread, or in the time that the function has left."""
        until = request.scope["until"]
        if self.threads:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.workers, _by, until, work, *arguments)
        seconds = deadline.seconds_left(request.scope.get("aws.context"))
        if seconds is None:
            return _by(until, work, *arguments)
        until = min(until, time.monotonic() + seconds)
        try:
            future = self.workers.submit(_by, until, work, *arguments)
        except RuntimeError as error:  # "can't start new thread"
            raise Unavailable(NO_THREAD_MESSAGE) from error
        try:
            return future.result(seconds)
        except TimeoutError as error:
            if future.done():  # its own
                raise
            if future.cancel():  # it never began
                raise Unavailable("earlier requests still take all of the function") from error
            raise TooSlow("this request takes longer than the function may") from error
        finally:
            del future  # what it has raised holds this frame, and the whole request with it


def _by(until: float, work: Callable[..., T], *arguments: Any) -> T:
    """What work returns, for a request that ends then."""
    with deadline.until(until):
        return work(*arguments)


class _Unread(TooLarge):
    """A body over the limit, of which more may come: the connection must end."""

    @property
    def headers(self) -> Mapping[str, str]:
        """That it ends."""
        return {"Connection": "close"}


Tensors = tuple[TensorMetadata, ...]


def _describe_tensors(model: Model) -> tuple[Tensors, Tensors]:
    """Return the metadata of a model's inputs and outputs. The first call reads the estimator."""
    return model.inputs(), model.outputs()


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
