"""The template: valid, in step with the code, and granting no more than a written list."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import re
import subprocess
from typing import Any

import pytest
from samcli.lib.providers.api_provider import ApiProvider
from samcli.lib.providers.sam_stack_provider import SamLocalStackProvider
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from conftest import ROOT
from mlserverless.journal import METRICS, NAMESPACE
from mlserverless.settings import Settings

NOTHING = {"Ref": "AWS::NoValue"}


@pytest.fixture(scope="module")
def template() -> Any:
    return yaml_parse((ROOT / "template.yaml").read_text())


class NoManagedPolicies:
    """The template names none; the translator asks all the same."""

    def load(self) -> dict[str, str]:
        return {}


class Deployed:
    """What CloudFormation would make of the template with some parameters."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, packaged: Any = None, **parameters: Any
    ) -> None:
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        source = copy.deepcopy(packaged) or yaml_parse((ROOT / "template.yaml").read_text())
        for resource in source["Resources"].values():
            for place in {"CodeUri", "ContentUri"} & resource["Properties"].keys():
                if packaged is None:
                    resource["Properties"][place] = "s3://bucket/key"
        translated = transform(source, {}, NoManagedPolicies())
        defaults = {name: each["Default"] for name, each in translated["Parameters"].items()}
        self.parameters = defaults | parameters
        self.conditions = translated["Conditions"]
        self.rules = translated["Rules"]
        self.resources = {
            name: self.resolved(each)
            for name, each in translated["Resources"].items()
            if "Condition" not in each or self.holds(self.conditions[each["Condition"]])
        }

    def holds(self, test: Any) -> bool:
        """Whether a condition function is true."""
        ((name, value),) = test.items()
        if name == "Fn::Equals":
            left, right = (self.resolved(each) for each in value)
            return str(left) == str(right)
        assert name == "Fn::Not"
        return not self.holds(value[0])

    def resolved(self, value: Any) -> Any:
        """The value with parameters filled in and conditions decided."""
        if isinstance(value, list):
            kept = [self.resolved(each) for each in value]
            return [each for each in kept if each != NOTHING]
        if not isinstance(value, dict):
            return value
        if value.keys() == {"Ref"}:
            return self.parameters.get(value["Ref"], value)
        if value.keys() == {"Fn::If"}:
            name, yes, no = value["Fn::If"]
            return self.resolved(yes if self.holds(self.conditions[name]) else no)
        fields = {key: self.resolved(each) for key, each in value.items()}
        return {key: each for key, each in fields.items() if each != NOTHING}

    def complaints(self) -> list[str]:
        """What the rules say before anything is made."""
        return [
            assertion["AssertDescription"]
            for rule in self.rules.values()
            if self.holds(rule["RuleCondition"])
            for assertion in rule["Assertions"]
            if not self.holds(assertion["Assert"])
        ]

    def of_type(self, kind: str) -> dict[str, Any]:
        return {
            name: each["Properties"]
            for name, each in self.resources.items()
            if each["Type"] == kind
        }

    @property
    def grants(self) -> set[tuple[str, str]]:
        """Each action that the function's role allows, with its resource."""
        policies = self.of_type("AWS::IAM::Role")["Role"]["Policies"]
        found = set()
        for policy in policies:
            for statement in policy["PolicyDocument"]["Statement"]:
                actions, resource = statement["Action"], statement["Resource"]
                if isinstance(resource, dict):
                    resource = str(next(iter(resource.values())))
                for action in [actions] if isinstance(actions, str) else actions:
                    found.add((action, resource))
        return found


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


def test_every_parameter_is_in_a_group_of_the_console(template: Any) -> None:
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    grouped = [name for group in groups for name in group["Parameters"]]
    assert sorted(template["Parameters"]) == sorted(grouped)


ALWAYS = {
    ("logs:CreateLogStream", "['FunctionLog', 'Arn']"),
    ("logs:PutLogEvents", "['FunctionLog', 'Arn']"),
    # these two know no resources
    ("xray:PutTraceSegments", "*"),
    ("xray:PutTelemetryRecords", "*"),
}
OF_S3 = {
    ("s3:GetObject", "arn:${AWS::Partition}:s3:::${ModelBucket}/${ModelPrefix}/*"),
    ("s3:ListBucket", "arn:${AWS::Partition}:s3:::${ModelBucket}"),
}
KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234"


