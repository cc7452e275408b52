"""The door: `handler(event, context)` for AWS Lambda. It wires the rooms and lets nothing out.

Mangum turns HTTP API, REST, Function URL and ALB events into ASGI and back. Whatever it,
or anything below it, raises becomes a JSON answer.
"""

from __future__ import annotations

from mlserverless import imports  # noqa: F401 # isort: skip # first: what asyncio imports may wait

import asyncio
import logging
from typing import Any

from mangum import Mangum

from mlserverless import events, snapshot
from mlserverless.app import create_app, internal_error, request_id
from mlserverless.errors import MLServerlessError, SettingsError
from mlserverless.registry import Registry
from mlserverless.repository import open_repository
from mlserverless.settings import Settings, limit_threads

# "METHOD path status" of every request is the access log's to say
logging.getLogger("mangum.http").setLevel(logging.WARNING)


class _Loop(asyncio.AbstractEventLoop):
    """Runs a request to its end at once: behind this door nothing ever waits.

    asyncio's own loop would cost a third of a small request, for selectors and handles that
    an environment with one request at a time has no use for.
    """

    def create_task(self, coroutine: Any, **_: Any) -> Any:  # type: ignore[override] # no task
        """The coroutine itself; Mangum runs it next."""
        return coroutine

    def run_until_complete(self, coroutine: Any) -> Any:
        """Drive a coroutine that does not wait; RuntimeError for one that does."""
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value
        coroutine.close()
        raise RuntimeError("a request waited for something behind the door")


class Door:
    """One environment's handler: settings read once, models kept between requests."""

    def __init__(self, settings: Settings) -> None:
        self.registry = Registry(open_repository(settings.model_repository_root), settings)
        app = create_app(self.registry, settings, threads=False)
        self.loop = _Loop()  # type: ignore[abstract] # the two methods that Mangum calls
        asyncio.set_event_loop(self.loop)  # each thread has its own, and Mangum asks for one
        self.mangum = Mangum(app, lifespan="off")
        if settings.load_models_at_startup:
            self.registry.load_all()
        snapshot.register(self.registry)

    def __call__(self, event: Any, context: Any) -> events.Answer:
        """A whole event in, a whole proxy answer out; never raises."""
        try:
            normal = events.normal(event)
            if normal is None:
                return events.refusal(event)
            asyncio.set_event_loop(self.loop)
            answer: events.Answer = self.mangum(normal, context)
            if events.method(normal) == "HEAD":
                answer["body"] = ""
            return events.carried(answer)
        except MLServerlessError as error:
            return events.failure(error)
        except Exception as error:  # noqa: BLE001 - Lambda would make a 502 of it
            return events.failure(internal_error(request_id(context), error))


def _open() -> Any:
    """The handler, or one that says on every request what is wrong with the settings."""
    limit_threads()
    try:
        return Door(Settings.load())
    except SettingsError as error:
        answer = events.failure(error)
        return lambda *_: answer


handler = _open()
