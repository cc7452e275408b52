"""`mlserverless profile` says where a cold start goes, in phases that add up."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from sklearn.dummy import DummyClassifier

from conftest import MakeModel
from mlserverless import cli
from mlserverless.profile import PHASES


def test_each_model_has_its_phases_and_a_bar(
    capsys: pytest.CaptureFixture[str], digits: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    root = make_model("a<b", DummyClassifier().fit([[0]], [0]))
    (root / "mnist-svm").symlink_to(digits)
    svg = tmp_path / "profile.svg"
    assert 0 == cli.main(["profile", str(root), "--svg", str(svg)])
    lines = capsys.readouterr().out.splitlines()
    assert ["a<b"] == lines[0].split()[1:]  # links are not followed, as when it is served
    spans = [float(re.split(r"\s{2,}", line)[-1]) for line in lines[1:]]
    assert list(PHASES) == [line[:40].strip() for line in lines[1 : 1 + len(PHASES)]]
    assert pytest.approx(sum(spans[:5]), abs=0.5) == spans[6]
    texts = [each.text for each in ET.fromstring(svg.read_text()).iter() if each.text]  # noqa: S314 - our own
    assert "a<b" in texts
    assert set(PHASES[:-1]) < set(texts)


ENDS = b"cos\n_exit\n(I3\ntR."  # a pickle that ends its process with status 3
KILLS = b"cposix\nkill\n(cposix\ngetpid\n(tRI9\ntR."  # or by SIGKILL


def test_a_model_that_cannot_be_measured_has_its_reason_and_the_others_are_measured(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel, tmp_path: Path
) -> None:
    make_model("broken", b"no pickle")
    make_model("gone", None)
    make_model("killed", KILLS)
    make_model("ended", ENDS)
    make_model("s3", None, parameters={"uri": "s3:///m"})
    root = make_model("works", DummyClassifier().fit([[0]], [0]))
    svg = tmp_path / "profile.svg"
    assert 1 == cli.main(["profile", str(root), "--svg", str(svg)])
    lines = capsys.readouterr().out.splitlines()
    assert ["works"] == lines[0].split()[1:]
    reasons = dict(line.split(": not measured: ") for line in lines if "not measured" in line)
    assert {"broken", "gone", "killed", "ended", "s3"} == set(reasons)
    assert "cannot be unpickled" in reasons["broken"]
    assert re.search("model.joblib, is not in the repository", reasons["gone"])
    assert "its process was ended by SIGKILL" == reasons["killed"]
    assert "its process ended with status 3" == reasons["ended"]
    texts = [each.text for each in ET.fromstring(svg.read_text()).iter() if each.text]  # noqa: S314 - our own
    assert {"works", "broken"} & set(texts) == {"works"}


def test_where_no_model_can_be_measured_there_are_only_reasons(
    capsys: pytest.CaptureFixture[str], make_model: MakeModel, tmp_path: Path
) -> None:
    root, svg = make_model("gone", None), tmp_path / "profile.svg"
    assert 1 == cli.main(["profile", str(root), "--svg", str(svg)])
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("gone: not measured: ")
    assert "svg" in ET.fromstring(svg.read_text()).tag  # noqa: S314 - our own


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (".", "no model-settings.json below .; copy your model's folder there"),
        ("S3://b", "S3://b is not a folder; for S3 write s3://b"),
    ],
)
def test_a_root_without_models_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    root: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert 2 == cli.main(["profile", root])
    output = capsys.readouterr()
    assert ("", f"mlserverless: {message}\n") == (output.out, output.err)
