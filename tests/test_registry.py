"""Models in memory: each loaded once, whatever the threads; states with their reasons."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import operator
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.preprocessing import FunctionTransformer

from aws import BUCKET, S3Server
from conftest import IMPLEMENTATION, ONLY_DISK, ROOT, MakeModel, declare
from mlserverless import deadline
from mlserverless import registry as room
from mlserverless.errors import ModelLoadError, NotFound, RepositoryError, Unavailable
from mlserverless.registry import Registry
from mlserverless.repository import open_repository
from mlserverless.settings import Settings

MODEL = DummyClassifier().fit([[0.0]], [0])


def opened(root: object, **settings: Any) -> Registry:
    folder = os.environ.get("MLSERVERLESS_CACHE_FOLDER", "")  # of the test's S3
    return Registry(open_repository(str(root), folder), Settings(**settings))


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass."""
    now, passed = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + sum(passed))
    return passed.append


def states(registry: Registry) -> dict[str, tuple[bool, str]]:
    return {state.name: (state.ready, state.reason) for state in registry.index()}


def test_a_model_is_loaded_once_however_many_ask_at_the_same_time(
    s3: S3Server, repository: Path
) -> None:
    for file in (repository / "mnist-svm").iterdir():
        s3.put(f"mnist-svm/{file.name}", file.read_bytes())
    s3.asked.clear()
    registry = opened(f"s3://{BUCKET}")
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda _: registry.get(registry.find("mnist-svm")), range(32)))
    assert 1 == len(set(map(id, models)))
    assert 1 == s3.asked.count(f"GET /{BUCKET}/mnist-svm/mnist-svm.joblib")
    assert 3 == len(s3.asked), "one listing, one settings file, one artifact"


@pytest.mark.parametrize("mode", ["none", "explicit", "poll"])
@pytest.mark.parametrize(
    "ascending",
    [
        ["beta", "9", "10"],
        ["v0.9.0", "v0.10.0"],
        ["2.0.0-rc.1", "2.0.0"],
        ["1.0rc1", "1.0"],
        ["2025-12-31", "2026-01-31"],
    ],
    ids=operator.itemgetter(-1),
)
def test_an_unversioned_model_is_the_default_else_the_highest(
    make_model: MakeModel, ascending: list[str], mode: str
) -> None:
    for number, version in enumerate(reversed(ascending)):
        root = make_model(f"f{number}", MODEL, name="m", parameters={"version": version})
    registry = opened(root, model_control_mode=mode)
    assert ascending[-1] == registry.find("m").settings.version
    assert ascending == registry.versions("m")
    make_model("unversioned", MODEL, name="m")
    assert opened(root, model_control_mode=mode).find("m").settings.version is None


def test_what_is_not_there_is_named(make_model: MakeModel) -> None:
    registry = opened(make_model("m", MODEL, parameters={"version": "1"}))
    with pytest.raises(NotFound, match=r"^Model nope not found$"):
        registry.find("nope")
    with pytest.raises(NotFound, match=r"^Model m with version 2 not found$"):
        registry.find("m", "2")


def test_a_failed_load_is_remembered_for_a_while_and_then_tried_again(
    make_model: MakeModel, pass_time: Callable[[float], None]
) -> None:
    root = make_model("m", b"-corrupt-")
    registry = opened(root)
    with pytest.raises(ModelLoadError, match=r"^Model m failed to load: the artifact cannot be"):
        registry.get(registry.find("m"))
    shutil.rmtree(root / "m")
    make_model("m", MODEL)
    with pytest.raises(ModelLoadError):
        registry.get(registry.find("m"))
    ready, reason = states(registry)["m"]
    assert (False, True) == (ready, "failed to load: the artifact cannot be unpickled" in reason)
    pass_time(room.RETRY_AFTER)
    assert registry.get(registry.find("m")).methods
    assert {"m": (True, "")} == states(registry)


def test_a_passing_failure_is_tried_again_by_the_next_request(
    s3: S3Server, repository: Path
) -> None:
    for file in (repository / "mnist-svm").iterdir():
        s3.put(f"mnist-svm/{file.name}", file.read_bytes())
    registry = opened(f"s3://{BUCKET}")
    s3.fault = (503, "SlowDown")
    with pytest.raises(Unavailable):
        registry.find("mnist-svm")
    assert "S3 cannot answer" in (registry.unready() or "")
    s3.fault = None
    entry = registry.find("mnist-svm")
    s3.fault = (503, "SlowDown")
    with pytest.raises(Unavailable):
        registry.get(entry)
    s3.fault = None
    assert registry.get(entry).methods


def test_a_repository_that_cannot_be_read_is_never_a_model_not_found(tmp_path: Path) -> None:
    registry = opened(tmp_path / "nowhere")
    with pytest.raises(RepositoryError):
        registry.find("m")
    assert "cannot be read" in (registry.unready() or "")


def test_a_broken_model_says_why_and_the_others_go_on_serving(make_model: MakeModel) -> None:
    make_model("empty", None)
    make_model("other", MODEL, implementation="mlserver_xgboost.XGBoostModel")
    registry = opened(make_model("good", MODEL))
    for name in ("empty", "other"):
        with pytest.raises(ModelLoadError):
            registry.get(registry.find(name))
    assert registry.get(registry.find("good")).methods
    found = states(registry)
    assert (True, "") == found["good"]
    assert "model.joblib, is not in the repository" in found["empty"][1]
    assert "mlserver_xgboost.XGBoostModel is not served here" in found["other"][1]


def test_unload_forgets_a_model_until_it_is_loaded_again(make_model: MakeModel) -> None:
    registry = opened(make_model("m", MODEL))
    before = registry.get(registry.find("m"))
    registry.unload("m")
    for ask in (lambda: registry.find("m"), lambda: registry.unload("m")):
        with pytest.raises(NotFound):
            ask()
    assert {"m": (False, "unloaded")} == states(registry)
    registry.load("m")
    assert before is not registry.get(registry.find("m"))
    with pytest.raises(NotFound):
        registry.load("nope")


