"""The local server beside MLServer 1.7.1, in its own environment, both on 127.0.0.1."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from rows import ROOT, Row, in_turns, ratio, timed

MLSERVER = ROOT / ".venv-mlserver" / "bin" / "mlserver"
PATH = "/v2/models/mnist-svm/versions/v0.1.0/infer"
BODY = (ROOT / "events" / "requests" / "digit.json").read_bytes()
IRIS = "/v2/models/iris/infer"
MEGABYTES = 10
STARTS = 3


class Running(NamedTuple):
    """A server that has answered."""

    port: int
    seconds: float  # from its start to its first 200
    megabytes: float  # after it, of all its processes


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def post(port: int, body: bytes, path: str = PATH) -> int:
    """One request, answered in whole."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
    except OSError:
        return 0
    else:
        return answer.status
    finally:
        connection.close()


def megabytes(group: int) -> float:
    """What the processes of a group hold, pages that they share counted once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                found = re.search(
                    r"^Pss: +(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE
                )
                total += int(found[1]) if found else 0
        except OSError:
            continue
    return total / 1024


def iris(root: Path) -> bytes:
    """Put a model that is quick beside the digits; a large body for it."""
    data, target = load_iris(return_X_y=True)
    folder = root / "iris"
    folder.mkdir()
    joblib.dump(LogisticRegression(max_iter=1000).fit(data, target), folder / "model.joblib")
    declared = {"name": "iris", "implementation": "mlserver_sklearn.SKLearnModel"}
    (folder / "model-settings.json").write_text(json.dumps(declared))
    noise = np.random.default_rng(0).normal(scale=0.1, size=(MEGABYTES * 12_800, 4))
    rows = np.resize(data, noise.shape) + noise
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP64", "data": rows.tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


@contextmanager
def serving(command: list[str], folder: Path, **settings: object) -> Iterator[Running]:
    """A server over the digits model, asked until it answers."""
    port = free_port()
    declared = {"http_port": port, "host": "127.0.0.1", **settings}
    (folder / "settings.json").write_text(json.dumps(declared))
    log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115 - closed when it is forgotten
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "start", str(folder)],
        cwd=folder,  # MLServer leaves files of its metrics where it was started
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        while post(port, BODY) != 200:
            assert process.poll() is None, Path(log.name).read_text()
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        yield Running(port, seconds, megabytes(process.pid))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def requests_a_second(port: int, seconds: int = 4) -> float:
    """With 8 clients, by wrk."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'\nwrk.body = [==[{BODY.decode()}]==]\n")
        script.flush()
        line = ["wrk", "-t1", "-c8", f"-d{seconds}s", "-s", script.name]
        said = subprocess.run(
            [*line, f"http://127.0.0.1:{port}{PATH}"], capture_output=True, text=True, check=True
        ).stdout
    assert "Non-2xx" not in said, said
    found = re.search(r"Requests/sec: +([\d.]+)", said)
    assert found is not None, said
    return float(found[1])


def rows() -> list[Row]:
    """Start, memory, throughput and a large body."""
    ours = [sys.executable, "-m", "mlserverless.cli"]
    theirs = [str(MLSERVER)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mnist-svm"
        ignored = shutil.ignore_patterns("*.py")
        shutil.copytree(ROOT / "models" / "mnist-svm", folder, ignore=ignored)
        ports: dict[str, object] = {"grpc_port": free_port(), "metrics_port": free_port()}
        alone = {"parallel_workers": 0, **ports}
        kinds: tuple[tuple[list[str], dict[str, object]], ...] = (
            (ours, {}),
            (theirs, ports),
            (theirs, alone),
        )
        started: list[list[Running]] = [[], [], []]
        for _ in range(STARTS):
            for (command, settings), kept in zip(kinds, started, strict=True):
                with serving(command, folder, **settings) as running:
                    kept.append(running)
        large = iris(folder.parent)
        rates = {}
        with (
            serving(ours, folder.parent) as mine,
            serving(theirs, folder.parent, **alone) as single,
        ):
            times = in_turns(
                5,
                timed(lambda: post(mine.port, large, IRIS)),
                timed(lambda: post(single.port, large, IRIS)),
            )
            found = in_turns(
                3, lambda: requests_a_second(mine.port), lambda: requests_a_second(single.port)
            )
            rates = {"ours": found[0], "alone": found[1]}
        with serving(theirs, folder, **ports) as usual:
            best = max(
                statistics.median(rates["alone"]),
                statistics.median(requests_a_second(usual.port) for _ in range(3)),
            )
    seconds = [[each.seconds for each in kind] for kind in started]
    memory = [[each.megabytes for each in kind] for kind in started]
    usual_name, alone_name = "MLServer as it comes", "MLServer, parallel_workers=0"
    return [
        Row("local server, start → first 200", usual_name, ratio(seconds[0], seconds[1]), 0.25),
        Row("local server, start → first 200", alone_name, ratio(seconds[0], seconds[2]), 0.40),
        Row("local server, memory after it", usual_name, ratio(memory[0], memory[1]), 0.30),
        Row("local server, memory after it", alone_name, ratio(memory[0], memory[2]), 0.50),
        Row(
            "local server, requests a second, 8 clients",
            "MLServer, the better of both",
            statistics.median(rates["ours"]) / best,
            2.0,
            "at least",
        ),
        Row(f"local server, {len(large) / 1e6:.0f} MB JSON body", alone_name, ratio(*times), 0.5),
    ]
