"""SnapStart: a first prediction before the snapshot, nothing shared after it."""

from __future__ import annotations

import builtins
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import snapshot_restore_py as hooks
from sklearn.dummy import DummyClassifier

from aws import BUCKET, S3Server
from conftest import MakeModel
from mlserverless import main, snapshot
from mlserverless.errors import ModelLoadError
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
    handler = main.Door(Settings(model_repository_root=str(root)))
    Counting.asked = 0
    run(hooks.get_before_snapshot())
    assert 1 == Counting.asked
    assert 1 == len(handler.registry.loaded())


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


class Raising(DummyClassifier):  # type: ignore[misc] # of a library without types
    """Raises for its example request, or when it is examined for one."""

    def __init__(self, raised: str = "RuntimeError", attribute: str = "predict") -> None:
        super().__init__()
        self.raised = raised
        self.attribute = attribute

    def __getattribute__(self, name: str) -> Any:
        state = object.__getattribute__(self, "__dict__")
        # not before it is loaded: a model that raises then does not load
        if state.get("armed") and name == state["attribute"]:
            raise getattr(builtins, state["raised"])("the words of an estimator")
        return object.__getattribute__(self, name)


RAISED = ["RuntimeError", "MemoryError", "SystemExit", "KeyboardInterrupt", "GeneratorExit",
          "StopIteration", "ValueError", "AttributeError"]  # fmt: skip


@pytest.mark.usefixtures("no_hooks")
@pytest.mark.parametrize("attribute", ["predict", "n_features_in_", "feature_names_in_"])
@pytest.mark.parametrize("raised", RAISED)
def test_an_exception_from_an_example_does_not_stop_the_publication(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    raised: str,
    attribute: str,
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")
    make_model("counting", Counting().fit([[0.0]], [0]))
    root = make_model("a", Raising(raised, attribute).fit([[0.0]], [0]))
    handler = main.Door(Settings(model_repository_root=str(root), load_models_at_startup=True))
    for model in handler.registry.loaded():
        model.estimator.armed = True
    Counting.asked = 0
    run(hooks.get_before_snapshot())
    assert 1 == Counting.asked, "the others are called all the same"
    assert 2 == len(handler.registry.loaded())
    assert "the words of an estimator" not in caplog.text
    if attribute == "predict":
        assert "Model a fails on its example request" in caplog.text


UNFITTED = DummyClassifier()


@pytest.mark.usefixtures("no_hooks")
@pytest.mark.parametrize(
    ("artifact", "message"),
    [
        (b"-corrupt-", "Model m failed to load: the artifact cannot be unpickled"),
        (UNFITTED, "Model m fails on its example request"),
        (None, "Model m failed to load: its artifact, model.joblib, is not in the repository"),
        ("no repository", "the model repository cannot be read: No such file or directory"),
        ("no models", "the model repository contains no models"),
    ],
)
@pytest.mark.parametrize("fail", [True, False])
def test_a_snapshot_that_would_not_serve_fails_its_publication_if_the_operator_wants_it(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    artifact: object,
    message: str,
    fail: bool,
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")
    root = make_model("m", artifact if not isinstance(artifact, str) else None)
    if artifact == "no models":
        shutil.rmtree(root / "m")
    if artifact == "no repository":
        shutil.rmtree(root)
    settings = Settings(
        model_repository_root=str(root), load_models_at_startup=True, fail_snapshot_on_error=fail
    )
    main.Door(settings)
    if not fail:
        run(hooks.get_before_snapshot())
        return
    with pytest.raises(ModelLoadError) as caught:
        run(hooks.get_before_snapshot())
    assert str(caught.value).startswith("MLSERVERLESS_FAIL_SNAPSHOT_ON_ERROR is set: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_hooks")
def test_a_snapshot_that_serves_is_published_though_errors_would_fail_it(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")
    monkeypatch.setenv("MLSERVERLESS_FAIL_SNAPSHOT_ON_ERROR", "true")
    settings = Settings.load()
    assert settings.fail_snapshot_on_error
    handler = main.Door(replace(settings, model_repository_root=str(digits.parent)))
    run(hooks.get_before_snapshot())
    assert 1 == len(handler.registry.loaded())


@pytest.mark.usefixtures("no_hooks")
def test_after_a_restore_a_poll_sees_what_came_since_the_snapshot_at_the_first_request(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")
    old, new = (DummyClassifier(strategy="constant", constant=each) for each in (3, 7))
    root = make_model("m", old.fit([[0.0]], [3]))
    handler = main.Door(
        Settings(model_repository_root=str(root), model_control_mode="poll", poll_seconds=3600)
    )
    run(hooks.get_before_snapshot())
    joblib.dump(new.fit([[0.0]], [7]), root / "m" / "model.joblib")

    def answer() -> object:
        body = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64",
                                       "data": [0]}]})  # fmt: skip
        http = {"method": "POST", "path": "/v2/models/m/infer"}
        event = {"version": "2.0", "requestContext": {"http": http}, "body": body}
        return json.loads(handler(event, None)["body"])["outputs"][0]["data"]

    assert [3] == answer()
    run(hooks.get_after_restore())
    assert [7] == answer()


def test_after_a_restore_s3_is_asked_over_a_new_connection(s3: S3Server) -> None:
    s3.put("models/m/model-settings.json", b'{"name": "m", "implementation": "x"}')
    repository = open_repository(f"s3://{BUCKET}/models")
    registry = Registry(repository, Settings())
    registry.index()
    before = repository.s3.client  # type: ignore[attr-defined] # of an S3Repository
    snapshot.renew(registry)
    registry.index()
    assert before is not repository.s3.client  # type: ignore[attr-defined]