def test_a_load_that_fails_leaves_the_old_model_serving(make_model: MakeModel) -> None:
    root = make_model("m", MODEL)
    registry = opened(root)
    before = registry.get(registry.find("m"))
    (root / "m" / "model.joblib").write_bytes(b"-corrupt-")
    with pytest.raises(ModelLoadError):
        registry.load("m")
    assert before is registry.get(registry.find("m"))


def test_an_index_shows_what_lies_there_now(make_model: MakeModel) -> None:
    registry = opened(make_model("a", MODEL))
    loaded = registry.get(registry.find("a"))
    make_model("b", MODEL)
    assert {"a", "b"} == set(states(registry))
    assert loaded is registry.get(registry.find("a"))


def test_a_preloaded_server_is_ready_when_every_model_is(make_model: MakeModel) -> None:
    root = make_model("good", MODEL)
    registry = opened(root, load_models_at_startup=True)
    registry.load_all()
    assert registry.unready() is None
    registry.unload("good")
    assert "model good is not loaded" == registry.unready()
    make_model("bad", b"-corrupt-")
    registry = opened(root, load_models_at_startup=True)
    registry.load_all()
    assert "model bad is not loaded" == registry.unready()


def test_a_preloaded_model_that_is_unloaded_is_not_ready_however_it_was_loaded_last(
    make_model: MakeModel,
) -> None:
    root = make_model("m", MODEL, parameters={"version": "1"})
    make_model("other", MODEL)
    registry = opened(root, model_control_mode="explicit")
    registry.load_all()
    registry.load("m")
    assert registry.unready() is None
    registry.unload("m")
    assert "model m is not loaded" == registry.unready()
    registry.index()
    assert "model m is not loaded" == registry.unready(), "a scan changes nothing"
    registry.load("m")
    assert registry.unready() is None
    declare(root / "m", name="m", parameters={"version": "2"})
    registry.load("m")
    assert ["2"] == registry.versions("m")
    registry.unload("m")
    assert "model m is not loaded" == registry.unready(), "whatever its version"


def test_a_preloaded_server_whose_repository_cannot_be_read_is_ready_once_it_can(
    make_model: MakeModel,
) -> None:
    root = make_model("a", MODEL)
    make_model("b", MODEL)
    away = root.rename(root.with_name("away"))
    registry = opened(root)
    (failure,) = registry.load_all()
    assert isinstance(failure, RepositoryError)
    assert "the model repository cannot be read: No such file or directory" == registry.unready()
    with pytest.raises(RepositoryError):
        registry.find("a")
    away.rename(root)
    assert registry.get(registry.find("a")).methods, "a request loads what it needs"
    assert registry.unready() is None
    assert 2 == len(registry.loaded()), "and readiness the rest"
    registry.unload("b")
    assert "model b is not loaded" == registry.unready()


def test_a_preloaded_model_that_failed_is_loaded_by_readiness_once_it_can_be(
    make_model: MakeModel, pass_time: Callable[[float], None]
) -> None:
    root = make_model("m", b"-corrupt-", parameters={"version": "1"})
    registry = opened(root)
    assert [ModelLoadError] == [type(each) for each in registry.load_all()]
    joblib.dump(MODEL, root / "m" / "model.joblib")
    declare(root / "m", name="m", parameters={"version": "2"})
    assert "model m is not loaded" == registry.unready(), "a failure is remembered for a while"
    pass_time(room.RETRY_AFTER)
    assert registry.unready() is None
    assert ["2"] == registry.versions("m")
    assert 1 == len(registry.loaded())


def test_a_version_that_comes_after_start_up_does_not_make_a_server_unready(
    make_model: MakeModel,
) -> None:
    root = make_model("m", MODEL, parameters={"version": "1"})
    for mode in ("none", "poll"):
        registry = opened(root, model_control_mode=mode, poll_seconds=0)
        registry.load_all()
        make_model(f"{mode}-new", b"-corrupt-", name="m", parameters={"version": "2"})
        make_model(f"{mode}-other", MODEL)
        registry.index()
        assert registry.unready() is None
        shutil.rmtree(root / f"{mode}-new")


def test_a_preloaded_model_that_was_evicted_and_fails_to_load_is_not_ready(
    make_model: MakeModel,
) -> None:
    make_model("a", MODEL)
    root = make_model("b", MODEL)
    registry = opened(root, max_model_bytes=1)
    registry.load_all()
    (root / "a" / "model.joblib").write_bytes(b"-corrupt-")
    assert registry.unready() is None
    with pytest.raises(ModelLoadError):
        registry.get(registry.find("a"))
    assert "model a is not loaded" == registry.unready()


@pytest.mark.usefixtures("s3")
def test_a_load_of_all_models_raises_nothing_and_returns_what_failed(
    make_model: MakeModel,
) -> None:
    make_model("corrupt", b"-corrupt-")
    make_model("missing", MODEL, parameters={"uri": "s3://no-such-bucket/model.joblib"})
    registry = opened(make_model("m", MODEL))
    assert {ModelLoadError, RepositoryError} == {type(each) for each in registry.load_all()}
    assert 1 == len(registry.loaded())
    assert "model corrupt is not loaded" == registry.unready()


