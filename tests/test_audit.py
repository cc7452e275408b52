"""Known vulnerabilities of what is pinned stop the gates; nobody to ask is said in words."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from conftest import ROOT
from gateway import serving

FLAW = {"id": "PYSEC-2026-1", "modified": "2026-01-01T00:00:00Z", "affected": []}


@contextmanager
def advisories(flawed: str | None) -> Iterator[str]:
    """An OSV service that knows one package, or none; yields its URL."""

    class Query(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            known = {"vulns": [FLAW]} if asked["package"]["name"] == flawed else {}
            body = json.dumps(known).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with serving(Query) as url:
        yield url


def audit(url: str) -> subprocess.CompletedProcess[str]:
    subprocess.run(["make", ".venv-audit/ready"], cwd=ROOT, check=True, capture_output=True)
    python = str(ROOT / ".venv-audit" / "bin" / "python")
    command = [python, "requirements/audit.py", "-s", "osv", "--osv-url", url, "--timeout", "5"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("flawed", "status"), [(None, 0), ("mangum", 1)])
def test_a_known_vulnerability_stops_the_gates(flawed: str | None, status: int) -> None:
    with advisories(flawed) as url:
        done = audit(url)
    assert (status, "") == (done.returncode, done.stderr)
    assert (flawed is not None) == ("audit: mangum " in done.stdout)
    assert (flawed is not None) == ("PYSEC-2026-1" in done.stdout)
    assert "left out" not in done.stdout


def test_nobody_to_ask_is_said_and_stops_nothing() -> None:
    done = audit("http://127.0.0.1:1")
    assert 0 == done.returncode
    assert 3 == done.stdout.count("left out: ")
