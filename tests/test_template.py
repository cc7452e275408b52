"""The template: valid, and in step with the code that it deploys."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
from typing import Any

import pytest
from cfnlint.decode import cfn_yaml

from conftest import ROOT
from mlserverless.settings import Settings


@pytest.fixture(scope="module")
def template() -> Any:
    return cfn_yaml.load(str(ROOT / "template.yaml"))


def test_sam_and_cfn_lint_find_nothing_to_say() -> None:
    for command in (["sam", "validate"], ["cfn-lint", "template.yaml"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert 0 == done.returncode, done.stdout + done.stderr


def test_the_handler_is_the_one_that_the_code_has(template: Any) -> None:
    module, _, name = template["Resources"]["Function"]["Properties"]["Handler"].rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_variable_is_one_that_settings_or_boto3_reads(template: Any) -> None:
    known = {each.metadata["variable"] for each in dataclasses.fields(Settings)}
    function = template["Resources"]["Function"]["Properties"]
    assert known | {"AWS_ENDPOINT_URL_S3"} >= set(function["Environment"]["Variables"])


@pytest.mark.parametrize("section", ["Parameters", "Outputs"])
def test_every_parameter_and_output_is_described(template: Any, section: str) -> None:
    assert [] == [name for name, each in template[section].items() if not each.get("Description")]