# ── two folders, one name ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["none", "poll"])
@pytest.mark.parametrize(
    ("folders", "used"),
    [(["a", "b"], "a"), (["copy", "m"], "m"), (["b", "c/m"], "c/m"), (["m", "z/m"], "m")],
)
def test_of_two_folders_with_one_name_and_version_the_same_is_served_in_any_order_of_requests(
    make_model: MakeModel,
    caplog: pytest.LogCaptureFixture,
    folders: list[str],
    used: str,
    mode: str,
) -> None:
    for folder in folders:
        model = DummyClassifier(strategy="constant", constant=folder == used)
        root = make_model(folder, model.fit([[0.0]], [folder == used]), name="m")
    index_first = opened(root, model_control_mode=mode, poll_seconds=0)
    request_first = opened(root, model_control_mode=mode, poll_seconds=0)
    assert {"m"} == set(states(index_first))
    for registry in (index_first, request_first):
        assert 1 == answer_of(registry)
        caplog.clear()
        for _ in range(3):
            ready, reason = states(registry)["m"]
            assert ready
            assert f"several folders have this name and version ({', '.join(folders)})" in reason
            assert f": {used} is served, the others are ignored" in reason
            assert str(root) not in reason
        assert 1 >= len([each for each in caplog.records if "several folders" in each.message])
    (root / folders[0] / "model-settings.json").unlink()
    assert {"m": (True, "")} == states(index_first)
    still_used = mode == "none" or used == folders[1]  # outside poll mode what is loaded stays
    assert int(still_used) == answer_of(index_first)


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_a_folder_whose_settings_are_broken_hides_no_model_of_its_name(
    make_model: MakeModel, mode: str
) -> None:
    """Broken settings name no model: it is called as its folder is."""
    root = make_model("other", MODEL, name="m")
    (make_model("m", MODEL) / "m" / "model-settings.json").write_text("{")
    registry = opened(root, model_control_mode=mode, poll_seconds=0)
    assert 0 == answer_of(registry)
    assert ": other is served, the others are ignored" in states(registry)["m"][1]


def test_a_conflict_of_names_is_shown_beside_what_else_is_wrong(make_model: MakeModel) -> None:
    make_model("a", b"-corrupt-", name="m")
    registry = opened(make_model("b", MODEL, name="m"))
    with pytest.raises(ModelLoadError):
        registry.get(registry.find("m"))
    ready, reason = states(registry)["m"]
    assert not ready
    assert "cannot be unpickled (" in reason
    assert "; several folders have this name and version (a, b): a is served" in reason


