"""The package as its users get it: metadata, wheel, and `mlserverless start` after an install."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from samtranslator.yaml_helper import yaml_parse

import mlserverless
from conftest import ROOT
from mlserverless import __main__

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
README = (ROOT / "README.md").read_text()
SUPPORTED_PYTHONS = re.findall(
    r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE
)
LAMBDA_ONLY = {"snapshot_restore_py"}  # Lambda's runtime has it; only SnapStart imports it


def parse_yaml(path: Path) -> Any:
    return yaml_parse(path.read_text())


def find_python(version: str) -> str | None:
    """Return an interpreter of this version outside of virtual environments, if there is one."""
    done = subprocess.run(
        ["uv", "python", "find", "--no-project", "--system", version],
        env={**os.environ, "PYENV_VERSION": version},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def list_pythons() -> list[str]:
    """Return the oldest and the newest supported version that is installed here."""
    found = [version for version in SUPPORTED_PYTHONS if find_python(version) is not None]
    return list(dict.fromkeys(found[:1] + found[-1:]))


def configure_uv() -> dict[str, str]:
    """Return an environment in which uv uses the index of pip, and no Python path of this run."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    indexes = re.findall(r"^[a-z:]*\.index-url='(.*)'$", listed, re.MULTILINE)
    base = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"UV_SYSTEM_CERTS": "1"} | base | ({"UV_DEFAULT_INDEX": indexes[-1]} if indexes else {})


def test_the_version_is_defined_once() -> None:
    assert "version" in PROJECT["dynamic"]
    assert {"attr": "mlserverless.__version__"} == PYPROJECT["tool"]["setuptools"]["dynamic"][
        "version"
    ]
    assert mlserverless.__version__ == metadata.version("mlserverless")


def test_the_matrix_of_the_workflow_is_the_supported_pythons() -> None:
    workflow = parse_yaml(ROOT / ".github" / "workflows" / "ci.yml")
    assert SUPPORTED_PYTHONS == workflow["jobs"]["check"]["strategy"]["matrix"]["python"]
    assert f">={SUPPORTED_PYTHONS[0]}" == PROJECT["requires-python"]
    security = (ROOT / "SECURITY.md").read_text()
    assert f"Python {SUPPORTED_PYTHONS[0]} to {SUPPORTED_PYTHONS[-1]}" in security


def test_the_workflow_uses_pinned_actions_and_may_only_read() -> None:
    workflow = parse_yaml(ROOT / ".github" / "workflows" / "ci.yml")
    jobs: list[dict[str, Any]] = list(workflow["jobs"].values())
    steps = [step for job in jobs for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert len(actions) > 2
    assert [] == [each for each in actions if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", each)]
    assert {"contents": "read"} == workflow["permissions"]
    assert [] == [job for job in jobs if "permissions" in job]
    assert [] == [
        step
        for step in steps
        if "checkout" in step.get("uses", "") and step["with"]["persist-credentials"] is not False
    ]
    assert ".ci/run" in [step.get("run") for step in steps]


def test_every_issue_form_has_what_github_requires() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert ["bug.yml", "config.yml", "feature.yml"] == [form.name for form in forms]
    for form in (parse_yaml(path) for path in forms if path.name != "config.yml"):
        assert {"name", "description", "body"} <= set(form)
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)


def test_every_imported_package_is_a_dependency() -> None:
    imported = set()
    for path in (ROOT / "handler" / "mlserverless").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).partition(".")[0])
    third_party = imported - sys.stdlib_module_names - LAMBDA_ONLY - {"mlserverless"}
    distributions = metadata.packages_distributions()
    needed = {distributions[module][0].lower() for module in third_party}
    needed = {name.replace("_", "-") for name in needed} - {"botocore"}  # comes with boto3
    declared = {Requirement(each).name for each in PROJECT["dependencies"]}
    assert len(needed) > 8
    assert set() == needed - declared


