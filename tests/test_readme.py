"""The README is a promise: every command in it is run, by a test or by `.ci/run`."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from doors import local_server, over_http
from emulator import free_port
from mlserverless.settings import Settings

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_command_is_one_that_something_runs() -> None:
    here = {"make serve", ".venv/bin/mlserverless start models", "make build"}
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
            (client,) = blocks("python")
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


def test_a_folder_of_models_is_served(digits: Path) -> None:
    with local_server(digits.parent) as url:
        assert {"ready": True} == over_http(url)("GET", "/v2/health/ready").json


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_every_link_within_the_project_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert [] == [link for link in links if not (path.parent / link).exists()]


def test_the_table_of_settings_is_the_code() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert [(each.name, each.metadata["variable"]) for each in dataclasses.fields(Settings)] == (
        documented
    )
