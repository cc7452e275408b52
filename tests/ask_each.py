"""Ask each model of a folder its question, each in a process that has loaded no other.

    python ask_each.py FOLDER

The parent imports the handler alone and forks; prints the answers as JSON.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from mlserverless.main import Door
from mlserverless.settings import Settings

ROOT = Path(sys.argv[1])


def ask(name: str, question: object) -> str:
    """The body that the handler answers."""
    http = {"method": "POST", "path": f"/v2/models/{name}/infer"}
    event = {"version": "2.0", "requestContext": {"http": http}, "body": json.dumps(question)}
    door = Door(Settings(model_repository_root=str(ROOT / name)))
    body: str = door(event, None)["body"]
    return body


answers: dict[str, object] = {}
running: dict[int, tuple[str, Path]] = {}


def collect() -> None:
    """Wait for one child and keep what it wrote."""
    pid, status = os.wait()
    name, file = running.pop(pid)
    answers[name] = json.loads(file.read_text()) if status == 0 else {"status": status}


with tempfile.TemporaryDirectory() as folder:
    for name, question in json.loads((ROOT / "questions.json").read_text()).items():
        file = Path(folder) / name
        pid = os.fork()
        if pid == 0:
            file.write_text(ask(name, question))
            os._exit(0)
        running[pid] = (name, file)
        if len(running) == (os.cpu_count() or 1):
            collect()
    while running:
        collect()
sys.stdout.write(json.dumps(answers))
