"""The README is a promise: every command in it is run, by a test or by `.ci/run`."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.credentials import Credentials

import sam
from conftest import ROOT
from doors import local_server, over_http
from emulator import free_port
from gateway import gateway
from mlserverless import main
from mlserverless.settings import Settings

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_command_is_one_that_something_runs() -> None:
    here = {"make serve", ".venv/bin/mlserverless start models", "make build", "make doctor"}
    here |= {"make local"}
    installed = {"pip install .", "python models/mnist-svm/train.py", "mlserverless start models"}
    here |= installed  # by test_package.py, in a fresh environment
    by_ci = {"make test"}
    assert here | by_ci == {line for block in blocks("sh") for line in block.splitlines()}
    assert by_ci <= set((ROOT / ".ci" / "run").read_text().splitlines())


def test_make_serve_serves_asks_and_shows_and_the_documented_client_is_answered() -> None:
    port = str(free_port())
    with subprocess.Popen(
        ["make", "serve"],
        cwd=ROOT,
        env={**os.environ, "MLSERVER_HTTP_PORT": port},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as serving:
        assert serving.stdout is not None
        try:
            said = ""
            while "the digit is 8" not in said:
                line = serving.stdout.readline()
                assert line, said
                said += line
            assert f"serving 1 model(s) of models/mnist-svm on http://127.0.0.1:{port}" in said
            assert '"data":[8]' in said
            client, _ = blocks("python")
            done = subprocess.run(
                [sys.executable, "-c", client.replace("8080", port)],
                capture_output=True,
                text=True,
                check=True,
            )
            assert "'data': [8]" in done.stdout
        finally:
            os.killpg(serving.pid, signal.SIGINT)  # Ctrl-C reaches the whole group
    assert serving.returncode is not None


@pytest.mark.docker
def test_make_local_answers_the_documented_request_in_a_container(tmp_path: Path) -> None:
    port = str(free_port())
    log = tmp_path / "log"
    with (
        sam.image(),
        log.open("wb") as file,
        subprocess.Popen(
            ["make", "local", f"PORT={port}"],
            cwd=ROOT,
            env=sam.environment(),
            stdout=file,
            stderr=file,
            start_new_session=True,
        ) as running,
    ):
        try:
            sam.wait_for(f"http://127.0.0.1:{port}", running, log.read_text)
            client, _ = blocks("python")
            done = subprocess.run(
                [sys.executable, "-c", client.replace("8080", port)],
                capture_output=True,
                text=True,
                check=True,
            )
            assert "'data': [8]" in done.stdout
        finally:
            os.killpg(running.pid, signal.SIGTERM)  # a background job is deaf to Ctrl-C
            running.wait(timeout=60)
            sam.remove(sam.containers(log.read_text()))
    assert "stand-in" in log.read_text() or "AWS's own" in log.read_text()


def test_make_doctor_finds_the_models_well() -> None:
    done = subprocess.run(["make", "doctor"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "ok       mnist-svm v0.1.0 loads" in done.stdout.splitlines()


TOKEN = "token of the test"  # noqa: S105 - of nobody
SIGNER = Credentials("AKIDEXAMPLE", "secret of the test", TOKEN)
AWS = {
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": SIGNER.access_key,
    "AWS_SECRET_ACCESS_KEY": SIGNER.secret_key,
    "AWS_SESSION_TOKEN": TOKEN,
}


@pytest.fixture
def deployed(digits: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The environment of a client of the API; what is not signed is refused if so asked."""
    door = main.Door(Settings(model_repository_root=str(digits)))
    with gateway(door, SIGNER if request.param == "AWS_IAM" else None) as url:
        yield {**os.environ, **AWS, "URL": url}


@pytest.mark.parametrize("deployed", ["AWS_IAM"], indirect=True)
def test_the_signed_requests_are_answered_and_the_open_one_is_not(deployed: dict[str, str]) -> None:
    signed, unsigned = blocks("bash")
    _, client = blocks("python")
    said = [
        subprocess.run(line, cwd=ROOT, env=deployed, capture_output=True, text=True, check=True)
        for line in (["bash", "-c", signed], [sys.executable, "-c", client])
    ]
    assert '"data":[8]' in said[0].stdout
    assert "'data': [8]" in said[1].stdout
    for environment in (deployed | {"AWS_SECRET_ACCESS_KEY": "another"}, deployed):
        line = signed if environment is not deployed else unsigned
        refused = subprocess.run(
            ["bash", "-c", line],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Error code: 403" in refused.stdout


@pytest.mark.parametrize("deployed", ["NONE"], indirect=True)
def test_the_open_request_is_answered_where_the_api_is_open(deployed: dict[str, str]) -> None:
    _, unsigned = blocks("bash")
    done = subprocess.run(
        ["bash", "-c", unsigned], cwd=ROOT, env=deployed, capture_output=True, text=True, check=True
    )
    assert '"data":[8]' in done.stdout


def test_a_folder_of_models_is_served(digits: Path) -> None:
    with local_server(digits.parent) as url:
        assert {"ready": True} == over_http(url)("GET", "/v2/health/ready").json


@pytest.mark.parametrize(
    "path",
    [
        *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ],
    ids=lambda path: path.name,
)
def test_every_link_within_the_project_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert [] == [link for link in links if not (path.parent / link).exists()]


def test_every_test_that_the_page_on_reliability_names_is_there() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 15
    assert [] == [name for name in named if f"def {name}(" not in sources]


def test_the_table_of_settings_is_the_code() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert [(each.name, each.metadata["variable"]) for each in dataclasses.fields(Settings)] == (
        documented
    )
