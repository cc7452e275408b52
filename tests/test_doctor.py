"""What would keep models from being served is one line each, before anything is deployed."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import joblib
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

from aws import BUCKET, S3Server
from conftest import IMPLEMENTATION, ROOT, MakeModel
from mlserverless import cli, doctor

SETTINGS = json.dumps({"name": "m", "implementation": IMPLEMENTATION}).encode()
FITTED = DummyClassifier().fit([[0]], [0])


def examined(capsys: pytest.CaptureFixture[str], root: object) -> tuple[int, list[str]]:
    """The status and the lines of `mlserverless doctor ROOT`."""
    status = cli.main(["doctor", str(root)])
    output = capsys.readouterr()
    assert "" == output.err
    return status, output.out.splitlines()


def put_in_s3(s3: S3Server, name: str, uri: str, bucket: str = BUCKET) -> None:
    """Store the settings of a model in S3; `put_artifact` stores its bytes."""
    parameters = {"uri": uri}
    declared = {"name": name, "implementation": IMPLEMENTATION, "parameters": parameters}
    s3.put(f"models/{name}/model-settings.json", json.dumps(declared).encode(), bucket)


def put_artifact(s3: S3Server, key: str, bucket: str = BUCKET) -> None:
    file = io.BytesIO()
    joblib.dump(FITTED, file)
    s3.put(key, file.getvalue(), bucket)


# ── the root ────────────────────────────────────────────────────────────────────────────


def test_a_repository_that_will_be_served_is_ok(
    capsys: pytest.CaptureFixture[str], digits: Path
) -> None:
    assert (0, ["ok       mnist-svm v0.1.0 loads"]) == examined(capsys, digits.parent)


def test_settings_json_may_name_the_root_that_is_examined(
    capsys: pytest.CaptureFixture[str], s3: S3Server, tmp_path: Path
) -> None:
    put_in_s3(s3, "m", "m.joblib")
    put_artifact(s3, "models/m/m.joblib")
    root = f"s3://{BUCKET}/models"
    (tmp_path / "settings.json").write_text(json.dumps({"model_repository_root": root}))
    status, lines = examined(capsys, tmp_path)
    assert (0, f"ok       settings.json names {root}, examined here") == (status, lines[0])
    assert "ok       m loads" == lines[-1]


def test_settings_json_may_name_its_own_folder(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    root = make_model("m", FITTED)
    (root / "settings.json").write_text('{"model_repository_root": "."}')
    assert (0, ["ok       m loads"]) == examined(capsys, f"{root}/")


def test_models_over_lambdas_limit_are_named_with_both_numbers_and_the_way_out(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    make_model("big", DummyClassifier().fit([[0]], [0]), parameters={"version": "1"})
    root = make_model("small", DummyClassifier().fit([[0]], [0]), parameters={"version": "1"})
    with (root / "big" / "data.bin").open("wb") as file:
        file.truncate(300_000_000)
    status, lines = examined(capsys, root)
    assert (1, 3) == (status, len(lines))
    assert lines[0].startswith("problem  the package is too large: it has 52")
    assert "Lambda's limit is 262,144,000; largest parts: models/big (300,000," in lines[0]
    assert "keep large models in S3 (parameter ModelBucket)" in lines[0]
    assert "ok       small 1 loads" == lines[2]


def test_a_model_that_loads_and_cannot_predict_is_a_problem(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    damaged = make_pipeline(StandardScaler(), Ridge()).fit([[0.0], [1.0]], [0, 1])
    del damaged[-1].coef_
    make_model("good", make_pipeline(StandardScaler(), Ridge()).fit([[0.0], [1.0]], [0, 1]))
    root = make_model("damaged", damaged)
    status, lines = examined(capsys, root)
    assert (1, "ok       good loads") == (status, lines[1])
    assert lines[0].startswith("problem  damaged: cannot predict: ")
    assert "coef_" in lines[0]


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (
            "/no/such/folder",
            (
                "/no/such/folder is not a folder; name the folder that holds your models, "
                "or s3://bucket/prefix"
            ),
        ),
        (
            f"s3://{BUCKET}//models",
            f"the prefix of s3://{BUCKET}//models starts with a slash; write s3://{BUCKET}/models",
        ),
        ("S3://b", "S3://b is not a folder; for S3 write s3://b"),
        (
            "s3://no-such-bucket/models",
            "bucket no-such-bucket does not exist; correct the bucket's name",
        ),
        (
            "s3://no$bucket/models",
            "no$bucket is not the name of a bucket; correct the bucket's name",
        ),
    ],
)
def test_a_wrong_root_is_one_line_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], s3: S3Server, root: str, message: str
) -> None:
    s3.put("models/m/model-settings.json", SETTINGS)
    assert (1, [f"problem  {message}"]) == examined(capsys, root)


def test_an_empty_root_needs_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = f"no model-settings.json below {tmp_path}; copy your model's folder there"
    assert (1, [f"problem  {message}"]) == examined(capsys, tmp_path)


def test_a_bucket_of_another_region_is_named_with_its_region(
    capsys: pytest.CaptureFixture[str], s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("models/m/model-settings.json", SETTINGS)
    message = (
        f"bucket {BUCKET} is in us-east-1, the function would run in eu-west-1; "
        "deploy with --region us-east-1"
    )
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    status, lines = examined(capsys, f"s3://{BUCKET}/models")
    assert (1, f"problem  {message}") == (status, lines[0])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    status, lines = examined(capsys, f"s3://{BUCKET}/models")
    assert f"ok       bucket {BUCKET} is in us-east-1, as the function will be" == lines[0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            (403, "AccessDenied"),
            (
                f"access to bucket {BUCKET} is denied (403); "
                "allow your credentials s3:ListBucket and s3:GetObject for the bucket"
            ),
        ),
        (
            (503, "SlowDown"),
            (
                f"S3 cannot answer for bucket {BUCKET} now (503); "
                "check the network and the endpoint, and run doctor again"
            ),
        ),
    ],
)
def test_a_root_that_s3_refuses_or_cannot_read_is_a_problem(
    capsys: pytest.CaptureFixture[str], s3: S3Server, fault: tuple[int, str], message: str
) -> None:
    s3.fault = fault
    assert (1, [f"problem  {message}"]) == examined(capsys, f"s3://{BUCKET}/models")


# ── models ──────────────────────────────────────────────────────────────────────────────


def test_each_model_has_its_line_and_a_problem_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    make_model("gone", None, parameters={"version": "1"})
    root = make_model("here", FITTED)
    status, lines = examined(capsys, root)
    assert (1, "ok       here loads") == (status, lines[1])
    assert re.fullmatch(
        r"problem  gone 1: failed to load: its \w+, model\.joblib, is not in the repository; "
        r"copy the file there, or correct parameters\.uri in model-settings\.json",
        lines[0],
    )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (None, "bucket no-such-bucket does not exist; correct the bucket's name"),
        ((403, "AccessDenied"), "is denied (AccessDenied); allow your credentials s3:ListBucket"),
        ((503, "SlowDown"), "(SlowDown); check the network and the endpoint"),
        ("no credentials", "there are no credentials to read S3 with; configure AWS credentials"),
    ],
)
def test_an_artifact_that_s3_does_not_give_is_a_problem(
    capsys: pytest.CaptureFixture[str],
    make_model: MakeModel,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    fault: Any,
    reason: str,
) -> None:
    s3.put("another/object", b"")
    root = make_model("m", None, parameters={"uri": "s3://no-such-bucket/m.joblib"})
    if isinstance(fault, tuple):
        s3.fault = fault
    elif fault is not None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    status, lines = examined(capsys, root)
    assert 1 == status
    assert lines[0].startswith("problem  m: ")
    assert reason in lines[0]


UNFITTED = [
    LogisticRegression(),
    RandomForestClassifier(),
    make_pipeline(StandardScaler(), LogisticRegression()),
    GridSearchCV(LogisticRegression(), {"C": [1.0]}),
]


@pytest.mark.parametrize("estimator", UNFITTED, ids=lambda each: type(each).__name__)
def test_a_model_that_was_saved_before_fit_is_a_problem(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel, estimator: Any
) -> None:
    root = make_model("m", estimator)
    status, [line] = examined(capsys, root)
    assert 1 == status
    assert re.fullmatch("problem  m: .*fitted.*; .*", line)


def no_rows(_: object) -> object:
    raise ValueError("no row can be taken")


@pytest.mark.parametrize(
    "estimator",
    [
        Normalizer(),  # stateless
        FunctionTransformer(no_rows),  # stateless, and takes no generated request
        make_pipeline(StandardScaler(), LogisticRegression()).fit([[0], [1]], [0, 1]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_estimator_that_needs_no_fit_or_had_it_is_none(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel, estimator: Any
) -> None:
    status, lines = examined(capsys, make_model("m", estimator))
    assert (0, "ok       m loads") == (status, lines[0])


def test_a_model_that_accepts_no_generated_request_is_a_warning(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    message = (
        "warning  m: no generated request was accepted, so no prediction was tried; declare "
        "inputs in model-settings.json"
    )
    root = make_model("m", FunctionTransformer(no_rows))
    assert (0, ["ok       m loads", message]) == examined(capsys, root)


def test_an_estimator_that_the_check_cannot_examine_counts_as_fitted() -> None:
    class Strange:
        def fit(self) -> None: ...

        def __sklearn_is_fitted__(self) -> bool:
            raise RuntimeError

    assert not doctor.is_unfitted(Strange())


PICKLE = pickle.dumps(FITTED)
OLD_PICKLE = re.sub(rb"(_sklearn_version.{0,3}\x8c.)1\.", rb"\g<1>0.", PICKLE)


@pytest.mark.parametrize(
    ("artifact", "settings", "pattern"),
    [
        (PICKLE[:50], {}, "is incomplete: its end is missing; copy it again"),
        (pickle.dumps({}), {}, "is not a scikit-learn estimator; save the fitted estimator itself"),
        (
            FITTED,
            {"parameters": {"extra": {"sha256": "0"}}},
            r"sha256.*; copy the file again, or correct parameters\.extra\.sha256",
        ),
        (FITTED, {"implementation": "other.Runtime"}, r"is; if it is a scikit-learn estimator"),
        (FITTED, {"implementation": None}, r"names no implementation; .*mlserver_sklearn"),
        (FITTED, {"versions": 1}, r"versions must be a list of strings; correct the file"),
        (
            b"\x80\x04cno_such_package\nThing\n.",
            {},
            "no_such_package, which is not installed: add the package that contains it",
        ),
        (
            OLD_PICKLE,
            {},
            (
                r"saved with scikit-learn (0\.\S+), .*; train it again with .*, "
                r"install scikit-learn \1, or set MLSERVERLESS_ALLOW_SKLEARN_VERSION_MISMATCH=true"
            ),
        ),
    ],
)
def test_what_to_do_depends_on_the_reason(
    capsys: pytest.CaptureFixture[str],
    make_model: MakeModel,
    artifact: Any,
    settings: dict[str, Any],
    pattern: str,
) -> None:
    status, [line] = examined(capsys, make_model("m", artifact, **settings))
    assert 1 == status
    assert line.startswith("problem  m: ")
    assert re.search(pattern, line), line


@pytest.mark.usefixtures("s3")
def test_a_fault_of_one_model_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    make_model("a", None, parameters={"uri": f"s3://{BUCKET}"})  # no key
    root = make_model("b", FITTED)
    status, lines = examined(capsys, root)
    assert (1, "ok       b loads") == (status, lines[-1])
    assert lines[0].startswith("problem  a: ")


def test_a_reason_that_says_what_to_do_gets_no_second_hint_and_any_other_gets_one() -> None:
    assert "it failed; do this" == doctor.add_hint("it failed; do this")
    fallback = "it failed; correct the model's folder and run doctor again"
    assert fallback == doctor.add_hint("it failed")


def test_a_dependency_that_a_prediction_lacks_is_to_be_added_to_the_layer() -> None:
    reason = "cannot predict: it needs libgomp.so.1, which is not installed here"
    hint = "add the package that contains it to the scikit-learn layer"
    assert f"{reason}; {hint}" == doctor.add_hint(reason)


def test_two_folders_with_the_same_name_and_version_are_a_problem(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel, s3: S3Server
) -> None:
    make_model("one", FITTED, name="m", parameters={"version": "1"})
    make_model("other", FITTED, name="m", parameters={"version": "2"})
    root = make_model("deep/er", FITTED, name="m", parameters={"version": "1"})
    message = (
        "problem  m 1 is declared more than once: in deep/er, one; only one of them is served, "
        "give each another name or another parameters.version"
    )
    status, lines = examined(capsys, root)
    assert (1, [message]) == (status, [line for line in lines if "more than once" in line])
    for folder in ("a", "b"):
        s3.put(f"models/{folder}/model-settings.json", SETTINGS)
    status, lines = examined(capsys, f"s3://{BUCKET}/models")
    assert 1 == status
    assert lines[-1].startswith("problem  m is declared more than once: in a, b; ")


# ── where artifacts are ─────────────────────────────────────────────────────────────────


def test_an_artifact_outside_the_root_is_a_warning_not_a_problem(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel, s3: S3Server, tmp_path: Path
) -> None:
    put_artifact(s3, "elsewhere/m.joblib")
    joblib.dump(FITTED, tmp_path / "m.joblib")
    make_model("absolute", None, parameters={"uri": str(tmp_path / "m.joblib")})
    make_model("above", None, parameters={"uri": "../../m.joblib"})
    make_model("inside", None, parameters={"uri": "../within/model.joblib"})
    make_model("s3", None, parameters={"uri": f"s3://{BUCKET}/elsewhere/m.joblib"})
    root = make_model("within", FITTED)
    status, lines = examined(capsys, root)
    assert 0 == status
    assert [
        "ok       above loads",
        "warning  above: parameters.uri is outside",
        "ok       absolute loads",
        "warning  absolute: parameters.uri is outside",
        "ok       inside loads",
        "ok       s3 loads",
        "warning  s3: parameters.uri is in S3, and the role of a function",
        "ok       within loads",
    ] == [
        line.partition(f" {root}")[0].partition(" with its models")[0]
        for line in sorted(lines, key=lambda line: (line.split()[1].strip(":"), line))
    ]


def test_an_artifact_outside_the_bucket_or_the_prefix_is_a_warning(
    capsys: pytest.CaptureFixture[str], s3: S3Server
) -> None:
    put_artifact(s3, "models/a/m.joblib")
    put_artifact(s3, "other/m.joblib")
    put_artifact(s3, "models/m.joblib", "second-bucket")
    put_in_s3(s3, "a", "m.joblib")
    put_in_s3(s3, "b", "../a/m.joblib")
    put_in_s3(s3, "c", "../../other/m.joblib")
    put_in_s3(s3, "d", "s3://second-bucket/models/m.joblib")
    put_in_s3(s3, "e", f"s3://{BUCKET}/models/a/m.joblib")
    root = f"s3://{BUCKET}/models"
    status, lines = examined(capsys, root)
    outside = (
        f"parameters.uri is outside {root}, and the function's role may not read it; "
        f"copy the artifact below {root} or extend the role's policy"
    )
    assert (0, [f"warning  {name}: {outside}" for name in "cd"]) == (
        status,
        [line for line in lines if not line.startswith("ok")],
    )


def test_a_misspelled_s3_location_in_a_uri_is_a_problem(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    root = make_model("m", FITTED, parameters={"uri": "S3://bucket/m.joblib"})
    status, lines = examined(capsys, root)
    message = "parameters.uri is not an S3 location; write s3://bucket/m.joblib"
    assert (1, f"problem  m: {message}") == (status, lines[-1])


# ── unknown keys ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("declared", "key", "likely"),
    [
        ({"paramaters": {}}, "paramaters", "parameters"),
        ({"implementaton": "x"}, "implementaton", "implementation"),
        ({"Name": "x"}, "Name", "name"),
        ({"contentType": "x"}, "contentType", "parameters.content_type"),
        ({"uri": "x"}, "uri", "parameters.uri"),
        ({"version": "1"}, "version", "parameters.version"),
        ({"model_uri": "x"}, "model_uri", "parameters.uri"),
        ({"parameters": {"url": "x"}}, "parameters.url", None),
        ({"parameters": {"versoin": "1"}}, "parameters.versoin", "parameters.version"),
        (
            {"parameters": {"predict_fn": "x"}},
            "parameters.predict_fn",
            "parameters.extra.predict_fn",
        ),
        ({"parameters": {"platform": "x"}}, "parameters.platform", "platform, at the top level"),
        (
            {"parameters": {"extra": {"predictfn": "x"}}},
            "parameters.extra.predictfn",
            "parameters.extra.predict_fn",
        ),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "paramters": {}}]},
            "inputs.paramters",
            "inputs.parameters",
        ),
        ({"owner": "me"}, "owner", None),
    ],
)
def test_an_unknown_key_is_named_with_the_likely_one(
    capsys: pytest.CaptureFixture[str],
    make_model: MakeModel,
    declared: dict[str, Any],
    key: str,
    likely: str | None,
) -> None:
    root = make_model("m", FITTED)
    settings = {"implementation": IMPLEMENTATION, "name": "m", **declared}
    (root / "m" / "model-settings.json").write_text(json.dumps(settings))
    status, lines = examined(capsys, root)
    text = f"m: model-settings.json: the key {key} is unknown and ignored; "
    if likely is None:
        assert (0, f"warning  {text}remove or correct it") == (status, lines[-1])
    else:
        assert (1, f"problem  {text}did you mean {likely}?") == (status, lines[-1])


def test_no_key_that_mlserver_knows_nor_a_comment_is_reported() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    server, model = page.split("## model-settings.json")
    for part, known in ((server, doctor.SERVER_KEYS), (model, doctor.MODEL_KEYS)):
        names = set(re.findall(r"^\| `([\w.]+)` \| (?:same|ignored) \|", part, re.MULTILINE))
        listed = {f"{path}.{key}".strip(".") for path, keys in known.items() for key in keys}
        assert names <= listed
    declared = {
        "_comment": "x",
        "$schema": "x",
        "cache_enabled": True,
        "parameters": {"format": "x", "extra": {"predict_parameters": {}, "infer_uri": "x"}},
        "inputs": [{"name": "x", "parameters": {"anything": 1}}, "not an object"],
        "outputs": "not a list",
    }
    assert [] == list(doctor.find_unknown_keys(declared, doctor.MODEL_KEYS))
    assert [] == list(doctor.find_unknown_keys({"parameters": []}, doctor.MODEL_KEYS))


def test_every_key_of_extra_that_the_code_reads_is_known() -> None:
    folder = ROOT / "handler" / "mlserverless"
    sources = "".join(path.read_text() for path in folder.glob("*.py") if path.stem != "doctor")
    read = set(re.findall(r"""(?:parameters\.extra\.|extra\.get\(")(\w+)""", sources))
    assert {"predict_fn", "sha256", "trusted"} <= read <= doctor.MODEL_KEYS["parameters.extra"]