@pytest.mark.parametrize(
    ("parameters", "grants"),
    [
        ({}, ALWAYS),
        ({"ModelBucket": "b"}, ALWAYS | OF_S3),
        (
            {"ModelBucket": "b", "ModelKeyArn": KEY},
            ALWAYS | OF_S3 | {("kms:Decrypt", KEY)},
        ),
    ],
)
def test_the_function_may_do_what_is_written_here_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str], grants: set[tuple[str, str]]
) -> None:
    deployed = Deployed(monkeypatch, **parameters)
    assert grants == deployed.grants
    roles = deployed.of_type("AWS::IAM::Role")
    assert {"Role", "CodeDeployServiceRole"} == set(roles)
    assert "ManagedPolicyArns" not in roles["Role"]


@pytest.mark.parametrize(
    ("parameter", "allowed", "refused"),
    [
        ("ModelBucket", ["", "team-models.v2"], ["*", "team?models", "a/b", "${aws:userid}", "A"]),
        ("ModelPrefix", ["models", "a/b c/ü"], ["", "/a", "a/", "*", "a*b", "a?", "${aws:userid}"]),
        (
            "ModelKeyArn",
            ["", KEY],
            ["*", "arn:aws:kms:*:123456789012:key/1234", KEY + "?", "key/1"],
        ),
    ],
)
def test_no_parameter_widens_what_the_function_may_do(
    template: Any, parameter: str, allowed: list[str], refused: list[str]
) -> None:
    pattern = re.compile(template["Parameters"][parameter]["AllowedPattern"])
    assert allowed == [each for each in allowed + refused if pattern.fullmatch(each)]


@pytest.mark.parametrize(
    ("parameters", "security"),
    [
        ({}, [{"iam": []}]),
        ({"Auth": "AWS_IAM"}, [{"iam": []}]),
        ({"Auth": "JWT"}, [{"jwt": []}]),
        ({"Auth": "NONE"}, []),
    ],
)
def test_the_only_route_asks_who_is_there_unless_none_is_typed_out(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str], security: Any
) -> None:
    body = Deployed(monkeypatch, **parameters).of_type("AWS::ApiGatewayV2::Api")["Api"]["Body"]
    ((path, route),) = body["paths"].items()
    ((_, method),) = route.items()
    assert ("$default", security) == (path, method.get("security"))
    schemes = body["components"]["securitySchemes"]
    assert (parameters.get("Auth") == "JWT") == ("jwt" in schemes)
    assert "awsSigv4" == schemes["iam"]["x-amazon-apigateway-authtype"]


@pytest.mark.parametrize(
    ("parameters", "complaints"),
    [
        ({}, []),
        ({"Auth": "JWT"}, ["Auth=JWT needs JwtIssuer", "Auth=JWT needs JwtAudience"]),
        ({"Auth": "JWT", "JwtIssuer": "https://i", "JwtAudience": "a"}, []),
        ({"Warmth": "provisioned"}, ["Warmth=provisioned needs WarmCount, 1 or more"]),
        ({"Warmth": "provisioned", "WarmCount": 2}, []),
        ({"ModelKeyArn": KEY}, ["ModelKeyArn is of no use without ModelBucket"]),
        ({"ModelKeyArn": KEY, "ModelBucket": "b"}, []),
    ],
)
def test_a_bad_combination_fails_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], complaints: list[str]
) -> None:
    assert complaints == Deployed(monkeypatch, **parameters).complaints()


