"""Direct invocation: an event that is not an HTTP request loads models before they are requested.

`{"mlserverless": "load"}` loads every model, `{"mlserverless": "load", "models": ["a", "b"]}`
loads these. An EventBridge schedule, Step Functions or `aws lambda invoke` can send it. An HTTP
client cannot: an event of a gateway has a `requestContext`, and a client cannot add keys to it.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import orjson

from mlserverless import deadline
from mlserverless.errors import (
    NO_THREAD_MESSAGE,
    REPOSITORY_TIMEOUT_MESSAGE,
    BadRequest,
    MLServerlessError,
    Unavailable,
    quote,
)
from mlserverless.protocol import JSON
from mlserverless.registry import ModelState, Registry

_NO_REASON: Final = ""
_TIME_IS_OVER: Final = (503, "still being loaded: the time of this invocation is over")

States = dict[tuple[str, str | None], tuple[int, str]]  # status and reason, by name and version


def is_load(event: object) -> bool:
    """Return whether the event requests that models are loaded."""
    return (
        isinstance(event, dict)
        and event.get("mlserverless") == "load"
        and not {"requestContext", "Records"} & event.keys()
    )


def load(registry: Registry, event: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    """Load the models that the event names, or all; return within so many seconds.

    `statusCode` is 200 if each of them is loaded. Else it is 503 if a repeated invocation can
    help, and otherwise the highest status of a model. `models` has the state of each, `body` the
    same as a string. Raises BadRequest, RepositoryError or Unavailable if no model can be named.
    """
    names = event.get("models")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise BadRequest("models must be a list of model names, or be absent to load every model")
    states: States = {}
    failure: list[BaseException] = []

    def run() -> None:
        try:
            with deadline.until(until):
                _load_each(registry, names, states)
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            failure.append(error)

    until = time.monotonic() + (float("inf") if seconds is None else seconds)
    thread = threading.Thread(target=run, name="load", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise Unavailable(NO_THREAD_MESSAGE) from error
    thread.join(seconds)
    if failure:
        raise failure[0]
    if thread.is_alive() and not states:
        raise Unavailable(REPOSITORY_TIMEOUT_MESSAGE)
    return _response(dict(states))


def _load_each(registry: Registry, names: list[str] | None, states: States) -> None:
    found = [each for each in registry.index() if names is None or each.name in names]
    missing = set(names or ()) - {each.name for each in found}
    states.update({(each.name, each.version): _TIME_IS_OVER for each in found})
    states.update({(name, None): (404, f"Model {quote(name)} not found") for name in missing})
    for each in found:
        states[each.name, each.version] = _load_one(registry, each)


def _load_one(registry: Registry, state: ModelState) -> tuple[int, str]:
    try:
        entry = registry.find(state.name, state.version)
        if entry.version != state.version:  # it has no version, failed, and another one serves
            return 500, state.reason
        registry.get(entry)
    except MLServerlessError as error:
        return error.status, str(error)
    except MemoryError:
        return 500, "it needs more memory than there is"
    return 200, _NO_REASON


def _response(states: States) -> dict[str, Any]:
    models = [
        {
            "name": name,
            "version": version,
            "state": "READY" if status == 200 else "UNAVAILABLE",
            "reason": reason,
        }
        for (name, version), (status, reason) in states.items()
    ]
    statuses = [status for status, _ in states.values()]
    status = 503 if 503 in statuses else max(statuses, default=200)
    body: dict[str, Any] = {"models": models}
    failed = [each for each in models if each["state"] != "READY"]
    if failed:
        first = f"{quote(str(failed[0]['name']))}: {failed[0]['reason']}"
        body["error"] = f"{len(failed)} of {len(models)} models are not loaded: {first}"
    return {
        "statusCode": status,
        "headers": {"content-type": JSON},
        "body": orjson.dumps(body).decode(),
        "isBase64Encoded": False,
        **body,
    }
