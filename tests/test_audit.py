"""Known vulnerabilities of what is pinned stop the gates; nobody to ask is said in words."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from conftest import ROOT
from gateway import serving

PINS = [path.name for path in runpy.run_path(str(ROOT / "requirements" / "audit.py"))["PINS"]]
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


def audit(url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    subprocess.run(["make", ".venv-audit/ready"], cwd=ROOT, check=True, capture_output=True)
    python = str(ROOT / ".venv-audit" / "bin" / "python")
    asked = ["-s", "osv", "--osv-url", url, "--timeout", "5", *arguments]
    return subprocess.run(
        [python, "requirements/audit.py", *asked],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("flawed", "status"), [(None, 0), ("mangum", 1)])
def test_a_known_vulnerability_stops_the_gates(flawed: str | None, status: int) -> None:
    with advisories(flawed) as url:
        done = audit(url)
    assert (status, "") == (done.returncode, done.stderr)
    assert (flawed is not None) == ("audit: mangum " in done.stdout)
    assert (flawed is not None) == ("PYSEC-2026-1" in done.stdout)
    assert "left out" not in done.stdout


@pytest.mark.parametrize(("strictness", "status"), [("", 0), ("strict", 1)])
def test_nobody_to_ask_is_said_and_stops_nobody_who_does_not_want_it(
    strictness: str, status: int
) -> None:
    done = audit("http://127.0.0.1:1", AUDIT=strictness)
    assert (status, "") == (done.returncode, done.stderr)
    assert len(PINS) == done.stdout.count("left out, nobody can be asked: ")


def test_a_question_that_goes_wrong_itself_is_no_clean_answer() -> None:
    done = audit("http://127.0.0.1:1", "--no-such-option")
    assert 1 == done.returncode
    assert len(PINS) == done.stdout.count("could not be audited: ")


def test_every_pin_is_asked_about_but_the_peers() -> None:
    """What is deployed, what builds and tests it, and what audits it."""
    pinned = {path.name for path in ROOT.glob("requirements/*.txt")}
    assert {"clients.txt", "mlserver.txt"} == pinned - set(PINS)
    assert 2 == PINS.count("requirements.txt")


def test_the_workflow_uses_nothing_that_can_be_moved_and_gives_no_token_to_what_it_tests() -> None:
    workflow = yaml_parse((ROOT / "docs" / "github" / "deploy.yml").read_text())
    jobs: dict[str, Any] = workflow["jobs"]
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert [] == [each for each in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", each)]
    assert {"contents": "read"} == workflow["permissions"]
    check, deploy = jobs["check"], jobs["deploy"]
    assert "permissions" not in check
    assert {"make check", "make audit", "make build"} < {step.get("run") for step in check["steps"]}
    assert {"strict"} == {step["env"]["AUDIT"] for step in check["steps"] if "env" in step}
    assert ("check", "write") == (deploy["needs"], deploy["permissions"]["id-token"])
    # this job can get a token: it installs SAM alone, by hash and without running code of a package
    create, install, run = [step["run"] for step in deploy["steps"] if "run" in step]
    assert "python3 -m venv .venv-sam" == create
    assert {"--require-hashes", "--only-binary", "--no-deps"} < set(install.split())
    assert install.endswith("-r requirements/deploy.txt")
    assert run.startswith(".venv-sam/bin/sam deploy ")
    assert "--role-arn" in run


def test_sam_deploys_by_the_version_that_the_tests_run() -> None:
    pinned = [
        re.findall(r"^aws-sam-cli==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE)
        for name in ("dev.txt", "deploy.txt")
    ]
    assert pinned[0] == pinned[1] != []
