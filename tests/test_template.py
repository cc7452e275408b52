"""The template: valid, in step with the code, and granting no more than a written list."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import functools
import importlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from samcli.lib.providers.api_provider import ApiProvider
from samcli.lib.providers.sam_stack_provider import SamLocalStackProvider
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from conftest import ROOT
from mlserverless.journal import METRICS, NAMESPACE
from mlserverless.settings import Settings

NO_VALUE = {"Ref": "AWS::NoValue"}


@pytest.fixture(scope="module")
def template() -> Any:
    return copy.deepcopy(parse_template())


@functools.cache
def parse_template() -> Any:
    """Return the template, parsed once: parsing takes longer than translating."""
    return yaml_parse((ROOT / "template.yaml").read_text())


class NoManagedPolicies:
    """Managed policies by name; the template uses none of SAM's."""

    def load(self) -> dict[str, str]:
        return {}


Change = Callable[[Any], None]


class ResolvedTemplate:
    """The template as CloudFormation sees it after the SAM transform, for some parameters.

    `packaged` is a template whose code is uploaded already; `change` edits the source before it
    is translated. References to resources and pseudo parameters stay as they are.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        packaged: Any = None,
        change: Change | None = None,
        /,
        **parameters: Any,
    ) -> None:
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        source = copy.deepcopy(packaged or parse_template())
        for resource in source["Resources"].values():
            for key in {"CodeUri", "ContentUri"} & resource["Properties"].keys():
                if packaged is None:
                    resource["Properties"][key] = "s3://bucket/key"
        if change is not None:
            change(source)
        unknown = parameters.keys() - source["Parameters"].keys()
        assert not unknown, f"not parameters of the template: {unknown}"
        given = {name: str(value) for name, value in parameters.items()}
        translated = transform(source, given, NoManagedPolicies())
        defaults = {name: each["Default"] for name, each in translated["Parameters"].items()}
        self.parameters = defaults | parameters
        self.mappings = translated["Mappings"]
        self.conditions = translated["Conditions"]
        self.rules = translated["Rules"]
        self.resources = {
            name: self.resolve(each)
            for name, each in translated["Resources"].items()
            if "Condition" not in each or self.evaluate_condition(each["Condition"])
        }
        self.outputs = self.resolve(translated["Outputs"])

    def evaluate_condition(self, condition: Any) -> bool:
        """Return the value of a condition, by name or as a function."""
        if isinstance(condition, str):
            return self.evaluate_condition(self.conditions[condition])
        ((name, value),) = condition.items()
        if name == "Fn::Or":
            return any(self.evaluate_condition(each) for each in value)
        if name == "Fn::Not":
            return not self.evaluate_condition(value[0])
        left, right = (self.resolve(each) for each in value)
        if name == "Fn::Contains":
            return str(right) in left  # CloudFormation compares strings
        assert name == "Fn::Equals"
        return str(left) == str(right)

    def resolve(self, value: Any) -> Any:
        """Return the value with parameters, mappings and conditions replaced by their values."""
        if isinstance(value, list):
            resolved = [self.resolve(each) for each in value]
            return [each for each in resolved if each != NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((name, argument),) = value.items()
            if name == "Ref":
                return self.parameters.get(argument, value)
            if name == "Fn::If":
                condition, yes, no = argument
                return self.resolve(yes if self.evaluate_condition(condition) else no)
            if name == "Fn::FindInMap":
                mapping, first, second = argument
                return self.mappings[mapping][first][second]
            if name == "Fn::Sub":
                return self.substitute(argument)
        fields = {key: self.resolve(each) for key, each in value.items()}
        return {key: each for key, each in fields.items() if each != NO_VALUE}

    def substitute(self, argument: Any) -> str:
        """Return the text of a Fn::Sub; other names stay as `${Name}`."""
        text, local = (argument, {}) if isinstance(argument, str) else argument
        known = self.parameters | {name: self.resolve(each) for name, each in local.items()}
        return re.sub(r"\$\{([\w.:]+)\}", lambda found: str(known.get(found[1], found[0])), text)

    def failed_rules(self) -> list[str]:
        """Return the messages of the rules that fail before anything is created, each one once."""
        return list(
            dict.fromkeys(
                assertion["AssertDescription"]
                for rule in self.rules.values()
                if self.evaluate_condition(rule["RuleCondition"])
                for assertion in rule["Assertions"]
                if not self.evaluate_condition(assertion["Assert"])
            )
        )

    def of_type(self, resource_type: str) -> dict[str, Any]:
        """Return the properties of all resources of a type, by logical id."""
        return {
            name: each["Properties"]
            for name, each in self.resources.items()
            if each["Type"] == resource_type
        }

    @property
    def function_configuration(self) -> Any:
        """What a published version contains; tags and reserved concurrency are not part of it."""
        properties = self.of_type("AWS::Lambda::Function")["Function"]
        return {
            name: each
            for name, each in properties.items()
            if name not in {"ReservedConcurrentExecutions", "Tags"}
        }

    @property
    def version(self) -> tuple[str, str]:
        """The logical id and the description; CloudFormation publishes if either changes."""
        ((logical_id, properties),) = self.of_type("AWS::Lambda::Version").items()
        assert {"Description", "FunctionName"} == set(properties)
        return logical_id, properties["Description"]

    @property
    def routes(self) -> dict[tuple[str, str], Any]:
        """The routes of the API by method and path."""
        body = self.of_type("AWS::ApiGatewayV2::Api")["Api"]["Body"]
        return {
            (method.upper(), path): route
            for path, methods in body["paths"].items()
            for method, route in methods.items()
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


BASE_GRANTS = {
    ("logs:CreateLogStream", "['FunctionLog', 'Arn']"),
    ("logs:PutLogEvents", "['FunctionLog', 'Arn']"),
    # X-Ray has no resources
    ("xray:PutTraceSegments", "*"),
    ("xray:PutTelemetryRecords", "*"),
}
S3_GRANTS = {
    ("s3:GetObject", "arn:${AWS::Partition}:s3:::b/models/*"),
    ("s3:ListBucket", "arn:${AWS::Partition}:s3:::b"),
}
BOUNDARY = "arn:aws:iam::123456789012:policy/boundary"
KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234"


@pytest.mark.parametrize(
    ("parameters", "grants"),
    [
        ({}, BASE_GRANTS),
        ({"ModelBucket": "b"}, BASE_GRANTS | S3_GRANTS),
        (
            {"ModelBucket": "b", "ModelKeyArn": KEY},
            BASE_GRANTS | S3_GRANTS | {("kms:Decrypt", KEY)},
        ),
    ],
)
def test_the_function_may_do_what_is_written_here_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str], grants: set[tuple[str, str]]
) -> None:
    deployed = ResolvedTemplate(monkeypatch, **parameters)
    assert grants == deployed.grants
    roles = deployed.of_type("AWS::IAM::Role")
    assert {"Role", "DeploymentRole"} == set(roles)
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
        ("PermissionsBoundaryArn", ["", BOUNDARY], ["*", BOUNDARY + "*", "policy/b"]),
        (
            "JwtIssuer",
            ["", "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI"],
            ["http://i", "accounts.example.com", "https://", "https://i?x=1", "https://i j"],
        ),
        (
            "CorsOrigin",
            ["", "*", "https://page.example:8443", "http://localhost:3000"],
            ["page.example", "https://page.example/", "https://a https://b"],
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
def test_every_route_requires_credentials_unless_auth_is_none(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str], security: Any
) -> None:
    template = ResolvedTemplate(monkeypatch, **parameters)
    assert {(method, "/{proxy+}"): security for method in ("GET", "HEAD", "POST")} == {
        route: each.get("security") for route, each in template.routes.items()
    }
    body = template.of_type("AWS::ApiGatewayV2::Api")["Api"]["Body"]
    schemes = body["components"]["securitySchemes"]
    assert (parameters.get("Auth") == "JWT") == ("jwt" in schemes)
    assert "awsSigv4" == schemes["iam"]["x-amazon-apigateway-authtype"]


def test_the_gateway_may_invoke_the_alias_by_every_route(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ResolvedTemplate(monkeypatch)
    permission = template.of_type("AWS::Lambda::Permission")["ApiInvokePermission"]
    assert {"Ref": "FunctionAliaslive"} == permission["FunctionName"]
    for (method, path), route in template.routes.items():
        arn = "arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:${Api}/$default/"
        assert fnmatch.fnmatchcase(f"{arn}{method}{path}", permission["SourceArn"])
        uri = route["x-amazon-apigateway-integration"]["uri"]
        assert "${Function.Arn}:live/invocations" in uri


INFERENCE_HEADER = "inference-header-content-length"
RESERVED_NOT_COMPARABLE = (
    "Warmth=provisioned needs ReservedConcurrency -1 or one of the values that WarmMaximum allows"
)
TOO_SMALL = "WarmMaximum and ReservedConcurrency must be at least WarmCount"


@pytest.mark.parametrize(
    ("parameters", "messages"),
    [
        ({}, []),
        ({"Auth": "JWT"}, ["Auth=JWT needs JwtIssuer", "Auth=JWT needs JwtAudience"]),
        ({"Auth": "JWT", "JwtIssuer": "https://i", "JwtAudience": "a"}, []),
        ({"ModelKeyArn": KEY}, ["ModelKeyArn needs ModelBucket"]),
        ({"ModelKeyArn": KEY, "ModelBucket": "b"}, []),
        ({"Warmth": "provisioned"}, ["Warmth=provisioned needs WarmCount, 1 or more"]),
        ({"Warmth": "provisioned", "WarmCount": 2}, []),
        (
            {"Warmth": "provisioned", "WarmCount": 2, "Deployment": "Canary10Percent5Minutes"},
            ["Warmth=provisioned needs Deployment=AllAtOnce"],
        ),
        (
            {"Warmth": "provisioned", "WarmCount": 2, "ReservedConcurrency": 0},
            [RESERVED_NOT_COMPARABLE, TOO_SMALL],
        ),
        (
            {"Warmth": "provisioned", "WarmCount": 2, "ReservedConcurrency": 7},
            [RESERVED_NOT_COMPARABLE],
        ),
        # the numbers are not used by the other two
        ({"Warmth": "snapstart", "WarmCount": 20, "ReservedConcurrency": 7}, []),
        ({"Warmth": "none", "Deployment": "Linear10PercentEvery1Minute"}, []),
    ],
)
def test_a_bad_combination_fails_before_anything_is_created(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], messages: list[str]
) -> None:
    assert messages == ResolvedTemplate(monkeypatch, **parameters).failed_rules()


def test_provisioned_concurrency_below_its_own_minimum_is_refused_for_every_allowed_value(
    monkeypatch: pytest.MonkeyPatch, template: Any
) -> None:
    """Rules cannot compare numbers, so every pair is tried."""
    counts = [each for each in template["Parameters"]["WarmCount"]["AllowedValues"] if each]
    maxima = template["Parameters"]["WarmMaximum"]["AllowedValues"]
    resolved = ResolvedTemplate(monkeypatch, Warmth="provisioned")
    for count in counts:
        for maximum in maxima:
            for reserved in [-1, *maxima]:
                numbers = {"WarmMaximum": maximum, "ReservedConcurrency": reserved}
                resolved.parameters |= {"WarmCount": count, **numbers}
                fits = maximum >= count and (reserved == -1 or reserved >= count)
                assert ([] if fits else [TOO_SMALL]) == resolved.failed_rules(), numbers


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
    deployed = ResolvedTemplate(monkeypatch, Warmth=warmth, WarmCount=3)
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
def test_sam_local_finds_the_routes_and_takes_binary_bodies() -> None:
    stacks, _ = SamLocalStackProvider.get_stacks(str(ROOT / "template.yaml"))
    api = ApiProvider(stacks).api
    assert ["*/*"] == api.binary_media_types
    found = {
        (route.function_name, route.path, route.payload_format_version, method)
        for route in api.routes
        for method in route.methods
    }
    assert {("Function", "/{proxy+}", "2.0", method) for method in ("GET", "HEAD", "POST")} == found


def test_poll_seconds_reach_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = ResolvedTemplate(monkeypatch, ModelControlMode="poll", PollSeconds=300)
    function = deployed.of_type("AWS::Lambda::Function")["Function"]
    assert 300 == function["Environment"]["Variables"]["MLSERVERLESS_POLL_SECONDS"]


def test_the_models_come_from_the_layer_or_from_one_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def root(**parameters: str) -> Any:
        function = ResolvedTemplate(monkeypatch, **parameters).of_type("AWS::Lambda::Function")[
            "Function"
        ]
        return function["Environment"]["Variables"]["MLSERVER_MODEL_REPOSITORY_ROOT"]

    assert "/opt/models" == root()
    assert "s3://b/models" == root(ModelBucket="b")


def test_log_groups_belong_to_the_stack_and_expire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed = ResolvedTemplate(monkeypatch, LogRetentionDays=7)
    groups = deployed.of_type("AWS::Logs::LogGroup")
    # other names count against the length of the account's one policy for log delivery
    assert "/aws/vendedlogs/${AWS::StackName}/access" == groups["AccessLog"]["LogGroupName"]
    assert {"FunctionLog": 7, "AccessLog": 7} == {
        name: each["RetentionInDays"] for name, each in groups.items()
    }
    function = deployed.of_type("AWS::Lambda::Function")["Function"]
    assert {"Ref": "FunctionLog"} == function["LoggingConfig"]["LogGroup"]
    assert "JSON" == function["LoggingConfig"]["LogFormat"]
    stage = deployed.of_type("AWS::ApiGatewayV2::Stage")["ApiApiGatewayDefaultStage"]
    assert {"Fn::GetAtt": ["AccessLog", "Arn"]} == stage["AccessLogSettings"]["DestinationArn"]


ALARMS = {"ErrorsAlarm", "LatencyAlarm", "ServerErrorsAlarm", "LoadFailuresAlarm"}
OF_NEW_VERSION = {
    "NewVersionErrorsAlarm",
    "NewVersionDurationAlarm",
    "NewVersionServerErrorsAlarm",
}


@pytest.mark.parametrize("deployment", ["Canary10Percent5Minutes", "Linear10PercentEvery1Minute"])
def test_a_gradual_deployment_is_rolled_back_by_alarms_of_the_new_version_alone(
    monkeypatch: pytest.MonkeyPatch, deployment: str
) -> None:
    template = ResolvedTemplate(monkeypatch, Deployment=deployment)
    (group,) = template.of_type("AWS::CodeDeploy::DeploymentGroup").values()
    assert group["AlarmConfiguration"]["Enabled"]
    watched = {each["Name"]["Ref"] for each in group["AlarmConfiguration"]["Alarms"]}
    assert OF_NEW_VERSION == watched
    assert {"DEPLOYMENT_STOP_ON_ALARM"} <= set(group["AutoRollbackConfiguration"]["Events"])
    assert "CodeDeployDefault.Lambda" + deployment == group["DeploymentConfigName"]
    logical_id, _ = template.version
    version = {"Fn::GetAtt": [logical_id, "Version"]}
    alarms = template.of_type("AWS::CloudWatch::Alarm")
    assert ALARMS | OF_NEW_VERSION == set(alarms)
    for name in watched:
        dimensions = {each["Name"]: each["Value"] for each in alarms[name]["Dimensions"]}
        if alarms[name]["Namespace"] == "AWS/Lambda":
            assert {
                "FunctionName": {"Ref": "Function"},
                "Resource": "${Function}:live",
                "ExecutedVersion": version,
            } == dimensions
        else:
            assert {"function": {"Ref": "Function"}, "function_version": version} == dimensions


def test_an_alarm_cannot_stop_a_deployment_that_moves_all_traffic_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = ResolvedTemplate(monkeypatch, Deployment="AllAtOnce")
    (group,) = template.of_type("AWS::CodeDeploy::DeploymentGroup").values()
    # empty and not absent: an update then removes the alarms of a canary before
    assert {} == group["AlarmConfiguration"]
    assert ALARMS == set(template.of_type("AWS::CloudWatch::Alarm"))


def test_every_alarm_is_sent_to_the_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"AlarmTopicArn": "arn:t", "Deployment": "Canary10Percent5Minutes"}
    alarms = ResolvedTemplate(monkeypatch, **parameters).of_type("AWS::CloudWatch::Alarm")
    assert all(alarm["AlarmActions"] == ["arn:t"] for alarm in alarms.values())


def test_every_role_has_the_permissions_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    def boundaries(**parameters: str) -> list[Any]:
        roles = ResolvedTemplate(monkeypatch, **parameters).of_type("AWS::IAM::Role")
        return [each.get("PermissionsBoundary") for each in roles.values()]

    assert [None, None] == boundaries()
    assert [BOUNDARY, BOUNDARY] == boundaries(PermissionsBoundaryArn=BOUNDARY)


def test_cors_is_off_unless_an_origin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def cors(**parameters: str) -> Any:
        api = ResolvedTemplate(monkeypatch, **parameters).of_type("AWS::ApiGatewayV2::Api")["Api"]
        return api["Body"].get("x-amazon-apigateway-cors")

    assert cors() is None
    assert ["https://page"] == cors(CorsOrigin="https://page")["allowOrigins"]


@pytest.mark.parametrize("auth", ["AWS_IAM", "JWT", "NONE"])
def test_the_gateway_handles_preflights_itself_and_a_browser_may_sign(
    monkeypatch: pytest.MonkeyPatch, auth: str
) -> None:
    """No route takes OPTIONS, so neither an authorizer nor the function runs."""
    template = ResolvedTemplate(monkeypatch, Auth=auth, CorsOrigin="https://page")
    methods = {method for method, _ in template.routes}
    assert {"$default", "/{proxy+}"} - {path for _, path in template.routes} == {"$default"}
    assert methods.isdisjoint({"OPTIONS", "ANY", "X-AMAZON-APIGATEWAY-ANY-METHOD"})
    cors = template.of_type("AWS::ApiGatewayV2::Api")["Api"]["Body"]["x-amazon-apigateway-cors"]
    assert methods == set(cors["allowMethods"])
    signed = {"authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"}
    ours = {"content-type", "content-encoding", "accept-encoding", INFERENCE_HEADER}
    assert signed | ours <= set(cors["allowHeaders"])
    assert {INFERENCE_HEADER, "retry-after"} <= set(cors["exposeHeaders"])
    assert cors["maxAge"] > 0


VALUES: dict[str, list[Any]] = {
    "Auth": ["AWS_IAM", "JWT", "NONE"],
    "ModelBucket": ["", "b"],
    "ModelKeyArn": ["", KEY],
    "Warmth": ["none", "snapstart", "provisioned"],
    "CorsOrigin": ["", "https://page"],
    "AlarmTopicArn": ["", "arn:t"],
    "ReservedConcurrency": [-1, 5],
    "PermissionsBoundaryArn": ["", BOUNDARY],
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
        deployed = ResolvedTemplate(monkeypatch, **chosen | {name: value})
        assert {("xray:PutTraceSegments", "*"), ("xray:PutTelemetryRecords", "*")} == {
            grant for grant in deployed.grants if "*" in grant[0] or grant[1] == "*"
        }
        assert (S3_GRANTS <= deployed.grants) == bool(bucket)
        for route in deployed.routes.values():
            assert (auth != "NONE") == bool(route.get("security"))


# A second value of each parameter without a list of allowed ones.
OTHER: dict[str, Any] = {
    "ModelBucket": "team-models",
    "ModelPrefix": "other models",
    "ModelKeyArn": KEY,
    "PollSeconds": 31,
    "MaxModelBytes": 1_000_000,
    "JwtIssuer": "https://issuer",
    "JwtAudience": "audience",
    "CorsOrigin": "https://page",
    "RateLimit": 7,
    "BurstLimit": 8,
    "PermissionsBoundaryArn": BOUNDARY,
    "MemorySize": 2048,
    "Timeout": 28,
    "ReservedConcurrency": 9,
    "AlarmTopicArn": "arn:t",
}
BASES: list[dict[str, Any]] = [
    {},
    {"ModelBucket": "models-of-b", "ModelControlMode": "poll", "Warmth": "snapstart"},
    {"Warmth": "provisioned", "WarmCount": 2, "Auth": "NONE"},
    {"Deployment": "Canary10Percent5Minutes", "ReservedConcurrency": 5},
]


@pytest.mark.parametrize("base", BASES, ids=str)
def test_a_parameter_publishes_a_version_exactly_if_it_changes_the_functions_configuration(
    monkeypatch: pytest.MonkeyPatch, template: Any, base: dict[str, Any]
) -> None:
    """Else it has no effect, or Lambda refuses to publish the same configuration again."""
    before = ResolvedTemplate(monkeypatch, **base)
    published = set()
    for name, parameter in template["Parameters"].items():
        current = base.get(name, parameter["Default"])
        values = parameter.get("AllowedValues") or [OTHER[name]]
        for value in values if len(values) < 5 else values[:2]:
            after = ResolvedTemplate(monkeypatch, **base | {name: value})
            changed = before.function_configuration != after.function_configuration
            assert changed == (before.version != after.version), (name, value)
            assert changed <= (str(value) != str(current)), (name, value)
            if changed:
                published.add(name)
    expected = {"MemorySize", "Timeout", "Warmth", "ModelControlMode", "PollSeconds"}
    expected |= {"MaxModelBytes", "RequireSha256", "LogLevel", "ModelBucket"}
    # without a bucket there is no prefix
    assert expected | ({"ModelPrefix"} if "ModelBucket" in base else set()) == published


def test_versions_of_different_configurations_have_different_descriptions(
    monkeypatch: pytest.MonkeyPatch, template: Any
) -> None:
    """Also where one value ends like the next begins."""
    similar: list[dict[str, Any]] = [
        {"MemorySize": 1769, "Timeout": 2},
        {"MemorySize": 1769, "Timeout": 29},
        {"PollSeconds": 1, "MaxModelBytes": 11},
        {"PollSeconds": 11, "MaxModelBytes": 1},
        {"PollSeconds": 3, "MaxModelBytes": 0},
        {"ModelBucket": "b", "ModelPrefix": "c/d"},
        {"ModelBucket": "b", "ModelPrefix": "c d"},
        {"ModelBucket": "b", "ModelPrefix": "c"},
        {"ModelBucket": "b.c", "ModelPrefix": "d"},
        {"ModelBucket": "b", "ModelPrefix": "/opt/models".strip("/")},
    ]
    resolved = [ResolvedTemplate(monkeypatch, **each) for each in similar]
    configurations = {json.dumps(each.function_configuration, sort_keys=True) for each in resolved}
    assert len(similar) == len(configurations) == len({each.version for each in resolved})
    text = template["Resources"]["Function"]["Properties"]["VersionDescription"]["Fn::Sub"][0]
    *first, _ = re.findall(r"\$\{(\w+)\}", text)
    assert "Architecture" == first[0]
    for name in first[1:]:  # these have no spaces, which separate them; the last one may have some
        parameter = template["Parameters"][name]
        words = map(str, parameter.get("AllowedValues", [""]))
        assert parameter["Type"] == "Number" or all(re.fullmatch(r"[\w]+", each) for each in words)


def test_the_longest_description_of_a_version_is_one_that_lambda_takes(
    monkeypatch: pytest.MonkeyPatch, template: Any
) -> None:
    def longest(name: str) -> Any:
        parameter = template["Parameters"][name]
        if "AllowedValues" in parameter:
            return max(parameter["AllowedValues"], key=lambda value: len(str(value)))
        if parameter["Type"] == "Number":
            return parameter["MaxValue"]
        return "x" * parameter["MaxLength"]

    function = template["Resources"]["Function"]["Properties"]
    text = json.dumps(function["VersionDescription"])
    named = [name for name in template["Parameters"] if f"${{{name}}}" in text]
    assert len(named) > 9
    _, description = ResolvedTemplate(
        monkeypatch, **{name: longest(name) for name in named}
    ).version
    assert len(description) < 256, len(description)


@pytest.mark.parametrize(
    ("resource", "key"),
    [("Function", "CodeUri"), ("SklearnLayer", "ContentUri"), ("ModelsLayer", "ContentUri")],
)
def test_new_code_and_a_new_layer_publish_a_version(
    monkeypatch: pytest.MonkeyPatch, resource: str, key: str
) -> None:
    def upload(source: Any) -> None:
        source["Resources"][resource]["Properties"][key] = "s3://bucket/other"

    before = ResolvedTemplate(monkeypatch)
    assert before.version == ResolvedTemplate(monkeypatch).version
    assert before.version != ResolvedTemplate(monkeypatch, None, upload).version


def test_a_version_that_is_replaced_stays_for_a_rollback_and_a_layer_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`sam delete` removes the function with all its versions; layers it would leave."""
    resources = ResolvedTemplate(monkeypatch).resources
    policies = {
        each["Type"]: (each.get("DeletionPolicy"), each.get("UpdateReplacePolicy"))
        for each in resources.values()
    }
    assert ("Retain", "Retain") == policies["AWS::Lambda::Version"]
    assert ("Delete", None) == policies["AWS::Lambda::LayerVersion"]
    assert {None} == {
        deletion
        for name, (deletion, _) in policies.items()
        if name not in {"AWS::Lambda::Version", "AWS::Lambda::LayerVersion"}
    }


