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
        ("/v2/", "/v2/"),
        ("/prod/v2", "/v2"),
        ("/v2/v2", "/v2"),
        ("/v2/v2/", "/v2/"),
        ("/fraud/v2/v2", "/v2"),
        ("/v2/v2/v2/docs", "/v2/docs"),
        ("/v2/v2/models/m/ready", "/v2/models/m/ready"),
        ("/v2/v2/health/live/", "/v2/health/live/"),
        ("/v2/v2/repository/index", "/v2/repository/index"),
        ("/fraud/v2/v2/models/m/infer", "/v2/models/m/infer"),
        ("/v2/fraud/v2/models/v2/infer", "/v2/models/v2/infer"),
        ("/models/v2/v2/models/m", "/v2/models/m"),
        ("/v2/v2/models/v2/versions/v2/ready", "/v2/models/v2/versions/v2/ready"),
        ("/v2/models/v2", "/v2/models/v2"),
        ("/v2/models/v2/", "/v2/models/v2/"),
        ("/v2/models/v2/infer", "/v2/models/v2/infer"),
        ("/v2/models/m/versions/v2", "/v2/models/m/versions/v2"),
        ("/v2/models/m/versions/v2/infer", "/v2/models/m/versions/v2/infer"),
        ("/v2/models/v2/versions/v2/ready", "/v2/models/v2/versions/v2/ready"),
        ("/v2/repository/models/v2/load", "/v2/repository/models/v2/load"),
        ("/v2/models/m/v2", "/v2/models/m/v2"),
        ("/prod/v2/models/a%2Fv2/infer", "/v2/models/a%2Fv2/infer"),
        ("/prod/v2/nonsense", "/v2/nonsense"),
        ("/v2/modelsx/v2/models", "/v2/models"),
        ("", "/"),
        ("/", "/"),
        ("no-slash", "no-slash"),
    ],
)
def test_a_stage_or_base_path_goes_on_a_segment_border(path: str, expected: str) -> None:
    assert [expected] * 2 == [path_of(v2(path)), path_of(rest(path))]


@pytest.mark.parametrize("base", ["", "/v2", "/fraud", "/fraud/v2", "/v2/fraud", "/v2/v2"])
@pytest.mark.parametrize("name", ["v2", "m", "models", "health"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_every_route_is_found_behind_every_base_path(base: str, name: str, slash: str) -> None:
    model = f"/v2/models/{name}"
    for route in (
        "/v2", "/v2/docs", "/v2/docs/dataplane.json", "/v2/health/live", "/v2/repository/index",
        f"/v2/repository/models/{name}/load", model, f"{model}/ready", f"{model}/infer",
        f"{model}/docs/dataplane.json", f"{model}/versions/v2", f"{model}/versions/{name}/infer",
    ):  # fmt: skip
        assert [route + slash] * 2 == [path_of(event(base + route + slash)) for event in (v2, rest)]


def test_a_stage_called_v2_is_still_a_stage() -> None:
    for path in ("/v2/v2/health/live", "/v2/health/live"):
        event = rest(path, requestContext={"stage": "v2"})
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


NO_METHOD: dict[str, dict[str, Any]] = {
    "alb": {"requestContext": {"elb": {}}, "path": "/v2", "headers": {}},
    "alb, many values": {"requestContext": {"elb": {}}, "path": "/v2", "multiValueHeaders": {}},
    "rest": {"requestContext": {"stage": "prod"}, "path": "/v2", "multiValueHeaders": {}},
    "http": {"version": "2.0", "requestContext": {"http": {"path": "/v2"}}},
}


@pytest.mark.parametrize("name", NO_METHOD)
def test_an_error_has_the_format_of_its_sender_also_without_a_method(name: str) -> None:
    event = NO_METHOD[name]
    assert events.normal(event) is None
    response = events.shaped(events.refusal(event), event)
    headers = "multiValueHeaders" if name == "alb, many values" else "headers"
    assert {"statusCode", headers, "body", "isBase64Encoded"} == response.keys()
    expected: Any = ["application/json"] if headers == "multiValueHeaders" else "application/json"
    assert expected == response[headers]["content-type"]


def alb(**changes: Any) -> dict[str, Any]:
    return {"httpMethod": "GET", "path": "/v2", "requestContext": {"elb": {}}, **changes}


SENDERS: dict[str, tuple[dict[str, Any], int]] = {
    "HTTP API": (v2(), 6_291_456),
    "REST API": (rest(), 6_291_456),
    "ALB": (alb(headers={}), 1_048_576),
    "ALB with multi-value headers": (alb(multiValueHeaders={"accept": ["*/*"]}), 1_048_576),
}


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("character", ["x", '"', "\u0001"])
def test_a_response_is_measured_as_it_leaves(sender: str, character: str) -> None:
    """To the byte: as JSON, with its headers in the format of its sender."""
    event, limit = SENDERS[sender]
    normal = events.normal(event)
    assert normal is not None

    def response(body: str) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        return {"statusCode": 200, "headers": headers, "body": body, "isBase64Encoded": False}

    def size(body: str) -> int:
        return len(orjson.dumps(events.shaped(response(body), event)))

    each = size(character) - size("")
    fits = (limit - size("")) // each
    largest = character * fits + "x" * (limit - size(character * fits))
    assert limit == size(largest)
    assert 200 == events.carried(response(largest), normal)["statusCode"]
    refused = events.carried(response(largest + "x"), normal)
    assert 413 == refused["statusCode"]
    assert f"{limit + 1} bytes and Lambda carries {limit}" in refused["body"]
    assert "binary_data_output" in refused["body"]
    assert 413 == events.carried(response("x" * 2 * limit), normal)["statusCode"]
    assert 200 == events.carried(response("x" * 100), normal)["statusCode"]
