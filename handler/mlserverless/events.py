"""Lambda's events as Mangum can read them, and its answers as Lambda can carry them.

HTTP API (payload 1.0 and 2.0), REST API, Function URL and ALB. Events come from gateways,
test buttons, schedulers and attackers alike: what Mangum needs is copied, checked, into a
new event; nothing else is passed on. No IO.
Source: https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from mlserverless import memory
from mlserverless.errors import AnswerTooLarge, BadRequest, MLServerlessError
from mlserverless.protocol import JSON

Event = dict[str, Any]
Answer = dict[str, Any]

ANSWER_LIMIT: Final = 6 * 1024 * 1024  # bytes of a whole answer, as JSON, that Lambda carries
ALB_RESPONSE_LIMIT_BYTES: Final = 1024 * 1024  # the same behind an Application Load Balancer
# Escaping makes at most six bytes of one; 4,096 are more than all else in a response needs.
_ALWAYS_CARRIED_BYTES: Final = (ALB_RESPONSE_LIMIT_BYTES - 4096) // 6

_ONCE: Final = frozenset({"host", "x-forwarded-port"})  # Mangum joins what comes twice
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]+(:\d{1,5})?")
_BATCH: Final = 10_000  # records of a batch, at most
_IDENTIFIER: Final = 200  # characters of a record's, at most
_PORT: Final = re.compile(r"\d{1,5}")
_ID: Final = re.compile(r"[A-Za-z0-9_=:/+-]{1,64}")
# The first `/v2` that ends the path or has a route's next segment behind it. A stage or a base path
# before it may be called `v2` too, and so may a model or a version behind it.
_ROUTE: Final = re.compile(r"/v2(?=/(?:health|models|repository|docs)(?:/|\Z)|/*+\Z)")


def _sender(event: Any) -> str:
    """Return the format of an HTTP event: 2.0, 1.0 or alb, or an empty string for other events."""
    context = event.get("requestContext") if isinstance(event, dict) else None
    if not isinstance(context, dict):
        return ""
    if isinstance(context.get("http"), dict):
        return "2.0"
    return "alb" if "elb" in context else "1.0"


def _request_line(event: Any, sender: str) -> tuple[object, object]:
    """Return the method and the path of an HTTP event, as they are."""
    if sender == "2.0":
        http = event["requestContext"]["http"]
        return http.get("method"), http.get("path", event.get("rawPath"))
    return event.get("httpMethod"), event.get("path")


def normal(event: Any) -> Event | None:
    """The event, well-formed, or None when it is no HTTP request.

    Its body is bytes. Raises BadRequest for an HTTP request that cannot be read.
    """
    sender = _sender(event)
    if not sender:
        return None
    method, path = _request_line(event, sender)
    if not isinstance(method, str) or not method or not isinstance(path, str | None):
        return None
    path = _path(path or "/")
    common = {"headers": _headers(event.get("headers")), "body": _body(event)}
    if sender == "2.0":
        request = {"method": method, "path": path, "sourceIp": ""}
        return {**common, "version": "2.0", "requestContext": {"http": request}}
    common |= {"httpMethod": method, "path": path}
    many = event.get("multiValueHeaders")
    if isinstance(many, dict):
        common["multiValueHeaders"] = _many_headers(many)
    if sender == "alb":
        limit = {"response_limit": ALB_RESPONSE_LIMIT_BYTES}
        return {**common, **limit, "requestContext": {"elb": {}}}
    return {**common, "resource": "", "requestContext": {}}


def shaped(answer: Answer, event: Any) -> Answer:
    """Return the response in the format of its sender, also if the event is not well-formed."""
    sender = _sender(event)
    if not sender:
        return answer
    if _request_line(event, sender)[0] == "HEAD":
        answer["body"] = ""
    if sender == "alb" and "headers" in answer and isinstance(event.get("multiValueHeaders"), dict):
        headers = answer.pop("headers")
        answer["multiValueHeaders"] = {name: [text] for name, text in headers.items()}
    return answer


def is_mangums(answer: Answer) -> bool:
    """Whether it is what Mangum says when the application could not: ours are JSON."""
    return bool(answer["statusCode"] == 500 and answer["body"] == "Internal Server Error")


def body_size(answer: Answer) -> int:
    """The bytes of an answer's body as it leaves."""
    body: str = answer["body"]
    return len(body) if body.isascii() else len(body.encode())


