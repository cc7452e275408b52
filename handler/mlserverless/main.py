"""The door: `handler(event, context)` for AWS Lambda. It wires the rooms and lets nothing out.

Mangum turns HTTP API, REST, Function URL and ALB events into ASGI and back. Whatever it,
or anything below it, raises becomes a JSON answer.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any

from mangum import Mangum

from mlserverless import wire
from mlserverless.app import create_app, internal_error
from mlserverless.errors import BadRequest, MLServerlessError, SettingsError
from mlserverless.registry import Registry
from mlserverless.repository import open_repository
from mlserverless.settings import Settings

# "METHOD path status" of every request is the access log's to say
logging.getLogger("mangum.http").setLevel(logging.WARNING)

Event = Any
Answer = dict[str, Any]


class Door:
    """One environment's handler: settings read once, models kept between requests."""

    def __init__(self, settings: Settings) -> None:
        self.registry = Registry(open_repository(settings.model_repository_root), settings)
        app = create_app(self.registry, settings, threads=False)
        self.mangum = Mangum(app, lifespan="off")
        if settings.load_models_at_startup:
            self.registry.load_all()

    def __call__(self, event: Event, context: Any) -> Answer:
        """A whole event in, a whole proxy answer out; never raises."""
        request_id = getattr(context, "aws_request_id", None) or str(uuid.uuid4())
        try:
            if not _is_http(event):
                return _failed(BadRequest("this event is no HTTP request"))
            return self.mangum(_normal(event), context)
        except Exception as error:
            return _failed(internal_error(request_id, error))


def _is_http(event: Event) -> bool:
    return isinstance(event, dict) and isinstance(event.get("requestContext"), dict)


def _normal(event: dict[str, Any]) -> dict[str, Any]:
    """The event as Mangum can read it: a stage in front of the path taken off."""
    return event


def _failed(error: MLServerlessError) -> Answer:
    return {
        "statusCode": error.status,
        "headers": {"content-type": wire.JSON, **error.headers},
        "body": wire.encode_json({"error": str(error)}).decode(),
        "isBase64Encoded": False,
    }


def _open() -> Any:
    """The handler, or one that says on every request what is wrong with the settings."""
    try:
        return Door(Settings.load())
    except SettingsError as error:
        complaint = error
        return lambda event, context: _failed(complaint)


handler = _open()