def test_every_dependency_has_a_lower_bound_and_no_other_and_allows_the_pinned_version() -> None:
    pins = (ROOT / "requirements" / "dev.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", pins, re.MULTILINE))
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert [">="] == [each.operator for each in requirement.specifier], requirement
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_the_installed_command_runs_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="mlserverless")
    with pytest.raises(SystemExit) as stopped:
        command.load()(["--version"])
    assert 0 == stopped.value.code
    assert f"mlserverless {mlserverless.__version__}\n" == capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("uvicorn", "the Python package uvicorn is not installed: install it with: pip install "),
        ("starlette.types", "the Python package starlette is not installed: install it with: "),
        ("socket", "Python's module socket is not available: run mlserverless on Linux, or in WSL"),
    ],
)
def test_a_missing_module_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str, message: str
) -> None:
    monkeypatch.delitem(sys.modules, "mlserverless.cli", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    assert 2 == __main__.main(["--version"])
    error = capsys.readouterr().err
    assert error.startswith(f"mlserverless: {message}")
    assert 1 == error.count("\n")


def test_a_missing_module_of_our_own_is_not_reported_as_a_dependency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlserverless.cli", None)
    with pytest.raises(ModuleNotFoundError):
        __main__.main(["--version"])


def test_without_any_installed_package_the_first_missing_one_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "handler" / "mlserverless", tmp_path / "mlserverless")
    done = subprocess.run(
        [sys.executable, "-S", "-m", "mlserverless", "start", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 2 == done.returncode
    pattern = r"mlserverless: the Python package (\w+) is not installed: install it with: "
    found = re.fullmatch(pattern + r"pip install '\1'\n", done.stderr)
    assert found is not None, done.stderr
    assert found[1] in {Requirement(each).name for each in PROJECT["dependencies"]}


@pytest.fixture(scope="module")
def distributions() -> tuple[Path, Path]:
    """Run `make dist`; return the wheel and the source archive."""
    folder = ROOT / "build" / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["make", "dist"], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    (archive,) = folder.glob("*.tar.gz")
    return wheel, archive


def test_the_wheel_has_the_license_and_the_type_marker_and_no_tests(
    distributions: tuple[Path, Path],
) -> None:
    wheel, archive = distributions
    information = f"mlserverless-{mlserverless.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        license_text = file.read(f"{information}/licenses/LICENSE")
    assert (ROOT / "LICENSE").read_bytes() == license_text
    sources = {
        path.relative_to(ROOT / "handler").as_posix()
        for path in (ROOT / "handler" / "mlserverless").rglob("*.py")
    }
    packaged = {name for name in names if not name.startswith(f"{information}/")}
    assert sources | {"mlserverless/py.typed"} == packaged
    with tarfile.open(archive) as tar:
        assert [] == [name for name in tar.getnames() if "/tests/" in name]


def install(wheel: Path, venv: Path, version: str) -> dict[str, str]:
    """Install the wheel into a new environment; return the variables that activate it.

    The oldest Python gets the oldest version that the range of each dependency allows.
    """
    environment = configure_uv()
    resolution = "lowest-direct" if version == SUPPORTED_PYTHONS[0] else "highest"
    python = str(find_python(version))
    target = ["--python", str(venv / "bin" / "python"), "--resolution", resolution]
    for command in (
        ["uv", "venv", "--no-project", "--python", python, str(venv)],
        ["uv", "pip", "install", *target, str(wheel)],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert 0 == done.returncode, done.stderr
    return environment | {"PATH": f"{venv / 'bin'}:{environment['PATH']}"}


@pytest.mark.network
@pytest.mark.parametrize("version", list_pythons())
def test_the_installed_wheel_serves_the_digits_example_as_the_readme_says(
    distributions: tuple[Path, Path], tmp_path: Path, version: str
) -> None:
    environment = install(distributions[0], tmp_path / "venv", version)
    environment["MLSERVER_HTTP_PORT"] = "0"
    shutil.copytree(
        ROOT / "models" / "mnist-svm",
        tmp_path / "models" / "mnist-svm",
        ignore=shutil.ignore_patterns("*.joblib"),
    )
    (commands,) = re.findall(r"```sh\n(pip install .*?)```", README, re.DOTALL)
    _, train, start = commands.splitlines()
    doctor = "python -m mlserverless doctor models"
    for command in (train, doctor):
        done = subprocess.run(
            command.split(),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    assert "ok       mnist-svm v0.1.0 loads" in done.stdout.splitlines()

    client = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    with subprocess.Popen(
        start.split(), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            port = re.findall(r"http://127\.0\.0\.1:(\d+)", line)
            assert port, f"the server did not start: {line}"
            response = subprocess.run(
                [sys.executable, "-c", client.replace("8080", port[0])],
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            server.send_signal(signal.SIGINT)
    assert "'data': [8]" in response.stdout
    assert 0 == server.returncode
