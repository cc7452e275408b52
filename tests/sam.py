"""`sam local` on what `make build` made, in real containers; nothing of it is left behind.

The containers run AWS's image or, where none can be pulled, the stand-in of `local/image`.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import requests

from emulator import BUILT, ROOT, free_port

DERIVED = "samcli/lambda-python"  # SAM's own images: the runtime, its emulator and the layers


def docker(*arguments: str) -> str:
    """What one docker command says."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def docker_answers() -> bool:
    """Whether there is a Docker to run containers with."""
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(["docker", "version"], capture_output=True, check=False)
    return done.returncode == 0


@contextmanager
def image() -> Iterator[None]:
    """Lambda's image, and afterwards none of those that SAM derived from it meanwhile."""
    before = _derived()
    subprocess.run([ROOT / "local" / "image"], check=True)
    try:
        yield
    finally:
        for each in _seen - before:
            docker("rmi", "--force", each)
        _seen.clear()


_seen: set[str] = set()  # SAM's own images; one loses its name when the next is built


def _derived() -> set[str]:
    return set(docker("images", "--quiet", "--no-trunc", DERIVED).split())


def host_for_containers() -> str:
    """The address at which a container finds this machine, and nobody else does."""
    line = ["ip", "-4", "-oneline", "address", "show", "docker0"]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    return said.split()[3].partition("/")[0]


def template(folder: Path, models: Path) -> Path:
    """The built template, written to `folder`, with other models in the models layer."""
    layer = folder / "ModelsLayer"
    shutil.copytree(models, layer / "models")
    text = (BUILT / "template.yaml").read_text()
    text = text.replace("ContentUri: ModelsLayer", f"ContentUri: {layer}")
    text = re.sub(r"(CodeUri|ContentUri): (\w+)$", rf"\1: {BUILT}/\2", text, flags=re.MULTILINE)
    written = folder / "template.yaml"
    written.write_text(text)
    return written


def environment(**more: str) -> dict[str, str]:
    """No credentials of whoever runs this: SAM would ask STS about them."""
    nobody = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**kept, **nobody, "AWS_DEFAULT_REGION": "us-east-1", "SAM_CLI_TELEMETRY": "0", **more}


def command(verb: str, template: Path, parameters: dict[str, str]) -> list[str]:
    """One `sam local` command line."""
    line = ["sam", "local", verb, "--template", str(template), "--skip-pull-image"]
    if parameters:
        line += ["--parameter-overrides", *(f"{name}={text}" for name, text in parameters.items())]
    return line


@contextmanager
def start_api(
    template: Path, variables: dict[str, str] | None = None, **parameters: str
) -> Iterator[str]:
    """Run `sam local start-api` with other environment variables; yield its URL."""
    with _started("start-api", template, parameters, variables) as url:
        yield url


@contextmanager
def start_lambda(template: Path, **parameters: str) -> Iterator[str]:
    """`sam local start-lambda`; yields the endpoint for boto3."""
    with _started("start-lambda", template, parameters) as url:
        yield url


def invoke(template: Path, event: Path, **parameters: str) -> str:
    """`sam local invoke -e EVENT`; returns what it prints on stdout."""
    line = [*command("invoke", template, parameters), "--event", str(event), "Function"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)
    remove(containers(done.stderr))
    sys.stderr.write(done.stderr)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def _started(
    verb: str, template: Path, parameters: dict[str, str], variables: dict[str, str] | None = None
) -> Iterator[str]:
    port = free_port()
    line = [*command(verb, template, parameters), "--port", str(port)]
    if variables:
        file = template.parent / "env-vars.json"
        file.write_text(json.dumps({"Function": variables}))
        line += ["--env-vars", str(file)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*line, "--warm-containers", "EAGER"], env=environment(), stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process, functools.partial(_said, log))
            _seen.update(_derived())
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)
            remove(containers(_said(log)))
            sys.stderr.write(_said(log))


def wait_for(url: str, process: subprocess.Popen[bytes], said: Callable[[], str]) -> None:
    """Return when something answers there; fail with what was said when the process ends."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, said()
        try:
            requests.get(url, timeout=60)
        except requests.ConnectionError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(said())


def _said(log: IO[str]) -> str:
    log.seek(0)
    return log.read()


def containers(said: str) -> list[str]:
    """The containers that SAM says it has made."""
    return re.findall(r"SAM_CONTAINER_ID: (\w+)", said)


def remove(made: list[str]) -> None:
    """Whatever SAM has not removed itself; one that is gone is as it should be."""
    for each in made:
        subprocess.run(["docker", "rm", "--force", each], capture_output=True, check=False)
