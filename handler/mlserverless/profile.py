"""Where a model's cold start goes, on this machine: `mlserverless profile DIR`.

Each model is measured in a fresh interpreter, as Lambda would start it; bytecode is written
by a first run that is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from typing import NamedTuple

from mlserverless.errors import ModelLoadError

PHASES = (
    "INIT: import of the handler",
    "import of numpy and scikit-learn",
    "fetch",
    "unpickle, and what it imports",
    "first prediction, and what it imports",
    "second prediction",
)
_SCRIPT = "from mlserverless.profile import measure; import sys; measure(sys.argv[1], sys.argv[2])"
_COLOURS = ("#7a8b99", "#4f6d7a", "#c0a253", "#c0563b", "#2a7f62", "#9bc4a8")


class Profile(NamedTuple):
    """Milliseconds of each phase; `asked` is False where no prediction was found by trying."""

    model: str
    milliseconds: tuple[float, ...]
    asked: bool


def profile(root: str, model: str) -> Profile:
    """Measure one model of a repository; raises ModelLoadError with what went wrong."""
    command = [sys.executable, "-c", _SCRIPT, root, model]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own script
        said = done.stdout.rpartition("\n")[2]  # what comes before it the model has printed
        if done.returncode != 0 or not said:
            reason = done.stderr.strip().rpartition("\n")[2].partition(": ")[2]
            raise ModelLoadError(f"{model}: {reason or 'its process has ended'}")
    found = json.loads(said)
    return Profile(model, tuple(found["milliseconds"]), found["asked"])


def measure(root: str, name: str) -> None:
    """The phases, one after the other, printed as JSON; for a process that has done nothing yet."""
    marks = [time.perf_counter()]
    from mlserverless import main  # noqa: F401, PLC0415 - this is what is measured

    marks.append(time.perf_counter())
    from mlserverless import loading  # noqa: PLC0415 - as above
    from mlserverless.imports import import_sklearn  # noqa: PLC0415 - as above

    import_sklearn()
    marks.append(time.perf_counter())
    from mlserverless.registry import Registry  # noqa: PLC0415 - as above
    from mlserverless.repository import open_repository  # noqa: PLC0415 - as above
    from mlserverless.settings import Settings  # noqa: PLC0415 - as above

    settings, repository = Settings.load(), open_repository(root)
    declared = Registry(repository, settings).find(name).settings
    artefact = repository.fetch(declared)
    marks.append(time.perf_counter())
    model = loading.load(artefact, declared, settings)
    marks.append(time.perf_counter())
    asked = model.example() is not None
    marks.append(time.perf_counter())
    model.example()
    marks.append(time.perf_counter())
    spans = [1000 * (end - start) for start, end in pairwise(marks)]
    sys.stdout.write("\n" + json.dumps({"milliseconds": spans, "asked": asked}))


def table(profiles: list[Profile]) -> str:
    """Milliseconds, a line a phase and a column a model."""
    width = max(14, *(len(each.model) + 2 for each in profiles))
    lines = [f"{'milliseconds':40}" + "".join(f"{each.model:>{width}}" for each in profiles)]
    for number, phase in enumerate(PHASES):
        cells = "".join(f"{each.milliseconds[number]:{width}.1f}" for each in profiles)
        lines.append(f"{phase:40}{cells}")
    total = "".join(f"{sum(each.milliseconds[:-1]):{width}.1f}" for each in profiles)
    lines.append(f"{'together, to the first answer':40}{total}")
    lines += [
        f"{each.model}: no request was found by trying" for each in profiles if not each.asked
    ]
    return "\n".join(lines)


def picture(profiles: list[Profile]) -> str:
    """The same as an SVG: a bar a model, a piece a phase."""
    longest = max(sum(each.milliseconds[:-1]) for each in profiles)
    height = 34 * len(profiles) + 18 * len(PHASES) + 16
    size = f'width="820" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect {size} fill="white"/>',
    ]
    for row, each in enumerate(profiles):
        x, y = 180.0, 10 + 34 * row
        name = each.model.replace("&", "&amp;").replace("<", "&lt;")
        lines.append(f'<text x="172" y="{y + 16}" text-anchor="end">{name}</text>')
        for colour, span in zip(_COLOURS, each.milliseconds[:-1], strict=False):
            length = 540 * span / longest
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="24" fill="{colour}"/>'
            )
            x += length
        lines.append(
            f'<text x="{x + 6:.1f}" y="{y + 16}">{sum(each.milliseconds[:-1]):.0f} ms</text>'
        )
    for row, (colour, phase) in enumerate(zip(_COLOURS, PHASES[:-1], strict=False)):
        y = 24 + 34 * len(profiles) + 18 * row
        lines.append(f'<rect x="180" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="198" y="{y}">{phase}</text>')
    return "\n".join([*lines, "</svg>\n"])
