"""Answers are what the Open Inference Protocol's document says, and what our own says.

`conformance/open_inference_rest.json` holds the protocol's schemas, with source and date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from openapi_schema_validator import OAS30Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from doors import Door, http_api, through
from mlserverless import main
from mlserverless.app import create_app
from mlserverless.registry import Registry
from mlserverless.repository import open_repository
from mlserverless.settings import Settings

HERE = Path(__file__).parent / "conformance"
PROTOCOL = json.loads((HERE / "open_inference_rest.json").read_text())
TRANSCRIPTS = json.loads((HERE / "mlserver-transcripts.json").read_text())


@pytest.fixture(scope="module")
def door(models: Path) -> Door:
    return through(main.Door(Settings(model_repository_root=str(models))), http_api)


def complaints(schema: str, value: Any) -> list[str]:
    wrapped = {**PROTOCOL, "$ref": f"#/components/schemas/{schema}"}
    return [error.message for error in OAS30Validator(wrapped).iter_errors(value)]


def test_metadata_is_the_protocols(door: Door) -> None:
    assert [] == complaints("metadata_server_response", door("GET", "/v2").json)
    for state in door("POST", "/v2/repository/index").json:
        answer = door("GET", f"/v2/models/{state['name']}").json
        assert [] == complaints("metadata_model_response", answer)


ASKED = [
    each for each in TRANSCRIPTS if each["path"].endswith("/infer") and each.get("request_body")
]


@pytest.mark.parametrize("transcript", ASKED, ids=lambda each: f"{each['group']}: {each['name']}")
def test_answers_of_infer_are_the_protocols(door: Door, transcript: dict[str, Any]) -> None:
    answer = door(
        "POST", transcript["path"], transcript["request_body"].encode(), transcript["headers"]
    )
    schema = "inference_response" if answer.status == 200 else "inference_error_response"
    # a missing value is null here as it is in MLServer; the protocol's document has none
    text = answer.body.decode()
    missing = json.loads(text.replace("null", "0") if answer.status == 200 else text)
    assert [] == complaints(schema, missing)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]


def test_the_app_keeps_its_own_document(models: Path) -> None:
    server = Settings(model_repository_root=str(models), model_control_mode="explicit")
    app = create_app(Registry(open_repository(str(models)), server), server, threads=False)
    schema: Any = schemathesis.openapi.from_asgi("/v2/docs/dataplane.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 15

    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        def keeps(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        keeps()