@pytest.mark.parametrize(
    ("warmth", "snapstart", "provisioned", "preload"),
    [
        ("none", None, None, "false"),
        ("snapstart", {"ApplyOn": "PublishedVersions"}, None, "true"),
        ("provisioned", None, {"ProvisionedConcurrentExecutions": 3}, "true"),
    ],
)
def test_warmth_is_one_parameter_and_work_at_init_goes_with_it(
    monkeypatch: pytest.MonkeyPatch, warmth: str, snapstart: Any, provisioned: Any, preload: str
) -> None:
    deployed = Deployed(monkeypatch, Warmth=warmth, WarmCount=3)
    function = deployed.of_type("AWS::Lambda::Function")["Function"]
    alias = deployed.of_type("AWS::Lambda::Alias")["FunctionAliaslive"]
    assert (snapstart, provisioned) == (
        function.get("SnapStart"),
        alias.get("ProvisionedConcurrencyConfig"),
    )
    targets = deployed.of_type("AWS::ApplicationAutoScaling::ScalableTarget")
    assert (["WarmTarget"] if provisioned else []) == list(targets)
    variables = function["Environment"]["Variables"]
    assert preload == variables["MLSERVER_LOAD_MODELS_AT_STARTUP"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SAM's, of what it imports itself
def test_sam_local_finds_the_route_and_takes_binary_bodies() -> None:
    stacks, _ = SamLocalStackProvider.get_stacks(str(ROOT / "template.yaml"))
    api = ApiProvider(stacks).api
    assert ["*/*"] == api.binary_media_types
    assert [("Function", "$default", "2.0")] == [
        (route.function_name, route.path, route.payload_format_version) for route in api.routes
    ]


def test_a_poll_is_as_rare_as_its_owner_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = Deployed(monkeypatch, ModelControlMode="poll", PollSeconds=300)
    function = deployed.of_type("AWS::Lambda::Function")["Function"]
    assert 300 == function["Environment"]["Variables"]["MLSERVERLESS_POLL_SECONDS"]


def test_the_models_come_from_the_layer_or_from_one_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def root(**parameters: str) -> Any:
        function = Deployed(monkeypatch, **parameters).of_type("AWS::Lambda::Function")["Function"]
        return function["Environment"]["Variables"]["MLSERVER_MODEL_REPOSITORY_ROOT"]

    assert "/opt/models" == root()
    assert {"Fn::Sub": "s3://${ModelBucket}/${ModelPrefix}"} == root(ModelBucket="b")


def test_logs_are_owned_and_end_some_day(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = Deployed(monkeypatch, LogRetentionDays=7)
    groups = deployed.of_type("AWS::Logs::LogGroup")
    assert {"FunctionLog": 7, "AccessLog": 7} == {
        name: each["RetentionInDays"] for name, each in groups.items()
    }
    function = deployed.of_type("AWS::Lambda::Function")["Function"]
    assert {"Ref": "FunctionLog"} == function["LoggingConfig"]["LogGroup"]
    assert "JSON" == function["LoggingConfig"]["LogFormat"]
    stage = deployed.of_type("AWS::ApiGatewayV2::Stage")["ApiApiGatewayDefaultStage"]
    assert {"Fn::GetAtt": ["AccessLog", "Arn"]} == stage["AccessLogSettings"]["DestinationArn"]


def test_a_new_version_takes_over_by_the_alias_and_alarms_take_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed = Deployed(monkeypatch, Deployment="Canary10Percent5Minutes", AlarmTopicArn="arn:t")
    (group,) = deployed.of_type("AWS::CodeDeploy::DeploymentGroup").values()
    alarms = deployed.of_type("AWS::CloudWatch::Alarm")
    watched = {each["Name"]["Ref"] for each in group["AlarmConfiguration"]["Alarms"]}
    assert set(alarms) == watched
    assert {"DEPLOYMENT_STOP_ON_ALARM"} <= set(group["AutoRollbackConfiguration"]["Events"])
    assert "CodeDeployDefault.Lambda${ConfigName}" in str(group["DeploymentConfigName"])
    assert all(alarm["AlarmActions"] == ["arn:t"] for alarm in alarms.values())
    uri = deployed.of_type("AWS::ApiGatewayV2::Api")["Api"]["Body"]["paths"]["$default"]
    integration = uri["x-amazon-apigateway-any-method"]["x-amazon-apigateway-integration"]
    assert "${Function.Arn}:live" in integration["uri"]["Fn::Sub"]
    permission = deployed.of_type("AWS::Lambda::Permission")["ApiMayAsk"]
    assert {"Ref": "FunctionAliaslive"} == permission["FunctionName"]


def test_cors_is_off_unless_an_origin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def cors(**parameters: str) -> Any:
        api = Deployed(monkeypatch, **parameters).of_type("AWS::ApiGatewayV2::Api")["Api"]
        return api["Body"].get("x-amazon-apigateway-cors")

    assert cors() is None
    assert ["https://page"] == cors(CorsOrigin="https://page")["allowOrigins"]


VALUES: dict[str, list[Any]] = {
    "Auth": ["AWS_IAM", "JWT", "NONE"],
    "ModelBucket": ["", "b"],
    "ModelKeyArn": ["", KEY],
    "Warmth": ["none", "snapstart", "provisioned"],
    "CorsOrigin": ["", "https://page"],
    "AlarmTopicArn": ["", "arn:t"],
    "ReservedConcurrency": [-1, 5],
    "Architecture": ["x86_64", "arm64"],
    "Deployment": ["AllAtOnce", "Canary10Percent5Minutes", "Linear10PercentEvery1Minute"],
}


@pytest.mark.parametrize("auth", VALUES["Auth"])
@pytest.mark.parametrize("bucket", VALUES["ModelBucket"])
@pytest.mark.parametrize("warmth", VALUES["Warmth"])
def test_whatever_is_chosen_no_grant_is_wide_and_no_route_open_by_accident(
    monkeypatch: pytest.MonkeyPatch, auth: str, bucket: str, warmth: str
) -> None:
    chosen = {"Auth": auth, "ModelBucket": bucket, "Warmth": warmth, "WarmCount": 2}
    more = [(name, value) for name, values in VALUES.items() for value in values]
    for name, value in more:
        if name in chosen:
            continue
        deployed = Deployed(monkeypatch, **chosen | {name: value})
        assert {("xray:PutTraceSegments", "*"), ("xray:PutTelemetryRecords", "*")} == {
            grant for grant in deployed.grants if "*" in grant[0] or grant[1] == "*"
        }
        assert (OF_S3 <= deployed.grants) == bool(bucket)
        route = deployed.of_type("AWS::ApiGatewayV2::Api")["Api"]["Body"]["paths"]["$default"]
        method = route["x-amazon-apigateway-any-method"]
        assert (auth != "NONE") == bool(method.get("security"))


def test_checkov_is_told_in_words_why_a_finding_is_none(template: Any) -> None:
    skips = [
        skip
        for resource in template["Resources"].values()
        for skip in resource.get("Metadata", {}).get("checkov", {}).get("skip", [])
    ]
    assert [] == [skip["id"] for skip in skips if len(skip["comment"].split()) < 8]


def test_every_metric_that_is_watched_is_one_that_the_function_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed = Deployed(monkeypatch)
    name = {"Ref": "Function"}
    watched = {
        alarm["MetricName"]
        for alarm in deployed.of_type("AWS::CloudWatch::Alarm").values()
        if alarm["Namespace"] == NAMESPACE
        and alarm["Dimensions"] == [{"Name": "function", "Value": name}]
    }
    (dashboard,) = deployed.of_type("AWS::CloudWatch::Dashboard").values()
    body = dashboard["DashboardBody"]["Fn::Sub"]
    shown = set(re.findall(rf'\["{NAMESPACE}", "(\w+)", "function", "\$\{{Function\}}"', body))
    assert {"load_failures"} == watched
    assert set(METRICS) == shown
    fields = {"message", "rows", "predict_ms", "model", "version", "status"}
    query = re.search(r"filter message = 'request' .*", body)
    assert query is not None
    assert all(field in query[0] for field in fields)


def test_the_dashboard_is_what_cloudwatch_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    (dashboard,) = Deployed(monkeypatch).of_type("AWS::CloudWatch::Dashboard").values()
    body = json.loads(dashboard["DashboardBody"]["Fn::Sub"])
    assert len(body["widgets"]) > 5
    for widget in body["widgets"]:
        assert {"type", "width", "properties"} == set(widget)
