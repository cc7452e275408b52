"""Lambda's events, whatever lies in them, become what Mangum can read, or a clean refusal."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from mlserverless import events
from mlserverless.errors import BadRequest


def v2(path: str = "/v2", **changes: Any) -> dict[str, Any]:
    http = {"method": "GET", "path": path}
    return {"version": "2.0", "requestContext": {"http": http, "stage": "prod"}, **changes}


def rest(path: Any = "/v2", **changes: Any) -> dict[str, Any]:
    return {"httpMethod": "GET", "path": path, "requestContext": {"stage": "prod"}, **changes}


def path_of(event: dict[str, Any]) -> str:
    normal = events.normal(event)
    assert normal is not None
    path: str = normal.get("path") or normal["requestContext"]["http"]["path"]
    return path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/models/m/infer", "/v2/models/m/infer"),
        ("/prod/v2/models/m/infer", "/v2/models/m/infer"),
        ("/base/path/v2/models/m", "/v2/models/m"),
        ("/production/v20", "/production/v20"),
        ("/prodv2/v2x", "/prodv2/v2x"),
        ("/v2/models/v2/infer", "/v2/models/v2/infer"),
        ("", "/"),
        ("/", "/"),
        ("no-slash", "no-slash"),
    ],
)
def test_a_stage_or_base_path_goes_on_a_segment_border(path: str, expected: str) -> None:
    assert [expected] * 2 == [path_of(v2(path)), path_of(rest(path))]


def test_a_stage_called_v2_is_still_a_stage() -> None:
    event = rest("/v2/v2/health/live", requestContext={"stage": "v2"})
    assert "/v2/health/live" == path_of(event)


@pytest.mark.parametrize(
    "event",
    [
        None, [], {}, "text", 7,
        {"requestContext": None},
        {"requestContext": {}},
        {"requestContext": {"http": {"method": 7}}},
        {"requestContext": {}, "httpMethod": ""},
        {"requestContext": {"http": {"method": "GET", "path": 7}}},
        rest(7),
        {"source": "aws.events", "detail-type": "Scheduled Event"},
    ],
)  # fmt: skip
def test_what_is_no_http_request_is_refused_in_the_same_form(event: Any) -> None:
    assert events.normal(event) is None
    answer = events.refusal(event)
    assert (400, "application/json") == (answer["statusCode"], answer["headers"]["content-type"])
    assert ["error"] == list(orjson.loads(answer["body"]))


def test_a_batch_gets_every_record_back_as_failed() -> None:
    batch = {
        "Records": [
            {"messageId": "sqs-1"},
            {"kinesis": {"sequenceNumber": "49590338"}},
            {"dynamodb": {"SequenceNumber": "111"}},
            {},
            None,
            {"messageId": "é"},
            {"messageId": "x" * 201},
        ]
    }
    assert ["sqs-1", "49590338", "111", "", "", "", ""] == [
        each["itemIdentifier"] for each in events.refusal(batch)["batchItemFailures"]
    ]


def test_a_batch_beyond_all_batches_is_failed_as_a_whole() -> None:
    """An answer of its own size would not be carried."""
    batch = {"Records": [{"messageId": "x" * 200}] * 50_000}
    assert [{"itemIdentifier": ""}] == events.refusal(batch)["batchItemFailures"]


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        (None, {}),
        ([], {}),
        ({"Host": "[::1]:80"}, {}),
        ({"host": "a.b:80"}, {"host": "a.b:80"}),
        ({"host": "a:b:c"}, {}),
        ({"X-Forwarded-Port": "443, 80"}, {}),
        ({"x": None, "y": 1, "z": "kept"}, {"z": "kept"}),
        ({"é": "x", "a": "line\nbreak"}, {}),
    ],
)
def test_headers_that_mangum_would_choke_on_are_left_behind(headers: Any, kept: Any) -> None:
    normal = events.normal(v2(headers=headers))
    assert normal is not None
    assert kept == normal["headers"]


def test_headers_of_many_values_are_checked_each() -> None:
    once = {"Host": ["a.b", "a.b"], "X-Forwarded-Port": ["443", "443"]}
    many = {"a": ["1", None, "2"], "b": "text", "c": [None], **once}
    normal = events.normal(rest(multiValueHeaders=many))
    assert normal is not None
    assert {"a": ["1", "2"]} == normal["multiValueHeaders"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, b""),
        ({"body": None}, b""),
        ({"body": "€"}, "€".encode()),
        ({"body": base64.b64encode(b"\xff").decode(), "isBase64Encoded": True}, b"\xff"),
    ],
)
def test_a_body_is_bytes(changes: dict[str, Any], expected: bytes) -> None:
    normal = events.normal(v2(**changes))
    assert normal is not None
    assert expected == normal["body"]


@pytest.mark.parametrize(
    "changes",
    [
        {"body": 7},
        {"body": {}, "isBase64Encoded": True} | {"body": ["x"]},
        {"body": "not base64!", "isBase64Encoded": True},
        {"body": "é", "isBase64Encoded": True},
        {"body": "\ud800"},
    ],
)
def test_a_body_that_cannot_be_decoded_is_the_senders_error(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="the event's body"):
        events.normal(v2(**changes))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("x" * 100, 200),
        ("x" * (events.ANSWER_LIMIT - 200), 200),
        ("x" * events.ANSWER_LIMIT, 413),
        ('"' * (events.ANSWER_LIMIT // 2), 413),
    ],
)
def test_an_answer_is_measured_as_it_leaves(body: str, status: int) -> None:
    answer = {"statusCode": 200, "headers": {}, "body": body, "isBase64Encoded": False}
    carried = events.carried(answer)
    assert status == carried["statusCode"]
    if status == 413:
        assert "binary_data_output" in carried["body"]
