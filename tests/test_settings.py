"""Settings have MLServer's names and its precedence: file, environment, default."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlserverless.errors import SettingsError
from mlserverless.settings import (
    ModelSettings,
    Settings,
    disable_worker_processes,
    limit_threads,
)

IMPLEMENTATION = {"implementation": "mlserver_sklearn.SKLearnModel"}
LONGER = {"implementation": "mlserver_sklearn.sklearn.SKLearnModel"}


def parsed(declared: object, **environment: str) -> ModelSettings:
    raw = declared if isinstance(declared, bytes) else json.dumps(declared).encode()
    return ModelSettings.parse(
        raw, location="/models/m", folder_name="folder", environment=environment
    )


def test_defaults_hold_where_nobody_said_anything(tmp_path: Path) -> None:
    assert Settings() == Settings.load(str(tmp_path), {})


def test_a_file_wins_over_the_environment_and_the_environment_over_a_doors_default(
    tmp_path: Path,
) -> None:
    (tmp_path / "settings.json").write_text('{"http_port": 1, "unknown": {}}')
    environment = {"MLSERVER_HTTP_PORT": "2", "MLSERVER_HOST": "0.0.0.0"}  # noqa: S104 - a value only
    settings = Settings.load(str(tmp_path), environment, host="door", server_name="door")
    assert (1, "0.0.0.0", "door") == (settings.http_port, settings.host, settings.server_name)  # noqa: S104


@pytest.mark.parametrize("value", ["true", "True", True, "1", 1])
def test_truth_may_be_spelled_as_the_documented_example_spells_it(
    tmp_path: Path, value: object
) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"debug": value}))
    assert Settings.load(str(tmp_path), {}).debug is True


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        ("[]", "settings.json must be a JSON object"),
        ("{", "settings.json is not valid JSON"),
        ('{"debug": "maybe"}', "settings.json: debug must be true or false"),
        ('{"http_port": -1}', "settings.json: http_port must be a whole number"),
        ('{"http_port": "x"}', "settings.json: http_port must be a whole number"),
        ('{"host": 1}', "settings.json: host must be a string"),
        ('{"model_control_mode": "x"}', "settings.json: model_control_mode must be one of"),
        ('{"cors_settings": []}', "settings.json: cors_settings must be an object"),
        ('{"cors_settings": "{"}', "settings.json: cors_settings is not valid JSON"),
        ('{"cors_settings": {"allow_origins": "*"}}', "cors_settings.allow_origins must be a list"),
        ('{"cors_settings": {"max_age": -1}}', "cors_settings.max_age must be a whole number"),
        ('{"cors_settings": {"allow_credentials": "?"}}', "allow_credentials must be true or"),
        (
            '{"cors_settings": {"allow_origin_regex": "("}}',
            "cors_settings.allow_origin_regex is not a regular expression: missing \\)",
        ),
    ],
)
def test_a_setting_that_cannot_be_understood_is_named(
    tmp_path: Path, declared: str, sentence: str
) -> None:
    (tmp_path / "settings.json").write_text(declared)
    with pytest.raises(SettingsError, match=sentence):
        Settings.load(str(tmp_path), {})


def test_a_settings_file_that_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "settings.json").mkdir()
    with pytest.raises(SettingsError, match=r"settings\.json cannot be read"):
        Settings.load(str(tmp_path), {})


def test_the_documented_model_settings_are_read() -> None:
    settings = parsed(
        {
            "name": "mnist-svm",
            **IMPLEMENTATION,
            "parameters": {"uri": "./mnist-svm.joblib", "version": "v0.1.0"},
        }
    )
    assert ("mnist-svm", "./mnist-svm.joblib", "v0.1.0", None) == (
        settings.name,
        settings.uri,
        settings.version,
        settings.problem,
    )


def test_the_implementation_may_be_named_by_its_package_or_by_its_module() -> None:
    """mlserver_sklearn/sklearn.py defines the class, and its documentation has both."""
    assert parsed(LONGER) == parsed(IMPLEMENTATION)
    assert parsed(LONGER).problem is None
    assert parsed({}, MLSERVER_MODEL_IMPLEMENTATION=LONGER["implementation"]).problem is None
    for other in ("mlserver_sklearn.sklearn", "sklearn.SKLearnModel", "mlserver_sklearn.Other"):
        problem = parsed({"implementation": other}).problem
        assert f"implementation {other} is not served here" in (problem or "")


def test_a_nameless_model_is_called_as_its_folder() -> None:
    assert parsed(IMPLEMENTATION).name == "folder"


def test_variables_fill_in_what_the_file_leaves_out() -> None:
    settings = parsed(
        {**IMPLEMENTATION, "parameters": {"uri": "./a"}},
        MLSERVER_MODEL_URI="./b",
        MLSERVER_MODEL_VERSION="7",
        MLSERVER_MODEL_EXTRA='{"predict_fn": "predict_proba"}',
    )
    assert ("./a", "7", "predict_proba") == (settings.uri, settings.version, settings.predict_fn)


def test_variables_alone_can_describe_a_model() -> None:
    environment = {
        "MLSERVER_MODEL_NAME": "alone",
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_sklearn.SKLearnModel",
        "MLSERVER_MODEL_URI": "/models/alone.joblib",
    }
    alone = ModelSettings.from_environment("/", environment)
    assert alone is not None
    assert ("alone", "/models/alone.joblib", None) == (alone.name, alone.uri, alone.problem)
    assert ModelSettings.from_environment("/", {}) is None


TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        (b"{", "model-settings.json is not valid JSON"),
        ([], "model-settings.json must be a JSON object"),
        ({"name": 1}, "model-settings.json: name must be a string"),
        ({}, "model-settings.json names no implementation"),
        (
            {"implementation": "mlserver_xgboost.XGBoostModel"},
            "mlserver_xgboost.XGBoostModel is not",
        ),
        ({"parameters": []}, "parameters must be an object"),
        ({"versions": "1"}, "versions must be a list of strings"),
        ({"versions": [1]}, "versions must be a string"),
        ({"inputs": {}}, "inputs must be a list"),
        ({"inputs": [1]}, "inputs must be a list of objects"),
        ({"inputs": [{**TENSOR, "datatype": "FP8"}]}, "datatype must be one of"),
        ({"inputs": [{**TENSOR, "shape": 4}]}, "shape must be a list of whole numbers"),
        ({"inputs": [{**TENSOR, "parameters": 4}]}, "inputs.parameters must be an object"),
        ({"parameters": {"extra": {"sha256": 1}}}, "parameters.extra.sha256 must be a string"),
        (
            {"parameters": {"extra": {"method_kwargs": ["predict"]}}},
            "parameters.extra.method_kwargs must be an object",
        ),
        (
            {"parameters": {"extra": {"method_kwargs": {"predict": "return_std"}}}},
            "parameters.extra.method_kwargs.predict must be a list of strings",
        ),
        (
            {"parameters": {"extra": {"method_kwargs": {"predict": [1]}}}},
            "parameters.extra.method_kwargs.predict must be a string",
        ),
        (
            {"parameters": {"extra": {"transform_output": "arrow"}}},
            "parameters.extra.transform_output must be one of default, pandas, polars",
        ),
    ],
)
def test_a_broken_file_is_a_model_with_a_problem_never_an_error(
    declared: Any, problem: str
) -> None:
    assert problem in (parsed(declared).problem or "")


def test_the_settings_of_predictions_are_read() -> None:
    extra = {"method_kwargs": {"predict": ["return_std"]}, "transform_output": "pandas"}
    settings = parsed({**IMPLEMENTATION, "parameters": {"extra": extra}})
    assert settings.problem is None
    assert {"predict": ("return_std",)} == settings.method_kwargs
    assert "pandas" == settings.transform_output
    plain = parsed(IMPLEMENTATION)
    assert ({}, None) == (plain.method_kwargs, plain.transform_output)


def test_a_variable_that_is_no_json_is_named() -> None:
    settings = parsed(IMPLEMENTATION, MLSERVER_MODEL_INPUTS="x")
    assert settings.problem == "MLSERVER_MODEL_INPUTS is not valid JSON"


# ── the table of MLServer's fields ──────────────────────────────────────────────────────

PAGE = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
SERVER_TABLE, MODEL_TABLE = (
    dict(re.findall(r"^\| `([\w.]+)` \| (same|ignored|refused) \|", part, re.MULTILINE))
    for part in PAGE.split("## model-settings.json")
)
OUR_OWN = {
    "model_control_mode",
    "poll_seconds",
    "require_sha256",
    "allow_version_mismatch",
    "max_body_bytes",
    "max_model_bytes",
    "cache_folder",
    "fail_snapshot_on_error",
    "log_level",
}


def test_the_table_says_same_of_what_the_code_reads_and_of_nothing_else() -> None:
    read = {each.name for each in dataclasses.fields(Settings)} - OUR_OWN
    assert read == {name for name, here in SERVER_TABLE.items() if here == "same"}
    of_a_model = {"name", "platform", "versions", "inputs", "outputs"}
    of_parameters = {"uri", "version", "content_type", "extra"}
    assert of_a_model | of_parameters < {each.name for each in dataclasses.fields(ModelSettings)}
    assert (
        of_a_model
        | {"implementation", "parameters"}
        | {f"parameters.{name}" for name in of_parameters}
    ) == {name for name, here in MODEL_TABLE.items() if here == "same"}


def test_the_page_documents_every_setting_of_our_own() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| `(MLSERVERLESS_\w+)` \| \S", PAGE, re.MULTILINE))
    assert documented == {
        each.name: each.metadata["variable"]
        for each in dataclasses.fields(Settings)
        if each.name in OUR_OWN
    }


def test_what_the_table_ignores_may_be_there_and_changes_nothing(tmp_path: Path) -> None:
    strange = {"a": ["value"]}
    ignored = [name for name, here in SERVER_TABLE.items() if here == "ignored"]
    (tmp_path / "settings.json").write_text(json.dumps(dict.fromkeys(ignored, strange)))
    environment = {f"MLSERVER_{name.upper()}": "x" for name in ignored}
    assert Settings() == Settings.load(str(tmp_path), environment)

    names = [name for name, here in MODEL_TABLE.items() if here == "ignored"]
    fields = dict.fromkeys((name for name in names if "." not in name), strange)
    of_parameters = {name.removeprefix("parameters.") for name in names if "." in name}
    declared = {**IMPLEMENTATION, **fields, "parameters": dict.fromkeys(of_parameters, strange)}
    assert parsed(IMPLEMENTATION) == parsed(declared)


@pytest.mark.parametrize(
    ("memory", "threads"),
    [(None, "1"), ("512", "1"), ("1769", "1"), ("3538", "2"), ("10240", "5"), ("much", "1")],
)
def test_as_many_threads_as_lambda_gives_processors(
    monkeypatch: pytest.MonkeyPatch, memory: str | None, threads: str
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the owner's own
    if memory is not None:
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory)
    limit_threads()
    assert (threads, "7") == (os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize("prepare", [limit_threads, disable_worker_processes])
@pytest.mark.parametrize(("given", "expected"), [(None, "0"), ("1", "1")])
def test_joblib_starts_no_processes_unless_the_operator_allows_it(
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[], None],
    given: str | None,
    expected: str,
) -> None:
    monkeypatch.delenv("JOBLIB_MULTIPROCESSING", raising=False)
    if given is not None:
        monkeypatch.setenv("JOBLIB_MULTIPROCESSING", given)
    prepare()
    assert expected == os.environ["JOBLIB_MULTIPROCESSING"]
