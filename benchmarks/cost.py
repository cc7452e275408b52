"""What a month costs, from the prices that AWS publishes: `python benchmarks/cost.py --help`.

List prices of us-east-1 in US dollars, as published in August 2025, without the free tier. They
change, and other regions differ: compare PRICES with the pages named below before you trust it.

Source: https://aws.amazon.com/lambda/pricing/, https://aws.amazon.com/api-gateway/pricing/,
https://aws.amazon.com/cloudwatch/pricing/, https://aws.amazon.com/xray/pricing/
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

PRICES_OF = "us-east-1, August 2025"
SECONDS = 730 * 3600  # of a month

PER_REQUEST = 0.20e-6
PER_GB_SECOND = {"x86_64": 0.0000166667, "arm64": 0.0000133334}
PROVISIONED_GB_SECOND = {"x86_64": 0.0000041667, "arm64": 0.0000033334}  # for being there
PROVISIONED_RUN_GB_SECOND = {"x86_64": 0.0000097222, "arm64": 0.0000077778}
SNAPSHOT_GB_SECOND = 0.0000015046
RESTORE_GB = 0.0001397998
PER_API_REQUEST = 1.00e-6  # an HTTP API, up to 512 kB
PER_LOG_GB = 0.50
LOG_BYTES = 900  # a request: the platform's lines and the access log's
PER_ALARM = 0.10
ALARMS = 3
PER_TRACE = 5.00e-6
TRACED = 0.05  # of the requests, beside one a second


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


def month(use: Use) -> dict[str, float]:
    """US dollars a month, by what they are paid for."""
    gigabytes = use.memory / 1024
    seconds = use.requests * use.milliseconds / 1000
    starts = use.requests * use.cold_share
    run = PER_GB_SECOND[use.architecture]
    lines = {"requests": use.requests * PER_REQUEST, "API": use.requests * PER_API_REQUEST}
    if use.warmth == "provisioned":
        lines["environments kept"] = (
            use.warm_count * SECONDS * gigabytes * PROVISIONED_GB_SECOND[use.architecture]
        )
        lines["compute"] = seconds * gigabytes * PROVISIONED_RUN_GB_SECOND[use.architecture]
    elif use.warmth == "snapstart":
        lines["snapshot kept"] = SECONDS * gigabytes * SNAPSHOT_GB_SECOND
        lines["restores"] = starts * gigabytes * RESTORE_GB
        lines["compute"] = seconds * gigabytes * run
    else:
        lines["compute"] = (seconds + starts * use.cold_milliseconds / 1000) * gigabytes * run
    lines["logs"] = use.requests * LOG_BYTES / 1e9 * PER_LOG_GB
    lines["traces"] = use.requests * TRACED * PER_TRACE
    lines["alarms"] = ALARMS * PER_ALARM
    return lines


def main() -> None:
    """Print a table: three levels of use, or the one that is asked for."""
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
    given = vars(parser.parse_args())
    levels = [given.pop("requests")]
    if levels == [None]:
        levels = [10_000, 1_000_000, 100_000_000]
    columns = [month(Use(requests=level, **given)) for level in levels]
    print(f"US dollars a month, {PRICES_OF}\n")
    print(f"{'requests a month':20}" + "".join(f"{level:>14,}" for level in levels))
    for line in columns[0]:
        print(f"{line:20}" + "".join(f"{column[line]:14.2f}" for column in columns))
    print(f"{'together':20}" + "".join(f"{sum(column.values()):14.2f}" for column in columns))


if __name__ == "__main__":
    main()
