"""The door: `handler(event, context)` for AWS Lambda. It wires the rooms and lets nothing out.

Mangum turns HTTP API, REST, Function URL and ALB events into ASGI and back. Whatever it,
or anything below it, raises becomes a JSON answer.
"""

from __future__ import annotations

from mlserverless import imports  # noqa: F401 # isort: skip # first: what asyncio imports may wait

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from mangum import Mangum

from mlserverless import deadline, direct, events, memory, snapshot
from mlserverless.app import create_app, internal_error
from mlserverless.errors import MLServerlessError, SettingsError, TooLarge
from mlserverless.journal import Journal, Line, places
from mlserverless.registry import Registry
from mlserverless.repository import open_repository
from mlserverless.settings import (
    Settings,
    level_of_function,
    limit_threads,
    memory_of_function,
    name_of_function,
    seconds_of_init,
    temporary_folder,
    trace_id,
    version_of_function,
)

log = logging.getLogger(__name__)

# it would log paths, and the words of what was raised
logging.getLogger("mangum").setLevel(logging.CRITICAL + 1)


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

    def __init__(self, settings: Settings, journal: Journal | None = None) -> None:
        self.journal = journal
        repository = open_repository(settings.model_repository_root, settings.cache_folder)
        self.registry = Registry(repository, settings)
        app = create_app(self.registry, settings, threads=False, answer_limit=events.ANSWER_LIMIT)
        self.loop = _Loop()  # type: ignore[abstract] # the two methods that Mangum calls
        asyncio.set_event_loop(self.loop)  # each thread has its own, and Mangum asks for one
        self.mangum = Mangum(app, lifespan="off")
        if settings.load_models_at_startup:
            with deadline.until(time.monotonic() + seconds_of_init()):
                self.registry.load_all()
        snapshot.register(self.registry, fail_on_error=settings.fail_snapshot_on_error)

    def __call__(self, event: Any, context: Any) -> events.Answer:
        """A whole event in, a whole proxy answer out; never raises."""
        line = Line(_ids(event, context))
        answer = events.shaped(self._answer(event, context, line), event)
        if self.journal is not None:
            self.journal.request(line, answer["statusCode"], events.body_size(answer))
        return answer

    def _answer(self, event: Any, context: Any, line: Line) -> events.Answer:
        try:
            normal = events.normal(event)
            if normal is None:
                if direct.is_load(event):
                    return direct.load(self.registry, event, deadline.seconds_left(context))
                return events.refusal(event)
            normal["line"] = line
            asyncio.set_event_loop(self.loop)
            return events.carried(self._applied(normal, context), normal)
        except MLServerlessError as error:
            if error.status >= 500:
                line.error = str(error)
            return events.failure(error)
        except MemoryError:
            return events.failure(TooLarge("this request needs more memory than there is"))
        except Exception as error:  # noqa: BLE001 - Lambda would return a 502
            return events.failure(internal_error(line, error))

    def _applied(self, event: events.Event, context: Any) -> events.Answer:
        answer: events.Answer = self.mangum(event, context)
        if events.is_mangums(answer):
            raise RuntimeError("Mangum could not carry what the application did")
        return answer


def _ids(event: Any, context: Any) -> dict[str, str]:
    """What a line and an error are found by: Lambda's own id, the gateway's, X-Ray's."""
    ids = {}
    if isinstance(found := getattr(context, "aws_request_id", None), str):
        ids["request_id"] = found
    if (found := events.gateway_id(event)) is not None:
        ids["gateway_id"] = found
    if (found := trace_id()) is not None:
        ids["trace_id"] = found
    return ids


def _open() -> Any:
    """Return the handler; never raises, since Lambda would fail every request of the process.

    If a setting cannot be understood, the response to each request names it.
    """
    journal = Journal(level_of_function(), name_of_function(), version_of_function())
    try:
        settings = Settings.load(log_level=level_of_function(), cache_folder=temporary_folder())
    except SettingsError as error:
        return _Refusal(error, journal)
    journal.setLevel(settings.log_level)
    _try("the log handler was not installed", journal.attach)
    _try("the BLAS threads were not limited", limit_threads)
    _try("the memory limit was not set", lambda: memory.limit(memory_of_function()))
    try:
        return Door(settings, journal)
    except Exception as error:  # noqa: BLE001 - import must not fail
        _log_failure("the handler could not be made", error)
        return _Restart(settings, journal)


def _try(failure: str, step: Callable[[], None]) -> None:
    """Run a step that requests can do without; log `failure` if it raises."""
    try:
        step()
    except Exception as error:  # noqa: BLE001 - import must not fail
        _log_failure(failure, error)


def _log_failure(failure: str, error: Exception) -> None:
    where = {"fields": {"where": places(error.__traceback__)}}
    log.error("%s (%s)", failure, type(error).__name__, extra=where)


class _Refusal:
    """The handler of a process whose settings cannot be understood."""

    def __init__(self, error: SettingsError, journal: Journal) -> None:
        self.error = error
        self.journal = journal

    def __call__(self, event: Any, context: Any) -> events.Answer:
        """Respond with the error; never raises."""
        line = Line(_ids(event, context))
        line.error = str(self.error)
        return _respond_with(self.error, event, line, self.journal)


class _Restart:
    """The handler of a process that failed to start unexpectedly: each request tries again."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self.settings = settings
        self.journal = journal
        self.handler: Door | None = None

    def __call__(self, event: Any, context: Any) -> events.Answer:
        """Make the handler and call it; respond with 500 if it cannot be made. Never raises."""
        if self.handler is None:
            try:
                self.handler = Door(self.settings, self.journal)
            except Exception as error:  # noqa: BLE001 - Lambda would return a 502
                line = Line(_ids(event, context))
                return _respond_with(internal_error(line, error), event, line, self.journal)
        return self.handler(event, context)


def _respond_with(
    error: MLServerlessError, event: Any, line: Line, journal: Journal
) -> events.Answer:
    response = events.shaped(events.failure(error), event)
    journal.request(line, response["statusCode"], events.body_size(response))
    return response


handler = _open()
