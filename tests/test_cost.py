"""The cost calculator agrees with the template and the log; the page has what it prints."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from mlserverless import main
from mlserverless.journal import METRICS, Journal
from mlserverless.settings import Settings
from test_template import SAMPLES, ResolvedTemplate

SCRIPT = ROOT / "benchmarks" / "cost.py"
PAGE = ROOT / "docs" / "deploying.md"
TRACE = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"


@pytest.fixture(scope="module")
def cost() -> Any:
    spec = importlib.util.spec_from_file_location("cost", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cost"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_month_is_the_sum_of_its_prices(cost: Any) -> None:
    use = cost.Use(requests=1_000_000, milliseconds=100, cold_share=0, memory=1024)
    lines = cost.month(use)
    assert pytest.approx(0.20) == lines["requests"]
    assert pytest.approx(1.00) == lines["API"]
    assert pytest.approx(1.66667) == lines["compute"]  # 100,000 GB-seconds


@pytest.mark.parametrize(
    ("warmth", "line", "dollars"),
    [
        ("provisioned", "provisioned concurrency", 2 * 730 * 3600 * 0.0000041667),
        ("snapstart", "snapshots", 3 * 730 * 3600 * 0.0000015046),
    ],
)
def test_warmth_has_its_price_at_rest(cost: Any, warmth: str, line: str, dollars: float) -> None:
    use = cost.Use(requests=0, memory=1024, warmth=warmth, warm_count=2, snapshots=3)
    assert pytest.approx(dollars) == cost.month(use)[line]


def test_an_idle_stack_costs_what_the_template_has_at_rest(
    cost: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alarms and dashboards as CloudFormation would create them, and nothing else."""
    template = ResolvedTemplate(monkeypatch)
    alarms = len(template.of_type("AWS::CloudWatch::Alarm"))
    dashboards = len(template.of_type("AWS::CloudWatch::Dashboard"))
    assert alarms > 0
    assert dashboards > 0
    lines = {name: price for name, price in cost.month(cost.Use(requests=0)).items() if price}
    assert {
        "alarms": pytest.approx(alarms * 0.10),
        "dashboard": pytest.approx(dashboards * 3.00),
    } == lines


def test_custom_metrics_are_those_that_the_handler_writes(cost: Any) -> None:
    assert pytest.approx(len(METRICS) * 0.30) == cost.month(cost.Use(requests=1_000))["metrics"]
    # a metric without values in an hour is not billed for it
    few = cost.month(cost.Use(requests=73))["metrics"]
    assert pytest.approx(len(METRICS) * 0.03) == few


def test_the_first_request_of_each_second_is_traced_and_a_twentieth_of_the_others(
    cost: Any,
) -> None:
    seconds = 730 * 3600
    assert 1_000_000 == cost.count_traces(1_000_000)
    assert pytest.approx(seconds + 0.05 * (100_000_000 - seconds)) == cost.count_traces(100_000_000)


def test_the_bytes_of_logs_are_those_of_a_request(
    cost: Any, digits: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    event = json.loads((ROOT / "events" / "http-api-infer.json").read_text())
    request_id = "6f7f0961-f83c-4a4d-9d65-1f2b3c4d5e6f"
    name = "mlserverless-Function-AbCdEfGhIjKl"
    monkeypatch.setenv("_X_AMZN_TRACE_ID", TRACE)
    context = type("Context", (), {"aws_request_id": request_id})
    settings = Settings(model_repository_root=str(digits.parent))
    handler = main.Door(settings, Journal("INFO", name, "12"))
    for _ in range(2):
        handler(event, context)
    function = capfd.readouterr().err.splitlines()[-1]

    access = ResolvedTemplate(monkeypatch).of_type("AWS::ApiGatewayV2::Stage")
    entry = access["ApiApiGatewayDefaultStage"]["AccessLogSettings"]["Format"]
    for variable in sorted(SAMPLES, key=len, reverse=True):
        entry = entry.replace(f"$context.{variable}", SAMPLES[variable][0])

    tracing = {"spanId": "53995c3f42cd8ad8", "type": "X-Amzn-Trace-Id", "value": TRACE}
    arn = f"arn:aws:lambda:us-east-1:123456789012:function:{name}"
    start = {"requestId": request_id, "functionArn": arn, "version": "12", "tracing": tracing}
    times = {"durationMs": 5.123, "billedDurationMs": 6}
    metrics = {**times, "memorySizeMB": 1769, "maxMemoryUsedMB": 205}
    report = {"requestId": request_id, "metrics": metrics, "tracing": tracing, "status": "success"}
    platform = [
        json.dumps({"time": "2026-11-25T18:06:52.123Z", "type": entry_type, "record": record})
        for entry_type, record in (("platform.start", start), ("platform.report", report))
    ]
    measured = {
        "function": len(function),
        "platform.start and platform.report": len("".join(platform).replace(": ", ":")),
        "access log": len(entry),
    }
    assert cost.LOG_BYTES == {name: pytest.approx(size, rel=0.1) for name, size in measured.items()}


def test_the_page_has_the_table_that_the_script_prints() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    title, _, header, *lines = done.stdout.splitlines()
    page = PAGE.read_text()
    assert title.partition(", ")[2] in page
    for line in [header, *lines]:
        *item, small, medium, large = line.split()
        assert f"| {' '.join(item)} | {small} | {medium} | {large} |" in page
