"""The real runtime client under the real emulator, on what `make build` made.

`aws-lambda-rie` lies in the installed aws-sam-cli, `awslambdaric` is what Lambda's images
run. Both listen on 127.0.0.1 alone.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from doors import Handler

ROOT = Path(__file__).parent.parent
BUILT = ROOT / ".aws-sam" / "build"
RUNTIME = ROOT / "build" / "runtime"


@dataclass(frozen=True)
class Layout:
    """What Lambda would mount, in the order in which Python looks for it."""

    python: str
    path: tuple[Path, ...]
    models: Path


def python_of_lambda() -> str | None:
    """A CPython of Lambda's version on this machine, if there is one.

    No virtual environment: its packages would hide what is missing in the built ones.
    """
    done = subprocess.run(
        ["uv", "python", "find", "--no-project", "--system", "3.13"],
        env={**os.environ, "PYENV_VERSION": "3.13"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def built_layout(python: str) -> Layout:
    """/var/task, /opt/python and /var/runtime, from `make build` and the pinned runtime."""
    subprocess.run(["make", "build"], cwd=ROOT, check=True, capture_output=True)
    pins = ROOT / "requirements" / "runtime.txt"
    command = ["uv", "pip", "install", "--target", str(RUNTIME), "--python", python]
    flags = ["--require-hashes", "--only-binary", ":all:"]
    subprocess.run([*command, *flags, "-r", str(pins)], check=True, capture_output=True)
    path = (BUILT / "Function", BUILT / "SklearnLayer" / "python", RUNTIME)
    return Layout(python, path, BUILT / "ModelsLayer" / "models")


def source_layout() -> Layout:
    """The source tree under this Python, where Lambda's is not to be had."""
    return Layout(sys.executable, (ROOT / "handler",), ROOT / "models")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def emulator(layout: Layout, **environment: str) -> Iterator[Handler]:
    """Run the function; yields `invoke(event, context)`, to be called one at a time."""
    binary = "aws-lambda-rie-" + {"aarch64": "arm64"}.get(platform.machine(), "x86_64")
    rie = importlib.resources.files("samcli") / "local" / "rapid" / binary
    invocations, runtime = free_port(), free_port()
    command = [
        str(rie),
        "--runtime-interface-emulator-address",
        f"127.0.0.1:{invocations}",
        "--runtime-api-address",
        f"127.0.0.1:{runtime}",
        layout.python,
        "-m",
        "awslambdaric",
        "mlserverless.main.handler",
    ]
    base = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(map(str, layout.path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "29",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
        "MLSERVER_MODEL_REPOSITORY_ROOT": str(layout.models),
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=base | environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for(invocations, process)
            url = f"http://127.0.0.1:{invocations}/2015-03-31/functions/function/invocations"

            one_at_a_time = threading.Lock()

            def invoke(event: Any, _: Any = None) -> dict[str, Any]:
                with one_at_a_time:
                    answer = requests.post(url, data=json.dumps(event), timeout=60)
                try:
                    found: dict[str, Any] = answer.json()
                except ValueError as error:
                    log.seek(0)
                    raise AssertionError(log.read().decode()) from error
                return found

            yield invoke
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the emulator's own children too
            process.wait()
            log.seek(0)
            sys.stderr.write(log.read().decode())


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "the emulator ended before it listened"
            time.sleep(0.02)
        else:
            return
    raise AssertionError("the emulator does not listen")
