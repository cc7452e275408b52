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


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("broken", "the artifact cannot be unpickled"), (None, "no model-settings")],
)
def test_what_cannot_be_profiled_is_one_line(
    capsys: pytest.CaptureFixture[str],
    make_model: MakeModel,
    tmp_path: Path,
    name: str | None,
    sentence: str,
) -> None:
    root = make_model(name, b"no pickle") if name else tmp_path
    assert 2 == cli.main(["profile", str(root)])
    said = capsys.readouterr()
    assert "" == said.out
    assert 1 == len(said.err.splitlines())
    assert sentence in said.err
