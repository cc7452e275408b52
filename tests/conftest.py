"""What several rooms' tests stand on: the documented model, an S3 server, a model maker."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import pytest

import sam
from aws import S3Server
from conformance.models import train
from emulator import Layout, built_layout, python_of_lambda, source_layout

# it takes hooks of the interpreter for its log; those that pytest sets after it are wanted here
import mlserverless.main  # noqa: F401 # isort: skip

# the handler has set it, and servers that the tests start must choose themselves
os.environ.pop("JOBLIB_MULTIPROCESSING", None)

ROOT = Path(__file__).parent.parent
IMPLEMENTATION = "mlserver_sklearn.SKLearnModel"

MakeModel = Callable[..., Path]


LOGS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the environment, and keep all log output for the test that comes last."""
    # a shell starts background jobs with SIGINT ignored, and so would all processes of the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # the makes of the tests are a user's own, also under `make test`
    for variable in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        os.environ.pop(variable, None)
    config.stash[LOGS] = []
    config.pluginmanager.register(_Logs(config.stash[LOGS]))


class _Logs:
    def __init__(self, kept: list[str]) -> None:
        self.kept = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.kept += [text for name, text in report.sections if name.startswith("Captured")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the container tests out where there is no Docker, and say so; CI has one."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)
    if os.environ.get("CI") or sam.docker_answers():
        return
    left_out = pytest.mark.skip(reason="Docker does not answer: left out")
    for item in items:
        if item.get_closest_marker("docker"):
            item.add_marker(left_out)


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `caplog` hear what the handler, once it is imported, keeps to its own journal."""
    monkeypatch.setattr(logging.getLogger("mlserverless"), "propagate", True)


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder of the documented digits model, trained by `make models`."""
    folder = ROOT / "models" / "mnist-svm"
    assert (folder / "mnist-svm.joblib").exists(), "run `make models` first, or `make test`"
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model of the recording, trained."""
    return train(tmp_path_factory.mktemp("conformance"))


@pytest.fixture
def repository(tmp_path: Path, digits: Path) -> Path:
    """A fresh repository with the digits model alone."""
    root = tmp_path / "repository"
    shutil.copytree(digits, root / "mnist-svm", ignore=shutil.ignore_patterns("*.py"))
    return root


def declare(folder: Path, **settings: Any) -> None:
    """Write a model's settings, or write them anew."""
    parameters = {"uri": "./model.joblib", **settings.pop("parameters", {})}
    declared = {"implementation": IMPLEMENTATION, "parameters": parameters}
    (folder / "model-settings.json").write_text(json.dumps(declared | settings))


def put_model(root: Path, name: str, artefact: Any, /, **settings: Any) -> Path:
    """Put an estimator (or any object, bytes, or nothing) under `root` as a model."""
    folder = root / name
    folder.mkdir(parents=True)
    declare(folder, **{"name": name, **settings})
    if isinstance(artefact, bytes):
        (folder / "model.joblib").write_bytes(artefact)
    elif artefact is not None:
        joblib.dump(artefact, folder / "model.joblib")
    return root


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """`put_model` for a fresh repository of one test."""
    return functools.partial(put_model, tmp_path / "repository")


@pytest.fixture(params=["memory", "disk"])
def s3(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[S3Server]:
    """An empty S3 and the environment for it, once without a download cache and once with one.

    `ONLY_MEMORY` and `ONLY_DISK` mark a test for which one of them is enough.
    """
    cache_folder = str(tmp_path_factory.mktemp("cache")) if request.param == "disk" else ""
    with S3Server(cache_folder=cache_folder).running() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


ONLY_MEMORY = pytest.mark.parametrize("s3", ["memory"], indirect=True)
ONLY_DISK = pytest.mark.parametrize("s3", ["disk"], indirect=True)


@pytest.fixture(scope="session")
def layout(digits: Path) -> Layout:
    """The built artefacts under Lambda's Python, else the source tree under this one."""
    assert digits.exists()
    python = python_of_lambda()
    if python is None:
        warnings.warn(
            pytest.PytestWarning("no CPython 3.13 here: the emulator runs the source tree"),
            stacklevel=1,
        )
        return source_layout()
    return built_layout(python)
