"""What MLServer 1.7.1 answered is what is answered here, through every door.

`conformance/mlserver-transcripts.json` is a recording. A transcript of verdict `match` is to
be met: status and JSON. One of verdict `improve` shows a fault of MLServer's: its
`better_status` holds, and for an answer of success `conformance/mended.json` says what.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compare import differences
from doors import Door, http_api, local_server, over_http, rest_api, through
from mlserverless import main
from mlserverless.settings import Settings

HERE = Path(__file__).parent / "conformance"
TRANSCRIPTS = json.loads((HERE / "mlserver-transcripts.json").read_text())
MENDED = json.loads((HERE / "mended.json").read_text())
VOLATILE = "id"


@pytest.fixture(scope="module", params=["http", "http-api", "rest-api"])
def door(request: pytest.FixtureRequest, models: Path) -> Iterator[Door]:
    """One process's worth of state for all transcripts, which are replayed in their order."""
    if request.param == "http":
        with local_server(models) as url:
            yield over_http(url)
    else:
        settings = Settings(model_repository_root=str(models), model_control_mode="explicit")
        event = http_api if request.param == "http-api" else rest_api
        yield through(main.Door(settings), event)


def body_of(transcript: dict[str, Any]) -> bytes:
    if "request_body_b64" in transcript:
        return base64.b64decode(transcript["request_body_b64"])
    recipe = transcript.get("request_recipe")
    if recipe is None:
        return (transcript.get("request_body") or "").encode()
    rows = recipe["rows"]
    data = [[5.1, 3.5, 1.4, 0.2]] * rows
    tensor = {"name": "x", "shape": [rows, 4], "datatype": "FP64", "data": data}
    raw = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
    return gzip.compress(raw) if recipe["gzip"] else raw


def expected_json(transcript: dict[str, Any]) -> Any:
    if transcript["verdict"] == "improve":
        return MENDED[f"{transcript['group']}: {transcript['name']}"]
    return transcript["mlserver"].get("json")


def compared(transcript: dict[str, Any], expected: Any, found: Any) -> list[str]:
    if expected is None:  # too long to be kept in the recording
        return []
    if isinstance(expected, list):
        # an index comes in no particular order, and we give reasons where MLServer has none
        return differences(states(expected), states(found))
    if transcript["method"] == "GET" and "platform" in expected:
        # what MLServer leaves empty is filled in from the estimator
        expected = {key: value for key, value in expected.items() if value not in ("", [])}
        found = {key: found[key] for key in expected}
    asked = json.loads(transcript.get("request_body") or "{}")
    if "model_name" in expected and asked.get("id") is None:
        assert found[VOLATILE], "an answer carries an id, the client's or one of its own"
        expected, found = ({**each, VOLATILE: ""} for each in (expected, found))
    return differences(expected, found)


def states(index: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bare = [{key: state[key] for key in state if key != "reason"} for state in index]
    return sorted(bare, key=json.dumps)


@pytest.mark.parametrize(
    "transcript", TRANSCRIPTS, ids=lambda each: f"{each['group']}: {each['name']}"
)
def test_the_recording_is_met_or_mended(door: Door, transcript: dict[str, Any]) -> None:
    improved = transcript["verdict"] == "improve"
    status = transcript["better_status"] if improved else transcript["mlserver"]["status"]
    if transcript["name"] == "infer after load":  # the load itself is not in the recording
        assert door("POST", "/v2/repository/models/iris-rf/load").status == 200
    answer = door(
        transcript["method"], transcript["path"], body_of(transcript), transcript["headers"]
    )
    assert status == answer.status, answer.body[:500]
    if status >= 400:
        if transcript["method"] != "HEAD":
            assert "application/json" == answer.headers["content-type"]
            assert ["error"] == list(answer.json)
            assert answer.json["error"].isprintable()
        return
    if not answer.body:
        assert not transcript["mlserver"].get("json")
        return
    assert "ce-id" not in answer.headers
    raw = answer.body
    if answer.headers.get("content-encoding") == "gzip":
        raw = gzip.decompress(raw)
    if "text/html" in answer.headers["content-type"]:
        return
    assert [] == compared(transcript, expected_json(transcript), json.loads(raw))
