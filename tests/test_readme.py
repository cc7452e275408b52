"""The README is a promise: every command in it is run, by a test or by `.ci/run`."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from botocore.credentials import Credentials
from sklearn.dummy import DummyClassifier

import sam
from conftest import ROOT, put_model
from doors import local_server, over_http
from emulator import free_port
from gateway import gateway
from gateway import serving as serving_handler
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


def start_make_serve(port: str, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start `make serve` as the leader of a new process group."""
    return subprocess.Popen(
        ["make", "serve"],
        cwd=ROOT,
        env={**os.environ, "MLSERVER_HTTP_PORT": port},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def test_make_serve_serves_asks_and_shows_and_the_documented_client_is_answered() -> None:
    port = str(free_port())
    with start_make_serve(port) as serving:
        assert serving.stdout is not None
        try:
            output = ""
            while "predict: 8\n" not in output:
                line = serving.stdout.readline()
                assert line, output
                output += line
            assert f"serving 1 model(s) of models/mnist-svm on http://127.0.0.1:{port}" in output
            assert '"data":[8]' in output
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
    assert not is_running(serving.pid)


def is_running(group: int) -> bool:
    """Whether a process of this group is left after half a second."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def other_program() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that is not ours: its port, and the paths that it was sent."""
    paths: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            body = bodies.get(self.path, b"<html>hello</html>")
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    bodies = {"/json/v2/models/mnist-svm/versions/v0.1.0": b'{"name": "other"}'}
    bodies["/list/v2/models/mnist-svm/versions/v0.1.0"] = b"[]"
    with serving_handler(Other) as url:
        yield url.rpartition(":")[2].strip("/"), paths


def test_make_serve_sends_nothing_to_another_program_on_its_port(
    other_program: tuple[str, list[str]],
) -> None:
    port, paths = other_program
    with start_make_serve(port, subprocess.PIPE) as serving:
        output, errors = serving.communicate(timeout=60)
    assert 0 != serving.returncode
    assert "" == output
    lines = [line for line in errors.splitlines() if not line.startswith("make: ")]
    (line,) = lines
    assert line == (
        f"mlserverless: cannot listen on 127.0.0.1:{port}: another program has taken the port: "
        "stop it, or set MLSERVER_HTTP_PORT to another port"
    )
    assert [] == paths
    assert not is_running(serving.pid)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_make_serve_when_it_is_ended_before_the_first_request(
    by: signal.Signals,
) -> None:
    with start_make_serve(str(free_port())) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline().startswith("serving 1 model(s)")
        if by == signal.SIGINT:
            os.killpg(serving.pid, by)  # Ctrl-C reaches the whole group
        else:
            serving.send_signal(by)
        try:
            serving.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(serving.pid, signal.SIGKILL)  # leaving the block waits without a limit
            raise
    assert not is_running(serving.pid)


@pytest.mark.parametrize("base", ["", "/json", "/list"])
def test_the_first_request_sends_no_data_to_a_server_without_the_model(
    other_program: tuple[str, list[str]], base: str
) -> None:
    port, paths = other_program
    done = first_request(f"http://127.0.0.1:{port}{base}")
    assert (1, "") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines())
    assert done.stderr.startswith(f"http://127.0.0.1:{port}{base} is ")
    assert [f"{base}/v2/models/mnist-svm/versions/v0.1.0"] == paths


def test_the_first_request_gives_up_at_once_if_nothing_listens() -> None:
    done = first_request(f"http://127.0.0.1:{free_port()}")
    assert (1, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines()))
    assert "(ConnectionError): run `make serve`" in done.stderr


def first_request(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "models/mnist-svm/ask.py", url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("constant", "status"), [("7", 200), (None, 500)])
def test_the_first_request_prints_the_models_output_not_the_data_sets_label(
    tmp_path: Path, constant: str | None, status: int
) -> None:
    model = None
    if constant is not None:
        model = DummyClassifier(strategy="constant", constant=constant)
        model.fit([[0] * 64], [constant])
    put_model(tmp_path, "mnist-svm", model, parameters={"version": "v0.1.0"})
    with local_server(tmp_path) as url:
        done = first_request(url)
    if status == 200:
        assert (0, "") == (done.returncode, done.stderr)
        assert f"predict: {constant}" == done.stdout.splitlines()[-1]
    else:
        assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert "8" not in done.stdout.splitlines()[-1:]


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
    output = [
        subprocess.run(line, cwd=ROOT, env=deployed, capture_output=True, text=True, check=True)
        for line in (["bash", "-c", signed], [sys.executable, "-c", client])
    ]
    assert '"data":[8]' in output[0].stdout
    assert "'data': [8]" in output[1].stdout
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
