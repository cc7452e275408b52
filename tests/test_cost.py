"""The calculator adds up what AWS's pages say; the page has what it prints."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest

from conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "cost.py"


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
        ("provisioned", "environments kept", 2 * 730 * 3600 * 0.0000041667),
        ("snapstart", "snapshot kept", 730 * 3600 * 0.0000015046),
    ],
)
def test_warmth_has_its_price_at_rest(cost: Any, warmth: str, line: str, dollars: float) -> None:
    use = cost.Use(requests=0, memory=1024, warmth=warmth, warm_count=2)
    assert pytest.approx(dollars) == cost.month(use)[line]


def test_nobody_calls_and_nothing_but_the_alarms_is_paid(cost: Any) -> None:
    assert pytest.approx(0.30) == sum(cost.month(cost.Use(requests=0)).values())


def test_the_page_has_what_the_script_prints() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1].split()
    page = (ROOT / "docs" / "deploying.md").read_text()
    assert f"| {' | '.join(last)} |" in page