# Values as the gateway writes them: `-` where there is none, and text that it made itself.
SAMPLES = {
    "requestId": ["JKJaXmPLvHcESHA="],
    "requestTime": ["25/Nov/2026:18:06:52 +0000"],
    "identity.sourceIp": ["203.0.113.7", "2001:db8::7"],
    "identity.userArn": ["arn:aws:sts::123456789012:assumed-role/team+a,b=c.d@e/session", "-"],
    "identity.accountId": ["123456789012", "-"],
    "authorizer.claims.sub": ["8a6f-41", "auth0|5f7c8ec7c33c6c004bbafe82", "-"],
    "httpMethod": ["POST"],
    "routeKey": ["POST /{proxy+}", "-"],
    "status": ["200", "403"],
    "integrationStatus": ["200", "-"],
    "responseLatency": ["12"],
    "responseLength": ["345"],
    "error.responseType": ["INTEGRATION_FAILURE", "-"],
    "error.messageString": ['"Forbidden"', '"-"', json.dumps('no "such" \\ route')],
}


def test_an_entry_of_the_access_log_is_json_and_names_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages = ResolvedTemplate(monkeypatch).of_type("AWS::ApiGatewayV2::Stage")
    log_format = stages["ApiApiGatewayDefaultStage"]["AccessLogSettings"]["Format"]
    assert "\n" not in log_format  # one entry is one line
    variable = re.compile(r"\$context\.([\w.]+\w)")
    # each variable has samples: one that a client can choose would need ones with quotes
    assert SAMPLES.keys() == set(variable.findall(log_format))
    for index in range(3):
        chosen = {name: samples[index % len(samples)] for name, samples in SAMPLES.items()}
        entry = log_format
        for name in sorted(chosen, key=len, reverse=True):
            entry = entry.replace(f"$context.{name}", chosen[name])
        fields = json.loads(entry)
        assert chosen["identity.userArn"] == fields["caller"]
        assert chosen["authorizer.claims.sub"] == fields["subject"]