def test_the_root_itself_may_have_the_name_of_a_folder_below(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_model("m", MODEL)
    declare(root, name="m", parameters={"uri": "m/model.joblib"})
    registry = opened(root)
    reason = states(registry)["m"][1]
    assert "(the root folder, m): the root folder is served" in reason
    assert 1 == len([each for each in caplog.records if reason in each.message])


def test_a_conflict_in_s3_names_the_folders_below_the_prefix(s3: S3Server) -> None:
    put_version(s3, 3, folder="models/a")
    put_version(s3, 7, folder="models/b")
    registry = opened(f"s3://{BUCKET}/models")
    for _ in range(2):
        assert "(a, b): a is served" in states(registry)["m"][1]
    assert 3 == answer_of(registry)


def test_a_folder_whose_name_is_not_utf_8_is_a_model_that_json_can_name(
    make_model: MakeModel,
) -> None:
    root = make_model("m", MODEL)
    (root / "m").rename(root / os.fsdecode(b"caf\xe9"))
    declare(root / os.fsdecode(b"caf\xe9"))
    make_model("m", MODEL)
    registry = opened(root)
    assert {"m", r"caf\xe9"} == set(states(registry))
    json.dumps(registry.index()).encode()
    assert registry.get(registry.find(r"caf\xe9")).methods


# ── looking again ───────────────────────────────────────────────────────────────────────

XGBOOST = "mlserver_xgboost.XGBoostModel"


def test_settings_that_were_mended_are_read_after_a_while(
    make_model: MakeModel, pass_time: Callable[[float], None]
) -> None:
    root = make_model("m", MODEL)
    for broken in ("{", json.dumps({"name": "m", "implementation": XGBOOST})):
        (root / "m" / "model-settings.json").write_text(broken)
        registry = opened(root)
        with pytest.raises(ModelLoadError):
            registry.get(registry.find("m"))
        declare(root / "m", name="m")
        with pytest.raises(ModelLoadError):
            registry.get(registry.find("m"))
        pass_time(room.RETRY_AFTER)
        assert registry.get(registry.find("m")).methods


def test_models_that_come_into_an_empty_repository_are_found_after_a_while(
    make_model: MakeModel, tmp_path: Path, pass_time: Callable[[float], None]
) -> None:
    (tmp_path / "repository").mkdir()
    registry = opened(tmp_path / "repository")
    make_model("m", MODEL)
    assert registry.get(registry.find("m")).methods, "nothing was looked for until now"
    (tmp_path / "empty").mkdir()
    registry = opened(tmp_path / "empty")
    for _ in range(2):
        with pytest.raises(NotFound):
            registry.find("m")
        shutil.copytree(tmp_path / "repository", tmp_path / "empty", dirs_exist_ok=True)
    pass_time(room.RETRY_AFTER)
    assert registry.get(registry.find("m")).methods


@pytest.mark.parametrize("mode", ["none", "explicit"])
def test_outside_poll_mode_an_index_changes_nothing_that_serves(
    make_model: MakeModel, mode: str
) -> None:
    root = make_model("m", MODEL)
    registry = opened(root, model_control_mode=mode)
    model = registry.get(registry.find("m"))
    declare(root / "m", name="m", platform="another", parameters={"uri": "./gone.joblib"})
    assert {"m": (True, "")} == states(registry)
    assert model is registry.get(registry.find("m"))
    shutil.rmtree(root / "m")
    assert {"m": (True, "")} == states(registry)
    assert model is registry.get(registry.find("m"))
    registry.unload("m")
    for ask in (lambda: registry.find("m"), lambda: registry.load("m")):
        with pytest.raises(NotFound):
            ask()


def test_what_was_unloaded_stays_so_whatever_has_come_since(make_model: MakeModel) -> None:
    root = make_model("m", MODEL)
    registry = opened(root, model_control_mode="explicit")
    registry.unload("m")
    declare(root / "m", name="m", platform="another")
    make_model("n", MODEL, name="m", parameters={"version": "2"})
    assert {"unloaded"} == {each.reason for each in registry.index()}
    with pytest.raises(NotFound):
        registry.find("m")
    registry.load("m")
    assert registry.get(registry.find("m")).methods


# ── polling ─────────────────────────────────────────────────────────────────────────────


def polling(root: object, seconds: int = 0) -> Registry:
    return opened(root, model_control_mode="poll", poll_seconds=seconds)


OTHER = DummyClassifier(strategy="constant", constant=7).fit([[0.0]], [7])


def answer_of(registry: Registry, name: str = "m") -> int:
    return int(registry.get(registry.find(name)).estimator.predict([[0.0]])[0])


def put_folder(s3: S3Server, root: Path) -> None:
    """Put every file below a folder into the bucket."""
    for path in root.rglob("*.*"):
        s3.put(str(path.relative_to(root)), path.read_bytes())


def answer_at_last(registry: Registry, other_than: int) -> int:
    """The next answer, once a poll that still goes on behind the requests has ended."""
    until = time.perf_counter() + 20
    while (answer := answer_of(registry)) == other_than:
        assert time.perf_counter() < until
        time.sleep(0.01)
    return answer


def test_new_bytes_in_a_folder_are_served_and_bad_ones_leave_the_old(
    make_model: MakeModel,
) -> None:
    artifact = make_model("m", MODEL) / "m" / "model.joblib"
    registry = polling(artifact.parent.parent)
    assert 0 == answer_of(registry)
    joblib.dump(OTHER, artifact)
    assert 7 == answer_of(registry)
    artifact.write_bytes(b"-corrupt-")
    assert 7 == answer_of(registry)
    ready, reason = states(registry)["m"]
    assert (True, True) == (ready, "cannot be unpickled" in reason)
    joblib.dump(MODEL, artifact)
    assert 0 == answer_of(registry)
    assert {"m": (True, "")} == states(registry)


def test_new_bytes_in_s3_are_told_by_their_etag_and_fetched_once(
    s3: S3Server, make_model: MakeModel
) -> None:
    folder = make_model("m", MODEL) / "m"
    for file in folder.iterdir():
        s3.put(f"m/{file.name}", file.read_bytes())
    registry = polling(f"s3://{BUCKET}")
    assert 0 == answer_of(registry)
    s3.asked.clear()
    assert 0 == answer_of(registry)
    key = f"/{BUCKET}/m/model.joblib"
    assert 1 == len(s3.asked), "one listing, which has the ETags of settings and artifact"
    joblib.dump(OTHER, folder / "model.joblib")
    s3.put("m/model.joblib", (folder / "model.joblib").read_bytes())
    s3.asked.clear()
    assert 7 == answer_of(registry)
    assert 1 == s3.asked.count(f"GET {key}")
    s3.fault = (503, "SlowDown")
    assert 7 == answer_of(registry)


def test_a_look_is_taken_at_most_every_so_many_seconds(make_model: MakeModel) -> None:
    artifact = make_model("m", MODEL) / "m" / "model.joblib"
    registry = polling(artifact.parent.parent, seconds=3600)
    assert 0 == answer_of(registry)
    joblib.dump(OTHER, artifact)
    assert 0 == answer_of(registry)


def test_a_model_that_goes_away_is_not_found_any_more(make_model: MakeModel) -> None:
    root = make_model("m", MODEL)
    registry = polling(root)
    assert 0 == answer_of(registry)
    shutil.rmtree(root / "m")
    with pytest.raises(NotFound):
        registry.find("m")


def test_settings_that_break_leave_the_old_model_serving(make_model: MakeModel) -> None:
    root = make_model("m", OTHER, parameters={"version": "1"})
    registry = polling(root)
    assert 7 == answer_of(registry)
    (root / "m" / "model-settings.json").write_text("{")
    assert 7 == answer_of(registry)
    assert registry.find("m", "1").model is not None
    ready, reason = states(registry)["m"]
    assert (True, True) == (ready, "model-settings.json is not valid JSON" in reason)
    declare(root / "m", name="m", parameters={"version": "1"})
    assert 7 == answer_of(registry)
    assert {"m": (True, "")} == states(registry)


def test_a_model_may_change_its_folder_and_its_version(make_model: MakeModel) -> None:
    root = make_model("m", OTHER, parameters={"version": "1"})
    registry = polling(root)
    assert 7 == answer_of(registry)
    (root / "m").rename(root / "another")
    assert 7 == answer_of(registry)
    declare(root / "another", name="m", parameters={"version": "2"})
    assert 7 == answer_of(registry)
    assert "2" == registry.find("m").version
    with pytest.raises(NotFound):
        registry.find("m", "1")


def test_a_version_that_does_not_load_is_not_the_default(make_model: MakeModel) -> None:
    root = make_model("m", OTHER, parameters={"version": "1"})
    registry = polling(root)
    assert 7 == answer_of(registry)
    make_model("n", b"-corrupt-", name="m", parameters={"version": "2"})
    assert 7 == answer_of(registry)
    assert {"1": True, "2": False} == {each.version: each.ready for each in registry.index()}
    with pytest.raises(ModelLoadError):
        registry.get(registry.find("m", "2"))
    joblib.dump(MODEL, root / "n" / "model.joblib")
    registry.index()
    assert 7 == answer_of(registry), "its failure is remembered for a while"


def test_a_new_version_is_the_default_once_it_has_loaded(s3: S3Server) -> None:
    put_version(s3, 3, version="8")
    registry = polling(f"s3://{BUCKET}")
    assert 3 == answer_of(registry)
    put_version(s3, 9, folder="n", version="9")
    s3.fault, s3.end = (503, "SlowDown"), "n/model.joblib"
    assert 3 == answer_of(registry)
    s3.well()
    assert 9 == answer_at_last(registry, other_than=3)
    assert 3 == int(registry.get(registry.find("m", "8")).estimator.predict([[0.0]])[0])


def test_bytes_that_were_refused_are_not_fetched_again_at_every_look(
    s3: S3Server, pass_time: Callable[[float], None]
) -> None:
    put_version(s3, 3)
    registry = polling(f"s3://{BUCKET}")
    assert 3 == answer_of(registry)
    s3.put("m/model.joblib", b"-corrupt-")
    s3.asked.clear()
    for _ in range(5):
        assert 3 == answer_of(registry)
    key = f"GET /{BUCKET}/m/model.joblib"
    assert 1 == s3.asked.count(key)
    pass_time(3600)
    assert 3 == answer_of(registry)
    assert 2 == s3.asked.count(key), "what it needs may have come since"
    put_version(s3, 7)
    assert 7 == answer_of(registry)


def test_an_index_says_why_new_bytes_cannot_be_had(s3: S3Server) -> None:
    put_version(s3, 3)
    registry = polling(f"s3://{BUCKET}")
    assert 3 == answer_of(registry)
    put_version(s3, 7)
    s3.fault, s3.end = (403, "AccessDenied"), "m/model.joblib"
    assert 3 == answer_of(registry)
    ready, reason = states(registry)["m"]
    assert (True, True) == (ready, "is denied (AccessDenied)" in reason)
    s3.well()
    assert 7 == answer_of(registry)


STRANGE_URIS = [
    "s3://bucket",
    "s3://",
    "s3://no-such-bucket/model.joblib",
    "s3://not a bucket/model.joblib",
    f"s3://{BUCKET}/ \u2603%2F?#\n/../model.joblib",
    "\0",
    "/proc/self/mem",
    "../../../..",
    "x" * 10_000,
]


@pytest.mark.parametrize(
    ("where", "uri"),
    [*itertools.product(["folder"], STRANGE_URIS), ("s3", STRANGE_URIS[0]), ("s3", "\0")],
    ids=itertools.count(),
)
def test_settings_of_one_model_that_name_no_artifact_leave_all_models_serving(
    s3: S3Server, make_model: MakeModel, where: str, uri: str
) -> None:
    """Each is the reason of its model; the poll and the index go on with the others."""
    s3.put("unused", b"")
    make_model("m", MODEL)
    root = make_model("other", MODEL)
    if where == "s3":
        put_folder(s3, root)
    registry = polling(f"s3://{BUCKET}" if where == "s3" else root)
    assert [0, 0] == [answer_of(registry, name) for name in ("m", "other")]
    declare(root / "m", name="m", parameters={"uri": uri})
    joblib.dump(OTHER, root / "other" / "model.joblib")
    if where == "s3":
        put_folder(s3, root)
    for _ in range(2):
        found = states(registry)
        assert (True, "") == found["other"]
        assert (True, True) == (found["m"][0], bool(found["m"][1]))
        assert [0, 7] == [answer_of(registry, name) for name in ("m", "other")]
    declare(root / "m", name="m")
    if where == "s3":
        put_folder(s3, root)
    assert {"m": (True, ""), "other": (True, "")} == states(registry)


@pytest.mark.parametrize("mode", ["none", "poll"])
@pytest.mark.parametrize("uri", STRANGE_URIS, ids=range(len(STRANGE_URIS)))
def test_a_model_whose_settings_name_no_artifact_hides_no_other(
    s3: S3Server, make_model: MakeModel, uri: str, mode: str
) -> None:
    s3.put("unused", b"")
    make_model("m", MODEL, parameters={"uri": uri})
    registry = opened(make_model("other", MODEL), model_control_mode=mode, poll_seconds=0)
    with pytest.raises((ModelLoadError, RepositoryError)):
        registry.get(registry.find("m"))
    assert registry.get(registry.find("other")).methods
    assert {"m", "other"} == set(states(registry))


def test_a_folder_that_vanishes_leaves_the_other_models_polled(make_model: MakeModel) -> None:
    make_model("m", MODEL)
    root = make_model("other", MODEL)
    registry = polling(root)
    assert [0, 0] == [answer_of(registry, name) for name in ("m", "other")]
    (root / "m" / "model-settings.json").unlink()
    (root / "m" / "model-settings.json").symlink_to("nowhere")  # listed, and gone when it is read
    joblib.dump(OTHER, root / "other" / "model.joblib")
    assert 7 == answer_of(registry, "other")
    ready, reason = states(registry)["m"]
    assert (True, "model-settings.json cannot be read: No such file or directory") == (
        ready,
        reason.removeprefix("Model m failed to load: "),
    )


@pytest.mark.parametrize(
    ("fault", "failure"),
    [((403, "AccessDenied"), RepositoryError), ((503, "SlowDown"), Unavailable)],
)
def test_a_new_version_that_the_repository_does_not_give_is_there_and_not_the_default(
    s3: S3Server, fault: tuple[int, str], failure: type[Exception]
) -> None:
    put_version(s3, 3, version="1")
    registry = polling(f"s3://{BUCKET}")
    assert 3 == answer_of(registry)
    put_version(s3, 7, folder="n", version="2")
    s3.fault, s3.end = fault, "n/model.joblib"
    assert {"1": True, "2": False} == {each.version: each.ready for each in registry.index()}
    assert 3 == answer_of(registry)
    with pytest.raises(failure):
        registry.get(registry.find("m", "2"))
    s3.well()
    assert 7 == int(registry.get(registry.find("m", "2")).estimator.predict([[0.0]])[0])
    assert 7 == answer_of(registry)


@contextmanager
def no_thread_can_start() -> Iterator[None]:
    """Have the system refuse every new thread, for the memory of its stack."""
    before = threading.stack_size(2**46)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_a_poll_that_cannot_start_is_logged_and_the_next_one_is_tried(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = make_model("m", MODEL) / "m" / "model.joblib"
    registry = polling(artifact.parent.parent)
    assert 0 == answer_of(registry)
    joblib.dump(OTHER, artifact)
    with no_thread_can_start():
        assert 0 == answer_of(registry), "the request is answered"
    assert "no thread can be started" in caplog.text
    assert 7 == answer_of(registry)


def test_a_listing_that_finds_no_thread_is_unavailable_and_the_next_is_tried(
    s3: S3Server,
) -> None:
    registry = opened(f"s3://{BUCKET}")
    with no_thread_can_start():
        with pytest.raises(Unavailable):
            registry.find("m")
        assert [Unavailable] == [type(each) for each in registry.load_all()]
    put_version(s3, 3)
    entry = registry.find("m")
    with no_thread_can_start(), pytest.raises(Unavailable):
        registry.get(entry)
    assert registry.unready() is None, "what was to be preloaded is loaded now"
    assert 3 == answer_of(registry)


def test_a_root_that_is_not_a_path_is_a_repository_error(tmp_path: Path) -> None:
    registry = opened(f"{tmp_path}\0")
    with pytest.raises(RepositoryError, match="cannot be read"):
        registry.index()
    assert "cannot be read" in (registry.unready() or "")


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_a_rescan_at_the_next_request_sees_what_came_meanwhile(
    make_model: MakeModel, mode: str
) -> None:
    root = make_model("m", MODEL)
    make_model("bad", b"-corrupt-")
    registry = opened(root, model_control_mode=mode, poll_seconds=3600)
    registry.load_all()
    joblib.dump(OTHER, root / "m" / "model.joblib")
    joblib.dump(OTHER, root / "bad" / "model.joblib")
    assert 0 == answer_of(registry)
    with pytest.raises(ModelLoadError):
        answer_of(registry, "bad")
    registry.rescan_at_next_request()
    assert (7 if mode == "poll" else 0) == answer_of(registry)
    assert 7 == answer_of(registry, "bad")


@pytest.mark.parametrize("mode", ["explicit", "poll"])
def test_a_request_that_waits_for_another_ones_listing_ends_in_its_own_time(
    s3: S3Server, mode: str
) -> None:
    put_version(s3, 3, version="1")
    registry = opened(f"s3://{BUCKET}", model_control_mode=mode)
    with pytest.raises(NotFound):
        registry.find("another")  # imports and connects: the wait below is for the listing alone
    registry = Registry(registry._repository, registry._settings)  # noqa: SLF001 - with its client
    s3.hang = 1.0
    s3.asked.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(registry.find, "m")
        while not s3.asked:
            time.sleep(0.001)
        calls: list[Callable[[], object]] = [
            lambda: registry.find("m"),
            lambda: registry.find("m", "1"),
            lambda: registry.versions("m"),
            lambda: registry.unload("m"),
            registry.unready,
        ]
        for call in calls:
            start = time.monotonic()
            try:
                with deadline.until(start + 0.05):
                    said = call()
            except Unavailable as error:
                said = str(error)
            assert "the model repository takes too long to respond" == said
            assert time.monotonic() - start < 0.2
        assert not first.done()
        s3.well()
        assert "1" == first.result().version


def test_a_look_that_takes_long_keeps_nobody(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, pass_time: Callable[[float], None]
) -> None:
    monkeypatch.setattr(room, "_PATIENCE", 0.1)
    put_version(s3, 3)
    registry = polling(f"s3://{BUCKET}", seconds=30)
    assert 3 == answer_of(registry)
    put_version(s3, 7)
    s3.hang = 1.0
    pass_time(30)
    start = time.perf_counter()
    for _ in range(5):
        assert 3 == answer_of(registry)
    assert time.perf_counter() - start < 1.0, "one waits a little, the others do not"
    assert 7 == answer_at_last(registry, other_than=3)


def test_a_preloaded_server_stays_ready_when_its_models_are_replaced(
    make_model: MakeModel,
) -> None:
    artifact = make_model("m", MODEL) / "m" / "model.joblib"
    registry = polling(artifact.parent.parent)
    registry.load_all()
    joblib.dump(OTHER, artifact)
    assert 7 == answer_of(registry)
    assert registry.unready() is None


def test_a_first_request_costs_the_same_among_many_models(s3: S3Server, digits: Path) -> None:
    for path in digits.glob("*.*"):
        s3.put(f"models/mnist-svm/{path.name}", path.read_bytes())
    for number in range(30):
        other = {"name": f"m{number}", "implementation": IMPLEMENTATION}
        s3.put(f"models/m{number}/model-settings.json", json.dumps(other).encode())
    registry = opened(f"s3://{BUCKET}/models")
    s3.asked.clear()
    model = registry.get(registry.find("mnist-svm", "v0.1.0"))
    assert 3 == len(s3.asked), "one listing, one settings file, one artifact"
    assert model is registry.get(registry.find("mnist-svm", "v0.1.0"))
    assert 3 == len(s3.asked)
    assert registry.find("m9").settings.version is None
    assert 5 == len(s3.asked), "another listing, another settings file"
    assert "m7" == registry.find("m7").settings.name
    assert model is registry.get(registry.find("mnist-svm")), (
        "found with the others, not loaded again"
    )
    assert 1 == s3.asked.count(f"GET /{BUCKET}/models/mnist-svm/mnist-svm.joblib")


@pytest.mark.parametrize("folder", ["mnist-svm/1", "another"])
def test_a_model_is_found_by_its_name_whatever_its_folder_is_called(
    tmp_path: Path, digits: Path, folder: str
) -> None:
    shutil.copytree(digits, tmp_path / folder)
    registry = Registry(open_repository(str(tmp_path)), Settings())
    assert "v0.1.0" == registry.find("mnist-svm", "v0.1.0").settings.version
    for name, version in (("mnist-svm", "v9"), ("..", "v0.1.0"), ("", ""), ("1", "v0.1.0")):
        with pytest.raises(NotFound):
            registry.find(name, version)


def test_the_index_keeps_a_model_that_was_asked_for_before_it(digits: Path) -> None:
    registry = Registry(open_repository(str(digits.parent)), Settings())
    model = registry.get(registry.find("mnist-svm", "v0.1.0"))
    registry.index()
    assert model is registry.get(registry.find("mnist-svm"))


def test_a_load_before_anything_else_hides_no_other_model(make_model: MakeModel) -> None:
    make_model("a", DummyClassifier().fit([[0]], [0]))
    root = make_model("b", DummyClassifier().fit([[0]], [0]))
    registry = Registry(open_repository(str(root)), Settings())
    registry.load("a")
    assert "b" == registry.find("b").settings.name


# ── settings and artifact of one version ────────────────────────────────────────────────


def put_version(s3: S3Server, constant: int, folder: str = "m", **parameters: str) -> None:
    """Put a new model and the settings that promise its digest, one after the other."""
    model = DummyClassifier(strategy="constant", constant=constant).fit([[0.0]], [constant])
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    declared = {
        "name": "m",
        "implementation": IMPLEMENTATION,
        "parameters": {"uri": "./model.joblib", "extra": {"sha256": digest}, **parameters},
    }
    s3.put(f"{folder}/model.joblib", buffer.getvalue())
    s3.put(f"{folder}/model-settings.json", json.dumps(declared).encode())


def test_a_model_that_was_replaced_before_its_load_is_loaded_with_its_own_settings(
    s3: S3Server,
) -> None:
    """The digest of the old settings would refuse the new artifact; the new ones do not."""
    put_version(s3, 3)
    registry = opened(f"s3://{BUCKET}")
    entry = registry.find("m")
    put_version(s3, 7)
    assert 7 == int(registry.get(entry).estimator.predict([[0.0]])[0])


def test_a_folder_that_was_replaced_before_its_load_is_loaded_with_its_own_settings(
    make_model: MakeModel,
) -> None:
    root = make_model("m", MODEL)
    registry = opened(root)
    entry = registry.find("m")
    joblib.dump(OTHER, root / "m" / "another.joblib")
    (root / "m" / "model.joblib").unlink()
    declare(root / "m", name="m", platform="another", parameters={"uri": "./another.joblib"})
    assert 7 == int(registry.get(entry).estimator.predict([[0.0]])[0])
    assert "another" == entry.settings.platform


def test_a_model_that_goes_away_before_its_load_is_not_found(s3: S3Server) -> None:
    put_version(s3, 3)
    registry = opened(f"s3://{BUCKET}")
    entry = registry.find("m")
    s3.put("m/model.joblib", b"another")
    s3.client.delete_object(Bucket=BUCKET, Key="m/model-settings.json")
    with pytest.raises(NotFound, match="Model m not found"):
        registry.get(entry)


@pytest.mark.parametrize("defect", ["corrupt", "another digest", "missing"])
@pytest.mark.parametrize("mode", ["none", "explicit", "poll"])
def test_an_object_that_failed_to_load_is_read_again_once_it_was_replaced(
    s3: S3Server, pass_time: Callable[[float], None], defect: str, mode: str
) -> None:
    put_version(s3, 3)
    if defect == "missing":
        s3.client.delete_object(Bucket=BUCKET, Key="m/model.joblib")
    else:
        raw = s3.client.get_object(Bucket=BUCKET, Key="m/model.joblib")["Body"].read()
        s3.put("m/model.joblib", b"-corrupt-" if defect == "corrupt" else raw + b"-")
    registry = opened(f"s3://{BUCKET}", model_control_mode=mode, poll_seconds=7200)
    for _ in range(2):
        with pytest.raises(ModelLoadError):
            answer_of(registry)
        left = Path(s3.cache_folder or "/nowhere").glob("*/*")
        assert {".lock"} >= {path.suffix for path in left}, "no bytes that failed"
        pass_time(room.RETRY_AFTER)
    put_version(s3, 7)
    assert 7 == answer_of(registry)


def test_a_good_object_is_read_again_only_after_a_while(s3: S3Server) -> None:
    put_version(s3, 3)
    s3.put("m/model.joblib", b"-corrupt-")
    registry = opened(f"s3://{BUCKET}")
    with pytest.raises(ModelLoadError):
        answer_of(registry)
    put_version(s3, 7)
    s3.asked.clear()
    with pytest.raises(ModelLoadError):
        answer_of(registry)
    assert [] == s3.asked


# ── memory ──────────────────────────────────────────────────────────────────────────────


def test_the_models_that_were_asked_for_the_longest_ago_leave_memory(
    make_model: MakeModel,
) -> None:
    for name in "abc":
        root = make_model(name, MODEL)
    size = (root / "a" / "model.joblib").stat().st_size
    registry = opened(root, max_model_bytes=2 * size)
    model = {name: registry.get(registry.find(name)) for name in "ab"}
    assert model["a"] is registry.get(registry.find("a"))
    registry.get(registry.find("c"))
    assert model["a"] is registry.get(registry.find("a")), "b was asked for before it"
    kept = {name for name in "abc" if registry.find(name).model is not None}
    assert {"a", "c"} == kept
    assert model["b"] is not registry.get(registry.find("b")), "it comes back when it is asked for"
    assert all(ready for ready, _ in states(registry).values())


def test_a_model_larger_than_the_budget_is_served_alone(make_model: MakeModel) -> None:
    make_model("a", MODEL)
    registry = opened(make_model("b", MODEL), max_model_bytes=1)
    for name in "abab":
        assert registry.get(registry.find(name)).methods
        assert [name] == [each for each in "ab" if registry.find(each).model is not None]


def test_versions_that_were_replaced_count_no_more(make_model: MakeModel) -> None:
    """A poll loads beside the old model, which then goes: three fit, and no other has to leave."""
    make_model("other", OTHER)
    artifact = make_model("m", OTHER) / "m" / "model.joblib"
    root, budget = artifact.parent.parent, 3 * artifact.stat().st_size + 100
    registry = opened(root, model_control_mode="poll", poll_seconds=0, max_model_bytes=budget)
    other = registry.get(registry.find("other"))
    for constant in range(6):
        model = DummyClassifier(strategy="constant", constant=constant).fit([[0.0]], [constant])
        joblib.dump(model, artifact)
        assert constant == answer_of(registry)
    assert other is registry.find("other").model


def test_a_preloaded_server_is_ready_though_models_had_to_leave(make_model: MakeModel) -> None:
    make_model("a", MODEL)
    root = make_model("b", MODEL)
    registry = opened(root, load_models_at_startup=True, max_model_bytes=1)
    registry.load_all()
    assert registry.unready() is None


class Exits:
    """An object whose attribute ends the process that looks for it."""

    @property
    def fit(self) -> None:
        raise SystemExit


def test_a_model_that_would_end_the_process_while_it_is_loaded_does_not_load(
    make_model: MakeModel,
) -> None:
    make_model("m", Exits())
    registry = opened(make_model("other", MODEL))
    with pytest.raises(ModelLoadError, match=r"^Model m failed to load: .*\(SystemExit\)"):
        registry.get(registry.find("m"))
    assert [ModelLoadError] == [type(each) for each in registry.load_all()]
    assert registry.get(registry.find("other")).methods


class Huge:
    """Unpickles to more than there is."""

    def __reduce__(self) -> Any:
        return operator.mul, (b"x", 2**62)


def test_a_model_that_memory_cannot_hold_says_so_and_the_others_are_served(
    make_model: MakeModel,
) -> None:
    make_model("huge", Huge())
    registry = opened(make_model("m", MODEL))
    with pytest.raises(ModelLoadError, match=r"^Model huge failed to load: it needs more memory"):
        registry.get(registry.find("huge"))
    assert registry.get(registry.find("m")).methods


# ── threads and processes ───────────────────────────────────────────────────────────────


def test_who_waits_for_a_load_that_fails_fails_with_it(s3: S3Server) -> None:
    put_version(s3, 3)
    registry = opened(f"s3://{BUCKET}")
    entry = registry.find("m")
    s3.fault, s3.hang = (503, "SlowDown"), 0.2
    s3.asked.clear()

    def get(_: int) -> str:
        with pytest.raises(Unavailable) as caught:
            registry.get(entry)
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        sentences = set(pool.map(get, range(8)))
    assert 1 == len(sentences)
    assert 3 == len(s3.asked), "of one try"
    s3.well()
    assert registry.get(entry).methods


def test_an_unload_during_a_prediction_does_not_break_it(make_model: MakeModel) -> None:
    slow = FunctionTransformer(np.vectorize(time.sleep, otypes=[float]))
    registry = opened(make_model("m", slow))
    model = registry.get(registry.find("m"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(model.estimator.transform, np.array([[0.3]]))
        registry.unload("m")
        with pytest.raises(NotFound):
            registry.find("m")
        assert (1, 1) == running.result().shape


def test_a_swap_under_load_gives_the_old_answer_or_the_new_and_no_error(
    make_model: MakeModel,
) -> None:
    artifact = make_model("m", MODEL) / "m" / "model.joblib"
    registry = polling(artifact.parent.parent)
    beside = artifact.with_suffix(".new")
    joblib.dump(OTHER, beside)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(lambda: [answer_of(registry) for _ in range(200)]) for _ in range(4)]
        beside.replace(artifact)
        answers = {answer for each in running for answer in each.result()}
    assert answers <= {0, 7}
    assert 7 == answer_of(registry)


def test_loads_unloads_and_questions_at_once_leave_a_registry_that_serves(
    make_model: MakeModel,
) -> None:
    for name in "abcd":
        root = make_model(name, MODEL)
    registry = opened(root, max_model_bytes=1)

    def ask(number: int) -> None:
        name = "abcd"[number % 4]
        with suppress(NotFound):
            if number % 7 == 0:
                registry.unload(name)
            elif number % 3 == 0:
                registry.load(name)
            elif number % 5 == 0:
                registry.index()
            else:
                assert registry.get(registry.find(name)).methods

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(400)))
    for name in "abcd":
        registry.load(name)
        assert registry.get(registry.find(name)).methods


@ONLY_DISK
def test_processes_that_share_a_machine_download_a_model_once_and_load_it_once_each(
    s3: S3Server, repository: Path
) -> None:
    """As in an environment of Lambda that runs several, each with many first requests."""
    for file in (repository / "mnist-svm").iterdir():
        s3.put(f"mnist-svm/{file.name}", file.read_bytes())
    s3.asked.clear()
    code = (
        "import json, sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from mlserverless.main import handler\n"
        "event = json.load(open(sys.argv[1]))\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    answers = set(pool.map(lambda _: handler(event, None)['body'], range(8)))\n"
        "(answer,) = answers\n"
        "print(json.loads(answer)['outputs'][0]['data'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "events" / "http-api-infer.json")]
    environment = {
        "PYTHONPATH": str(ROOT / "handler"),
        "MLSERVER_MODEL_REPOSITORY_ROOT": f"s3://{BUCKET}",
        **s3.environment,
    }
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(3)
    ]
    said = [process.stdout.readline() for process in processes if process.stdout]
    lines = [process.communicate()[1] for process in processes]
    assert ["[8]\n"] * 3 == said
    assert [1] * 3 == [each.count("model mnist-svm loaded") for each in lines]
    assert 1 == s3.asked.count(f"GET /{BUCKET}/mnist-svm/mnist-svm.joblib")
    assert 7 == len(s3.asked), "of each one listing and one settings file, and one artifact"
