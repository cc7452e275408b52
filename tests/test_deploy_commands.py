"""Documented commands: parameters that the template has, options that SAM and the AWS API have."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

import botocore.session
import pytest
from botocore import xform_name
from samcli.commands.delete.command import cli as sam_delete
from samcli.commands.deploy.command import cli as sam_deploy
from samtranslator.yaml_helper import yaml_parse

from conftest import ROOT
from test_template import ResolvedTemplate

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
WORKFLOW = ROOT / "docs" / "github" / "deploy.yml"
ROLES = ROOT / "docs" / "github" / "roles.yaml"
# the AWS CLI's own commands, which are not operations of the API
CUSTOM = {("s3", "sync"), ("cloudformation", "deploy")}
GLOBAL_OPTIONS = {"query", "output"}


def documented(program: str) -> list[list[str]]:
    """Return the command lines of a program in code blocks, code spans and the workflow."""
    text = "\n".join(path.read_text() for path in [*PAGES, WORKFLOW])
    text = re.sub(r"\\\n\s*", "", text)  # continued lines
    lines = re.findall(
        rf"(?:^ *(?:- run: )?|`)(?:\S+/bin/)?({program} [^`\n]+)", text, re.MULTILINE
    )
    return [shlex.split(line) for line in lines]


def options(arguments: list[str]) -> set[str]:
    return {each[2:] for each in arguments if each.startswith("--")}


def overrides(arguments: list[str]) -> dict[str, str]:
    """Return the parameters after --parameter-overrides."""
    if "--parameter-overrides" not in arguments:
        return {}
    start = arguments.index("--parameter-overrides") + 1
    return dict(each.split("=", 1) for each in arguments[start:] if "=" in each)


def check_values(template: Any, parameters: dict[str, str]) -> None:
    """Fail for a name or value that CloudFormation would refuse."""
    for name, value in parameters.items():
        parameter = template["Parameters"][name]
        assert re.fullmatch(parameter.get("AllowedPattern", ".*"), value), name
        assert value in map(str, parameter.get("AllowedValues", [value])), name


DEPLOYMENTS = [arguments for arguments in documented("sam") if arguments[1] == "deploy"]


def test_the_three_usual_deployments_are_documented() -> None:
    names = [set(overrides(arguments)) for arguments in DEPLOYMENTS]
    s3 = {"ModelBucket", "ModelPrefix", "ModelControlMode"}
    for expected in (set(), s3, s3 | {"Auth", "JwtIssuer", "JwtAudience"}):
        assert expected in names


@pytest.mark.parametrize("arguments", DEPLOYMENTS, ids=" ".join)
def test_a_documented_deployment_is_one_that_sam_and_the_template_accept(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    known = {option.lstrip("-") for each in sam_deploy.params for option in each.opts}
    known |= {option.lstrip("-") for each in sam_deploy.params for option in each.secondary_opts}
    assert options(arguments) <= known
    parameters = overrides(arguments)
    if parameters == {"NAME": "value"}:
        return  # a placeholder
    check_values(yaml_parse((ROOT / "template.yaml").read_text()), parameters)
    assert [] == ResolvedTemplate(monkeypatch, **parameters).failed_rules()


def test_every_other_sam_command_of_the_pages_exists() -> None:
    assert sam_delete.name == "delete"
    used = {arguments[1] for arguments in documented("sam")}
    assert used <= {"build", "delete", "deploy", "local", "validate"}


@pytest.mark.parametrize("arguments", documented("aws"), ids=" ".join)
def test_a_documented_aws_command_is_an_operation_with_these_options(arguments: list[str]) -> None:
    _, service, verb, *rest = arguments
    if (service, verb) in CUSTOM:
        return
    name = {"deploy": "codedeploy"}.get(service, service)
    model = botocore.session.get_session().get_service_model(name)
    by_verb = {xform_name(each, "-"): each for each in model.operation_names}
    shape = model.operation_model(by_verb[verb]).input_shape
    assert shape is not None
    members = {xform_name(member, "-") for member in shape.members}
    assert options(rest) - GLOBAL_OPTIONS <= members
    assert {xform_name(each, "-") for each in shape.required_members} <= options(rest)


def test_the_roles_of_the_workflow_are_created_by_the_documented_command() -> None:
    done = subprocess.run(
        ["cfn-lint", str(ROLES)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout
    roles = yaml_parse(ROLES.read_text())
    (arguments,) = [each for each in documented("aws") if each[1:3] == ["cloudformation", "deploy"]]
    assert str(ROLES.relative_to(ROOT)) in arguments
    parameters = overrides(arguments)
    needed = {name for name, each in roles["Parameters"].items() if "Default" not in each}
    assert needed == set(parameters)
    check_values(roles, parameters)
    # else the roles could change themselves, since they may change those of the stack
    stack = arguments[arguments.index("--stack-name") + 1]
    assert not stack.startswith(roles["Parameters"]["StackName"]["Default"])


def test_only_this_repository_and_environment_may_assume_the_workflows_role() -> None:
    roles = yaml_parse(ROLES.read_text())["Resources"]
    (trust,) = roles["DeployRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    claims = trust["Condition"].pop("StringEquals")
    assert {} == trust["Condition"]
    prefix = "token.actions.githubusercontent.com:"
    assert {
        "aud": "sts.amazonaws.com",
        "sub": {"Ref": "Subject"},
        "repository_id": {"Ref": "RepositoryId"},
    } == {name.removeprefix(prefix): value for name, value in claims.items()}
    (policy,) = roles["DeployRole"]["Properties"]["Policies"]
    actions = [
        (action, str(statement["Resource"]))
        for statement in policy["PolicyDocument"]["Statement"]
        for action in (
            statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        )
    ]
    assert ["cloudformation:GetTemplateSummary"] == [name for name, to in actions if to == "*"]
    assert [str({"Fn::GetAtt": ["ExecutionRole", "Arn"]})] == [
        to for name, to in actions if name == "iam:PassRole"
    ]
    pattern = yaml_parse(ROLES.read_text())["Parameters"]["Subject"]["AllowedPattern"]
    for subject, allowed in {
        "repo:o/r:environment:production": True,
        "repo:o@1/r@2:environment:production": True,
        "repo:o/r:*": False,
        "repo:o/*:environment:production": False,
        "repo:o/r:ref:refs/heads/main": False,
    }.items():
        assert allowed == bool(re.fullmatch(pattern, subject)), subject