def test_no_route_metrics_are_paid_that_nothing_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ResolvedTemplate(monkeypatch).of_type("AWS::ApiGatewayV2::Stage")
    settings = stages["ApiApiGatewayDefaultStage"]["DefaultRouteSettings"]
    assert not settings.get("DetailedMetricsEnabled")


def test_the_inference_url_names_the_digits_model_only_where_it_is_deployed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def url(**parameters: str) -> Any:
        return ResolvedTemplate(monkeypatch, **parameters).outputs["InferUrl"]["Value"]

    assert url().endswith("/v2/models/mnist-svm/versions/v0.1.0/infer")
    assert url(ModelBucket="b").endswith("/v2/models/MODEL/infer")


def test_one_line_defines_the_architecture_for_the_function_its_layers_and_the_makefiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def arm(source: Any) -> None:
        source["Mappings"]["Build"]["Lambda"]["Architecture"] = "arm64"

    template = ResolvedTemplate(monkeypatch, None, arm)
    assert template.version != ResolvedTemplate(monkeypatch).version
    (function,) = template.of_type("AWS::Lambda::Function").values()
    layers = template.of_type("AWS::Lambda::LayerVersion").values()
    assert ["arm64"] == function["Architectures"]
    # the models layer fits both
    assert [["arm64"]] == [
        each["CompatibleArchitectures"] for each in layers if "CompatibleArchitectures" in each
    ]
    lines = (ROOT / "template.yaml").read_text().splitlines()
    assert 1 == len([line for line in lines if re.fullmatch(r" *Architecture: \w+", line)])
    printed = {}
    for folder, variable in ((".", "ARCHITECTURE"), ("handler", "PLATFORM")):
        for more in (
            [],
            ["ARCHITECTURE=arm64"] if folder == "." else ["LAMBDA_ARCHITECTURE=arm64"],
        ):
            done = subprocess.run(
                ["make", "-sC", folder, f"--eval=print: ; @echo $({variable})", "print", *more],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], "ARCHITECTURE": "x86_64"},
                capture_output=True,
                text=True,
                check=True,
            )
            printed[variable, bool(more)] = done.stdout.strip()
    assert {
        ("ARCHITECTURE", False): "x86_64",
        ("ARCHITECTURE", True): "arm64",
        ("PLATFORM", False): "x86_64-manylinux_2_28",
        ("PLATFORM", True): "aarch64-manylinux_2_28",
    } == printed


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
    deployed = ResolvedTemplate(monkeypatch, Deployment="Canary10Percent5Minutes")
    name = {"Ref": "Function"}
    watched = {
        alarm["MetricName"]
        for alarm in deployed.of_type("AWS::CloudWatch::Alarm").values()
        if alarm["Namespace"] == NAMESPACE
        and {"Name": "function", "Value": name} in alarm["Dimensions"]
    }
    (dashboard,) = deployed.of_type("AWS::CloudWatch::Dashboard").values()
    body = dashboard["DashboardBody"]
    shown = set(re.findall(rf'\["{NAMESPACE}", "(\w+)", "function", "\$\{{Function\}}"', body))
    assert {"load_failures", "server_errors"} == watched
    # the dashboard shows 5xx as the gateway counts them
    assert set(METRICS) == shown | {"server_errors"}
    fields = {"message", "rows", "predict_ms", "model", "version", "status"}
    query = re.search(r"filter message = 'request' .*", body)
    assert query is not None
    assert all(field in query[0] for field in fields)


def test_the_dashboard_is_what_cloudwatch_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    (dashboard,) = ResolvedTemplate(monkeypatch).of_type("AWS::CloudWatch::Dashboard").values()
    body = json.loads(dashboard["DashboardBody"])
    assert len(body["widgets"]) > 5
    for widget in body["widgets"]:
        assert {"type", "width", "properties"} == set(widget)