def gateway_id(event: object) -> str | None:
    """The id that the gateway gave this request and its client; None where it gave none."""
    context = event.get("requestContext") if isinstance(event, dict) else None
    found = context.get("requestId") if isinstance(context, dict) else None
    return found if isinstance(found, str) and _ID.fullmatch(found) else None


def _path(path: str) -> str:
    """Return the path from `/v2` on, without a stage or a base path before it."""
    found = _ROUTE.search(path)
    if found is not None:
        return path[found.start() :]
    segments = path.split("/")  # no route: a 404, whatever is cut off
    if "v2" in segments:
        return "/" + "/".join(segments[segments.index("v2") :])
    return path


def _headers(value: object) -> dict[str, str]:
    found = value if isinstance(value, dict) else {}
    return {
        name: text
        for name, text in found.items()
        if isinstance(name, str) and isinstance(text, str) and _readable(name, text)
    }


def _many_headers(value: Mapping[object, object]) -> dict[str, list[str]]:
    return {
        name: kept
        for name, texts in value.items()
        if isinstance(name, str) and isinstance(texts, list) and name.lower() not in _ONCE
        if (kept := [text for text in texts if isinstance(text, str) and _readable(name, text)])
    }


def _readable(name: str, text: str) -> bool:
    """Whether Mangum can read it: it splits a host at its colon and counts with the port."""
    lower = name.lower()
    if lower == "host":
        return _HOST.fullmatch(text) is not None
    if lower == "x-forwarded-port":
        return _PORT.fullmatch(text) is not None
    return name.isascii() and text.isprintable()


def _body(event: Event) -> bytes:
    body = event.get("body") or ""
    if not isinstance(body, str):
        raise BadRequest("the event's body must be text")
    try:
        if event.get("isBase64Encoded"):
            import pybase64  # noqa: PLC0415 - most bodies are text and need it not

            return pybase64.b64decode(body, validate=True)
        return body.encode()
    except ValueError as error:
        raise BadRequest("the event's body cannot be decoded") from error


def refusal(event: object) -> Answer:
    """The answer to what is no HTTP request.

    A batch of records (SQS, Kinesis, DynamoDB) gets every one of them back as failed, so
    that nothing is deleted unread. An empty identifier says so of the whole batch.
    """
    answer = failure(
        BadRequest(
            "this event is not an HTTP request; send one of the V2 routes, or "
            '{"mlserverless": "load"} to load the models'
        )
    )
    records = event.get("Records") if isinstance(event, dict) else None
    if isinstance(records, list):
        failed = [_identifier(each) for each in records] if len(records) <= _BATCH else [""]
        answer["batchItemFailures"] = [{"itemIdentifier": each} for each in failed]
    return answer


def _identifier(record: object) -> str:
    if not isinstance(record, dict):
        return ""
    for holder in (record, record.get("kinesis"), record.get("dynamodb")):
        for key in ("messageId", "sequenceNumber", "SequenceNumber"):
            found = holder.get(key) if isinstance(holder, dict) else None
            if isinstance(found, str) and found.isascii() and len(found) <= _IDENTIFIER:
                return found
    return ""


def failure(error: MLServerlessError) -> Answer:
    """A failure as a proxy answer of its own, where no application could give one."""
    return {
        "statusCode": error.status,
        "headers": {"content-type": JSON, **error.headers},
        "body": orjson.dumps({"error": str(error)}).decode(),
        "isBase64Encoded": False,
    }


def carried(answer: Answer, event: Event) -> Answer:
    """Return the response, or a 413 if it is too large for the sender of a normal event."""
    size = len(answer["body"])
    if size < _ALWAYS_CARRIED_BYTES:
        return answer
    limit = event.get("response_limit", ANSWER_LIMIT)
    if size <= limit:  # else it would only be copied, to be told what is known
        memory.check(memory.of_text(answer["body"]))
        size = len(orjson.dumps(shaped(dict(answer), event)))
    return answer if size <= limit else failure(AnswerTooLarge(size, limit))
