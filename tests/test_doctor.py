"""What would keep models from being served is one line each, before anything is deployed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aws import BUCKET, S3Server
from conftest import IMPLEMENTATION, MakeModel
from mlserverless import cli

SETTINGS = json.dumps({"name": "m", "implementation": IMPLEMENTATION}).encode()


def said(capsys: pytest.CaptureFixture[str], root: str) -> tuple[int, list[str]]:
    status = cli.main(["doctor", root])
    output = capsys.readouterr()
    assert "" == output.err
    return status, output.out.splitlines()


def test_a_repository_that_will_be_served_is_said_so(
    capsys: pytest.CaptureFixture[str], digits: Path
) -> None:
    assert (0, ["ok       mnist-svm v0.1.0 loads"]) == said(capsys, str(digits.parent))


def test_a_missing_artefact_is_one_line_and_the_others_are_looked_at(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    make_model("gone", None, parameters={"version": "1"})
    root = make_model("here", DummyClassifier().fit([[0]], [0]), parameters={"version": "1"})
    status, lines = said(capsys, str(root))
    assert (1, 2) == (status, len(lines))
    assert "its artefact, model.joblib, is not in the repository" in lines[0]
    assert lines[0].startswith("problem  gone 1: ")
    assert "ok       here 1 loads" == lines[1]


def test_models_over_lambdas_limit_are_named_with_both_numbers_and_the_way_out(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    make_model("big", DummyClassifier().fit([[0]], [0]), parameters={"version": "1"})
    root = make_model("small", DummyClassifier().fit([[0]], [0]), parameters={"version": "1"})
    with (root / "big" / "data.bin").open("wb") as file:
        file.truncate(300_000_000)
    status, lines = said(capsys, str(root))
    assert (1, 3) == (status, len(lines))
    assert lines[0].startswith("problem  the package is too large: it has 52")
    assert "Lambda's limit is 262,144,000; largest parts: models/big (300,000," in lines[0]
    assert "keep large models in S3 (parameter ModelBucket)" in lines[0]
    assert "ok       small 1 loads" == lines[2]


def test_a_model_that_loads_and_cannot_predict_is_a_problem(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel
) -> None:
    make_model("good", make_pipeline(StandardScaler(), Ridge()).fit([[0.0], [1.0]], [0, 1]))
    root = make_model("unfit", make_pipeline(StandardScaler(), Ridge()))
    status, lines = said(capsys, str(root))
    assert (1, "ok       good without a version loads") == (status, lines[0])
    reason = "Model unfit cannot predict: its Pipeline is not fitted"
    assert lines[1].startswith(f"problem  unfit without a version: {reason}")


@pytest.mark.parametrize(
    ("root", "sentence"),
    [
        ("/no/such/folder", "/no/such/folder is no folder: name the one that holds your models"),
        (
            f"s3://{BUCKET}//models",
            f"the prefix starts with a slash, no key does: say s3://{BUCKET}/models",
        ),
        (
            "s3://no-such-bucket/models",
            "bucket no-such-bucket does not exist: mend the name, or what its owner allows you",
        ),
    ],
)
def test_a_wrong_root_is_one_line_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], s3: S3Server, root: str, sentence: str
) -> None:
    s3.put("models/m/model-settings.json", SETTINGS)
    assert (1, [f"problem  {sentence}"]) == said(capsys, root)


def test_an_empty_root_asks_for_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sentence = f"no model-settings.json below {tmp_path}: copy your model's folder there"
    assert (1, [f"problem  {sentence}"]) == said(capsys, str(tmp_path))


def test_a_bucket_of_another_region_is_named_with_its_region(
    capsys: pytest.CaptureFixture[str], s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("models/m/model-settings.json", SETTINGS)
    sentence = (
        f"bucket {BUCKET} lies in us-east-1, the function would run in eu-west-1: "
        "deploy with --region us-east-1"
    )
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    status, lines = said(capsys, f"s3://{BUCKET}/models")
    assert (1, f"problem  {sentence}") == (status, lines[0])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    status, lines = said(capsys, f"s3://{BUCKET}/models")
    assert f"ok       bucket {BUCKET} lies in us-east-1, as the function will" == lines[0]


def test_denied_access_is_the_owners_to_mend(
    capsys: pytest.CaptureFixture[str], s3: S3Server
) -> None:
    s3.fault = (403, "AccessDenied")
    status, lines = said(capsys, f"s3://{BUCKET}/models")
    assert (1, 1) == (status, len(lines))
    assert lines[0].startswith(f"problem  access to bucket {BUCKET} is denied")
