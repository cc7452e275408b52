"""Many mixed requests through the handler, then a load on the local server: `make soak`.

Nothing may grow, stay open or fail. A short form of it is a test.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from doors import http_api, local_server, rest_api
from mlserverless import journal, main
from mlserverless.settings import Settings

ROOT = Path(__file__).parent.parent
WARM_UP = 0.2  # of all requests
GROWTH = 1.05  # of memory, after the warm-up
DIGIT = (ROOT / "events" / "requests" / "digit.json").read_bytes()
PATH = "/v2/models/mnist-svm/versions/v0.1.0/infer"

Asked = tuple[Any, int]


class State(NamedTuple):
    """What a process holds."""

    megabytes: float  # of its own, touched
    files: int
    threads: int


def state() -> State:
    """Of this process."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    megabytes = int(found[1]) / 1024 if found else 0.0
    return State(megabytes, len(os.listdir("/proc/self/fd")), threading.active_count())


def models(root: Path) -> Path:
    """The digits, and a pipeline over a table."""
    import joblib

    shutil.copytree(ROOT / "models", root, dirs_exist_ok=True)
    table = pd.DataFrame({"age": [1.0, 2.0, 3.0], "sex": ["m", "f", "m"]})
    columns = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["sex"]))
    model = make_pipeline(columns, LogisticRegression()).fit(table, ["no", "yes", "no"])
    (root / "table").mkdir()
    joblib.dump(model, root / "table" / "model.joblib")
    declared = {"name": "table", "implementation": "mlserver_sklearn.SKLearnModel"}
    (root / "table" / "model-settings.json").write_text(json.dumps(declared))
    return root


def mixed() -> list[Asked]:
    """Events of every sort, each with the status that is due."""
    digit = json.loads(DIGIT)
    rows = np.random.default_rng(0).integers(0, 16, (200, 64)).astype("<f4")
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP32"}
    many = json.dumps({"inputs": [{**tensor, "data": rows.tolist()}]}).encode()
    binary = {"inputs": [{**tensor, "parameters": {"binary_data_size": rows.nbytes}}]}
    head = json.dumps(binary | {"parameters": {"binary_data_output": True}}).encode()
    columns = [
        {"name": "age", "shape": [2], "datatype": "FP64", "data": [1.5, 2.5]},
        {"name": "sex", "shape": [2], "datatype": "BYTES", "data": ["f", "m"]},
    ]
    table = {"parameters": {"content_type": "pd"}, "inputs": columns}
    length = {"inference-header-content-length": str(len(head))}
    packed = {"content-encoding": "gzip", "accept-encoding": "gzip"}
    bad = json.dumps({"inputs": [{**digit["inputs"][0], "shape": [7, 7]}]}).encode()
    proxy = [
        ("POST", PATH, DIGIT, {}, 200),
        ("POST", PATH, DIGIT, {"authorization": "Bearer x"}, 200),
        ("POST", PATH, many, {}, 200),
        ("POST", PATH, gzip.compress(many), packed, 200),
        ("POST", PATH, head + rows.tobytes(), length, 200),
        ("POST", "/v2/models/table/infer", json.dumps(table).encode(), {}, 200),
        ("GET", "/v2/models/table", b"", {}, 200),
        ("GET", "/v2/models/mnist-svm/docs", b"", {}, 200),
        ("GET", "/v2/health/ready", b"", {}, 200),
        ("POST", "/v2/repository/index", b"{}", {}, 200),
        ("POST", PATH, bad, {}, 400),
        ("POST", PATH, b"{", {}, 400),
        ("POST", PATH, b"\x1f\x8b garbage", packed, 400),
        ("POST", PATH, gzip.compress(bytes(20_000_000)), packed, 413),
        ("POST", "/v2/models/nowhere/infer", DIGIT, {}, 404),
        ("GET", "/" + "x" * 10_000, b"", {}, 404),
        ("DELETE", "/v2", b"", {}, 405),
    ]
    events: list[Asked] = [
        (event(method, path, body, headers), status)
        for method, path, body, headers, status in proxy
        for event in (http_api, rest_api)
    ]
    sqs = {"Records": [{"messageId": "1"}, {"messageId": "2"}]}
    timer = {"source": "aws.events", "detail-type": "Scheduled Event"}
    strange: list[Any] = [None, [], {}, sqs, timer, {"requestContext": {"http": {}}}]
    events += [(event, 400) for event in strange]
    broken = http_api("POST", PATH, b"", {})
    events.append(({**broken, "isBase64Encoded": True, "body": "?"}, 400))
    text = base64.b64encode(DIGIT).decode()
    events.append(({**broken, "isBase64Encoded": True, "body": text}, 200))
    load = http_api("POST", "/v2/repository/models/table/load", b"", {})
    events.append((load, 200))
    return events


def soak(count: int) -> tuple[State, State]:
    """Ask so often; what the process held after the warm-up, and at the end."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "wb") as nowhere:
        journal.STDERR = nowhere.fileno()  # type: ignore[misc] # what is logged is no matter here
        lines = journal.Journal("DEBUG", "soak")
        lines.attach()
        root = str(models(Path(folder)))
        settings = Settings(model_repository_root=root, model_control_mode="explicit")
        door = main.Door(settings, lines)
        context = SimpleNamespace(aws_request_id="1", get_remaining_time_in_millis=lambda: 29_000)
        asked = itertools.cycle(mixed())
        statuses: Counter[int] = Counter()
        warm = state()
        for number in range(count):
            if number == int(count * WARM_UP):
                warm = state()
            event, status = next(asked)
            answer = door(event, context)
            assert status == answer["statusCode"], (event, answer["body"][:300])
            statuses[status] += 1
        end = state()
    print(f"soak: {count} requests, {dict(sorted(statuses.items()))}: {warm} → {end}")
    return warm, end


def load(seconds: int) -> str:
    """What wrk says of the local server under eight clients."""
    with tempfile.TemporaryDirectory() as folder, local_server(models(Path(folder))) as url:
        script = Path(folder) / "post.lua"
        body = ROOT / "events" / "requests" / "digit.json"
        script.write_text(f'wrk.method = "POST"\nwrk.body = io.open("{body}"):read("*a")\n')
        command = ["wrk", "-t", "2", "-c", "8", "-d", f"{seconds}s", "-s", str(script), url + PATH]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def flat(warm: State, end: State) -> list[str]:
    """What has grown, in words."""
    grown = []
    if end.megabytes > GROWTH * warm.megabytes:
        grown.append(f"memory from {warm.megabytes:.1f} to {end.megabytes:.1f} MB")
    if end.files > warm.files:
        grown.append(f"open files from {warm.files} to {end.files}")
    if end.threads > warm.threads:
        grown.append(f"threads from {warm.threads} to {end.threads}")
    return grown


def run(arguments: list[str]) -> int:
    """1 when something grew or failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="requests through the handler")
    parser.add_argument("seconds", type=int, help="of load on the local server; 0 for none")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    faults = [f"grown: {what}" for what in flat(*soak(given.count))]
    if given.seconds:
        said = load(given.seconds)
        print(said)
        if "Non-2xx" in said or "Socket errors" in said:
            faults.append("not every request to the local server was answered")
    print(
        f"soak: {time.monotonic() - start:.0f} s; "
        + ("; ".join(faults) or "nothing grew or failed")
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
