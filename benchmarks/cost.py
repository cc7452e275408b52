"""Print what a month costs, from the prices that AWS publishes: `python benchmarks/cost.py --help`.

List prices of us-east-1 in US dollars, as published in August 2025, without the free tier. They
change, and other regions differ: compare them with the pages named below before you rely on them.
Alarms, the dashboard and custom metrics are counted in template.yaml and the handler's code.

Not counted: S3 (storage, one listing and two reads for a cold start), data transfer, KMS, SNS, and
storage and queries of logs.

Source: https://aws.amazon.com/lambda/pricing/, https://aws.amazon.com/api-gateway/pricing/,
https://aws.amazon.com/cloudwatch/pricing/, https://aws.amazon.com/xray/pricing/
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "handler"))

from mlserverless.journal import METRICS  # noqa: E402 - the path comes first

PRICES_OF = "us-east-1, August 2025"
HOURS = 730  # of a month
SECONDS = HOURS * 3600

PER_REQUEST = 0.20e-6
PER_GB_SECOND = {"x86_64": 0.0000166667, "arm64": 0.0000133334}
PROVISIONED_GB_SECOND = {"x86_64": 0.0000041667, "arm64": 0.0000033334}  # while it waits
PROVISIONED_RUN_GB_SECOND = {"x86_64": 0.0000097222, "arm64": 0.0000077778}
SNAPSHOT_GB_SECOND = 0.0000015046
RESTORE_GB = 0.0001397998
PER_API_REQUEST = 1.00e-6  # an HTTP API, up to 512 kB
PER_LOG_GB = 0.50
# bytes of a traced request for the digits model, as tests/test_cost.py measures them
LOG_BYTES = {"function": 663, "platform.start and platform.report": 769, "access log": 376}
PER_ALARM = 0.10
PER_DASHBOARD = 3.00  # the account's first three are free
PER_METRIC = 0.30  # for a month; counted by the hours in which it has values
PER_TRACE = 5.00e-6
TRACED = 0.05  # of the requests after the first one of each second, which is traced, too


def count_resources(resource_type: str) -> int:
    """Count the unconditional resources of a type in template.yaml."""
    text = (ROOT / "template.yaml").read_text()
    resources = re.split(r"^  (?=\w+:$)", text, flags=re.MULTILINE)
    return sum(
        f"    Type: {resource_type}\n" in each and "\n    Condition: " not in each
        for each in resources
    )


def count_traces(requests: int) -> float:
    """Return how many requests X-Ray samples, if they are spread evenly over the month."""
    first_of_a_second = min(requests, SECONDS)
    return first_of_a_second + (requests - first_of_a_second) * TRACED


@dataclass(frozen=True)
class Use:
    """One endpoint's month."""

    requests: int
    milliseconds: float = 5.0  # of a warm request
    cold_share: float = 0.01  # of the requests that start an environment
    cold_milliseconds: float = 800.0  # INIT, which is billed, and the first load
    memory: int = 1769  # MB
    architecture: str = "x86_64"
    warmth: str = "none"
    warm_count: int = 1
    snapshots: int = 1  # versions with a snapshot; an old one is billed until 14 days without a use


def month(use: Use) -> dict[str, float]:
    """Return US dollars a month by item."""
    gigabytes = use.memory / 1024
    seconds = use.requests * use.milliseconds / 1000
    starts = use.requests * use.cold_share
    run = PER_GB_SECOND[use.architecture]
    lines = {"requests": use.requests * PER_REQUEST, "API": use.requests * PER_API_REQUEST}
    if use.warmth == "provisioned":
        lines["provisioned concurrency"] = (
            use.warm_count * SECONDS * gigabytes * PROVISIONED_GB_SECOND[use.architecture]
        )
        lines["compute"] = seconds * gigabytes * PROVISIONED_RUN_GB_SECOND[use.architecture]
    elif use.warmth == "snapstart":
        lines["snapshots"] = use.snapshots * SECONDS * gigabytes * SNAPSHOT_GB_SECOND
        lines["restores"] = starts * gigabytes * RESTORE_GB
        lines["compute"] = seconds * gigabytes * run
    else:
        lines["compute"] = (seconds + starts * use.cold_milliseconds / 1000) * gigabytes * run
    lines["logs"] = use.requests * sum(LOG_BYTES.values()) / 1e9 * PER_LOG_GB
    lines["traces"] = count_traces(use.requests) * PER_TRACE
    lines["metrics"] = len(METRICS) * PER_METRIC * min(use.requests, HOURS) / HOURS
    lines["alarms"] = count_resources("AWS::CloudWatch::Alarm") * PER_ALARM
    lines["dashboard"] = count_resources("AWS::CloudWatch::Dashboard") * PER_DASHBOARD
    return lines


def main() -> None:
    """Print a table for three levels of use, or for one."""
    parser = argparse.ArgumentParser(description=f"What a month costs (prices: {PRICES_OF})")
    parser.add_argument("--requests", type=int, help="a month; without it, three levels")
    parser.add_argument("--milliseconds", type=float, default=Use.milliseconds)
    parser.add_argument("--cold-share", type=float, default=Use.cold_share)
    parser.add_argument("--cold-milliseconds", type=float, default=Use.cold_milliseconds)
    parser.add_argument("--memory", type=int, default=Use.memory)
    parser.add_argument("--architecture", choices=sorted(PER_GB_SECOND), default=Use.architecture)
    parser.add_argument(
        "--warmth", choices=["none", "snapstart", "provisioned"], default=Use.warmth
    )
    parser.add_argument("--warm-count", type=int, default=Use.warm_count)
    parser.add_argument("--snapshots", type=int, default=Use.snapshots)
    given = vars(parser.parse_args())
    levels = [given.pop("requests")]
    if levels == [None]:
        levels = [10_000, 1_000_000, 100_000_000]
    columns = [month(Use(requests=level, **given)) for level in levels]
    print(f"US dollars a month, {PRICES_OF}\n")
    print(f"{'requests a month':24}" + "".join(f"{level:>14,}" for level in levels))
    for line in columns[0]:
        print(f"{line:24}" + "".join(f"{column[line]:14.2f}" for column in columns))
    print(f"{'total':24}" + "".join(f"{sum(column.values()):14.2f}" for column in columns))


if __name__ == "__main__":
    main()
