"""Every figure that the project holds itself to, measured beside its peers: `make bench`.

Each pair is measured in turns in one run; medians count. A number here is for people; what a
user would feel as a regression is a budget in the tests.

    python benchmarks/run.py [cold_start | local_server | request_path …]
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import importlib
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from rows import Row

HERE = Path(__file__).parent
PARTS = ("cold_start", "local_server", "request_path")
WIDTH, BAR, LEFT = 860, 22, 400


def spelled(row: Row) -> str:
    """The measured figure with its unit."""
    if row.unit == "ms":
        return f"{row.measured:.3f} ms"
    return f"{row.measured:.3f}" if row.measured < 0.1 else f"{row.measured:.2f}"


def table(rows: list[Row]) -> str:
    """As README shows it."""
    lines = ["| figure | beside | measured | goal |", "| --- | --- | ---: | ---: |"]
    for row in rows:
        unit = f"{row.unit} " if row.unit.startswith("at") else ""
        goal = f"{unit}{row.goal:g}" + (" ms" if row.unit == "ms" else "")
        lines.append(f"| {row.what} | {row.peer} | {spelled(row)} | {goal} |")
    return "\n".join(lines)


def plot(rows: list[Row], title: str) -> str:
    """Ratios as bars, 1 is the peer; a tick is the goal."""
    bars = [row for row in rows if row.unit != "ms"]
    scale = (WIDTH - LEFT - 70) / max(max(row.measured, row.goal, 1.0) for row in bars)
    height = BAR * (len(bars) + 2)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
    )
    lines = [
        head,
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="16">{title}</text>',
    ]
    for number, row in enumerate(bars, 1):
        y, length = BAR * number, row.measured * scale
        colour = "#2a7f62" if row.met else "#c0563b"
        lines += [
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{row.what}</text>',
            f'<rect x="{LEFT}" y="{y + 4}" width="{length:.1f}" height="14" fill="{colour}"/>',
            f'<rect x="{LEFT + row.goal * scale:.1f}" y="{y + 2}" width="2" height="18"/>',
            f'<text x="{LEFT + length + 8:.1f}" y="{y + 15}">{spelled(row)}</text>',
        ]
    x = LEFT + scale
    lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{BAR}" y2="{height - BAR}" stroke="grey"/>')
    lines.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">the peer</text></svg>')
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and keep: results.json and results.svg."""
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        sys.exit(f"bench: unknown part {min(unknown)!r}: PART is one of {', '.join(PARTS)}")
    rows: list[Row] = []
    for part in chosen:
        rows += importlib.import_module(part).rows()
    print(table(rows))
    versions = {name: version(name) for name in ("scikit-learn", "numpy", "fastapi", "orjson")}
    about = {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        **versions,
    }
    print(f"\n{', '.join(f'{key} {value}' for key, value in about.items())}")
    if chosen == list(PARTS):
        kept = {"about": about, "rows": [dataclasses.asdict(row) for row in rows]}
        (HERE / "results.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        title = f"ours over the peer's, {about['date']}; a bar is to end at its tick"
        (HERE / "results.svg").write_text(plot(rows, title))


if __name__ == "__main__":
    main()
