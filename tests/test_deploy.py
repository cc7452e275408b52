"""The deployment rehearsed: packaged to S3, translated, made and read back, all in moto."""

from __future__ import annotations

import io
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import boto3
import pytest
from samtranslator.yaml_helper import yaml_parse

from aws import CREDENTIALS, S3Server
from conftest import ROOT
from emulator import BUILT, built_layout, python_of_lambda
from test_template import ResolvedTemplate

BUCKET = "artefacts-of-the-team"

pytestmark = pytest.mark.skipif(
    python_of_lambda() is None, reason="what is deployed is compiled by CPython 3.13"
)


@pytest.fixture(scope="module")
def cloud(digits: Path) -> Iterator[S3Server]:
    """A moto that has what `sam package` uploads."""
    assert digits.exists()
    built_layout(str(python_of_lambda()))
    with S3Server().running() as server:
        server.client.create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture(scope="module")
def packaged(cloud: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The template as `sam deploy` would hand it over."""
    written = tmp_path_factory.mktemp("packaged") / "template.yaml"
    line = ["sam", "package", "--template-file", str(BUILT / "template.yaml")]
    line += ["--s3-bucket", BUCKET, "--output-template-file", str(written), "--region", "us-east-1"]
    endpoints = {"AWS_ENDPOINT_URL": cloud.url, "SAM_CLI_TELEMETRY": "0", **CREDENTIALS}
    done = subprocess.run(
        line, cwd=ROOT, env=os.environ | endpoints, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return yaml_parse(written.read_text())


@pytest.fixture
def deployed(packaged: Any, monkeypatch: pytest.MonkeyPatch) -> ResolvedTemplate:
    return ResolvedTemplate(monkeypatch, packaged)


def client(cloud: S3Server, service: Literal["iam", "lambda"]) -> Any:
    return boto3.client(
        service,
        endpoint_url=cloud.url,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",  # noqa: S106 - moto asks for some
    )


def stored(cloud: S3Server, place: dict[str, str]) -> zipfile.ZipFile:
    """What was uploaded for a resource."""
    answer = cloud.client.get_object(Bucket=place["S3Bucket"], Key=place["S3Key"])
    return zipfile.ZipFile(io.BytesIO(answer["Body"].read()))


def layer_place(properties: dict[str, Any]) -> dict[str, str]:
    content: dict[str, str] = properties["Content"]
    return content


def test_what_is_uploaded_is_what_was_built(cloud: S3Server, deployed: ResolvedTemplate) -> None:
    function = deployed.of_type("AWS::Lambda::Function")["Function"]
    names = stored(cloud, function["Code"]).namelist()
    assert {"mlserverless/main.py", "fastapi/__init__.pyc"} <= set(names)
    layers = deployed.of_type("AWS::Lambda::LayerVersion")
    tops = {
        description["Description"]: {name.partition("/")[0] for name in found.namelist()}
        for description in layers.values()
        for found in [stored(cloud, layer_place(description))]
    }
    assert {
        "scikit-learn, scipy, numpy, joblib and pandas": {"python"},
        "The folders of models/": {"models"},
    } == tops


def test_the_function_is_made_from_it_and_read_back(
    cloud: S3Server, deployed: ResolvedTemplate
) -> None:
    iam, functions = client(cloud, "iam"), client(cloud, "lambda")
    role = deployed.of_type("AWS::IAM::Role")["Role"]
    arn = iam.create_role(
        RoleName="role", AssumeRolePolicyDocument=json.dumps(role["AssumeRolePolicyDocument"])
    )["Role"]["Arn"]
    made = [
        functions.publish_layer_version(
            LayerName=name,
            Content=layer_place(layer),
            CompatibleRuntimes=layer["CompatibleRuntimes"],
            CompatibleArchitectures=layer.get("CompatibleArchitectures", []),
        )["LayerVersionArn"]
        for name, layer in deployed.of_type("AWS::Lambda::LayerVersion").items()
    ]
    wanted = deployed.of_type("AWS::Lambda::Function")["Function"]
    # a number is handed over as text, as CloudFormation does it
    variables = wanted["Environment"]["Variables"]
    environment = {"Variables": {name: str(value) for name, value in variables.items()}}
    taken = ("Handler", "Runtime", "MemorySize", "Timeout", "Architectures", "TracingConfig")
    functions.create_function(
        FunctionName="function",
        Role=arn,
        Layers=made,
        Environment=environment,
        Code=wanted["Code"],
        **{key: wanted[key] for key in taken},
    )
    found = functions.get_function_configuration(FunctionName="function")
    assert {key: wanted[key] for key in taken} == {key: found[key] for key in taken}
    assert environment == found["Environment"]
    assert made == [layer["Arn"] for layer in found["Layers"]]
    assert "mlserverless.main.handler" == found["Handler"]
    iam.close()
    functions.close()
