"""SnapStart: a first prediction before the snapshot, nothing shared after it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import snapshot_restore_py as hooks
from sklearn.dummy import DummyClassifier

from aws import BUCKET, S3Server
from conftest import MakeModel
from mlserverless import main, snapshot
from mlserverless.registry import Registry
from mlserverless.repository import open_repository
from mlserverless.settings import Settings


class Counting(DummyClassifier):  # type: ignore[misc] # of a library without types
    """Says how often it was asked."""

    asked = 0

    def predict(self, X: object) -> object:  # noqa: N803 - scikit-learn's name
        type(self).asked += 1
        return super().predict(X)


@pytest.fixture
def no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_before_snapshot_registry", [])
    monkeypatch.setattr(hooks, "_after_restore_registry", [])


def run(registered: list[tuple[object, tuple[object, ...], dict[str, object]]]) -> None:
    for function, positional, named in registered:  # as Lambda's runtime does it
        assert callable(function)
        function(*positional, **named)


@pytest.mark.usefixtures("no_hooks")
def test_without_snapstart_nothing_is_registered(digits: Path) -> None:
    main.Door(Settings(model_repository_root=str(digits)))
    assert ([], []) == (hooks.get_before_snapshot(), hooks.get_after_restore())


@pytest.mark.usefixtures("no_hooks")
def test_before_the_snapshot_every_model_is_loaded_and_asked(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")
    root = make_model("counting", Counting().fit([[0.0]], [0]))
    make_model("broken", b"no pickle")  # is answered with its error, and harms no snapshot
    door = main.Door(Settings(model_repository_root=str(root)))
    Counting.asked = 0
    run(hooks.get_before_snapshot())
    assert 1 == Counting.asked
    assert 1 == len(door.registry.loaded())


@pytest.mark.usefixtures("no_hooks")
def test_after_a_restore_two_environments_draw_different_numbers(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")
    main.Door(Settings(model_repository_root=str(digits)))
    drawn = set()
    for _ in range(2):
        random.seed(1)  # the snapshot, that both are restored from
        np.random.seed(1)  # noqa: NPY002 - what estimators without a random_state draw from
        run(hooks.get_after_restore())
        drawn |= {random.random(), np.random.random()}  # noqa: NPY002, S311
    assert 4 == len(drawn)


def test_after_a_restore_s3_is_asked_over_a_new_connection(s3: S3Server) -> None:
    s3.put("models/m/model-settings.json", b'{"name": "m", "implementation": "x"}')
    repository = open_repository(f"s3://{BUCKET}/models")
    registry = Registry(repository, Settings())
    registry.index()
    before = repository.s3.client  # type: ignore[attr-defined] # of an S3Repository
    snapshot.renew(registry)
    registry.index()
    assert before is not repository.s3.client  # type: ignore[attr-defined]