def test_unknown_keys_of_settings_json_are_reported_too(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    root = make_model("m", FITTED)
    settings = {
        "htpp_port": 1,
        "MLSERVER_HOST": "x",
        "grpc_port": 1,
        "cors_settings": {"allow_origin": []},
        "team": "x",
    }
    (root / "settings.json").write_text(json.dumps(settings))
    status, lines = examined(capsys, root)
    assert 1 == status
    assert {
        "problem  settings.json: the key htpp_port is unknown and ignored; did you mean http_port?",
        "problem  settings.json: the key MLSERVER_HOST is unknown and ignored; did you mean host?",
        "warning  settings.json: the key team is unknown and ignored; remove or correct it",
        (
            "problem  settings.json: the key cors_settings.allow_origin is unknown and ignored; "
            "did you mean cors_settings.allow_origins?"
        ),
        "ok       m loads",
    } == set(lines)


def test_unknown_keys_are_found_in_s3_too(capsys: pytest.CaptureFixture[str], s3: S3Server) -> None:
    put_artifact(s3, "m.joblib")
    declared = {"name": "m", "implementation": IMPLEMENTATION, "paramaters": {}}
    put_artifact(s3, "model.joblib")
    s3.put("model-settings.json", json.dumps(declared).encode())
    status, lines = examined(capsys, f"s3://{BUCKET}")
    assert (1, "did you mean parameters?") == (status, lines[-1].partition("; ")[2])


@pytest.mark.parametrize("content", ["{", "[]"])
def test_settings_that_are_not_an_object_are_one_problem(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel, content: str
) -> None:
    root = make_model("m", FITTED)
    (root / "m" / "model-settings.json").write_text(content)
    status, [line] = examined(capsys, root)
    assert (1, True) == (status, line.startswith("problem  m: failed to load: model-settings.json"))
    (root / "settings.json").write_text(content)
    status, [line] = examined(capsys, root)
    assert (1, True) == (status, line.startswith("problem  settings.json "))
