"""Where a model's cold start goes, on this machine: `mlserverless profile DIR`.

Each model is measured in a fresh interpreter, as Lambda would start it; bytecode is written
by a first run that is not counted.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any, NamedTuple

from mlserverless.errors import MLServerlessError, quote

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
    """Milliseconds of each phase; or, if `error` is not empty, why there are none.

    `predicted` is False if no request was found that the model accepts.
    """

    model: str
    milliseconds: tuple[float, ...] = ()
    predicted: bool = False
    error: str = ""


def profile(root: str, model: str) -> Profile:
    """Measure one model of a repository in new processes; never raises because of the model."""
    command = [sys.executable, "-c", _SCRIPT, root, model]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own script
        last_line = done.stdout.rpartition("\n")[2]  # the model may have printed the others
        if done.returncode != 0 or not last_line:
            return Profile(model, error=_describe_failure(done))
        found = json.loads(last_line)
        if "error" in found:
            return Profile(model, error=found["error"])
    return Profile(model, tuple(found["milliseconds"]), found["predicted"])


def _describe_failure(done: subprocess.CompletedProcess[str]) -> str:
    """Say how a process ended that printed no result: by a signal, or by an exception."""
    if done.returncode < 0:
        return f"its process was ended by {signal.Signals(-done.returncode).name}"
    # the last line of a traceback is "type: message"; the message may quote data
    last_line = done.stderr.strip().rpartition("\n")[2]
    found = re.match(r"[\w.]+(?=:|$)", last_line)
    return f"its process ended with status {done.returncode}" + (f" ({found[0]})" if found else "")


def measure(root: str, name: str) -> None:
    """Print the milliseconds of each phase as JSON, or the error; call it in a new process."""
    try:
        result = _measure(root, name)
    except MLServerlessError as error:
        result = {"error": str(error).removeprefix(f"Model {quote(name)} ")}
    sys.stdout.write("\n" + json.dumps(result))


def _measure(root: str, name: str) -> dict[str, Any]:
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
    artifact = repository.fetch(declared)
    marks.append(time.perf_counter())
    model = loading.load(artifact, declared, settings)
    marks.append(time.perf_counter())
    predicted = model.example() is not None
    marks.append(time.perf_counter())
    model.example()
    marks.append(time.perf_counter())
    spans = [1000 * (end - start) for start, end in pairwise(marks)]
    return {"milliseconds": spans, "predicted": predicted}


def table(profiles: list[Profile]) -> str:
    """Return milliseconds, a line per phase and a column per model, then a line per failure."""
    lines = []
    measured = [each for each in profiles if not each.error]
    if measured:
        width = max(14, *(len(each.model) + 2 for each in measured))
        lines.append(
            f"{'milliseconds':40}" + "".join(f"{each.model:>{width}}" for each in measured)
        )
        for number, phase in enumerate(PHASES):
            cells = "".join(f"{each.milliseconds[number]:{width}.1f}" for each in measured)
            lines.append(f"{phase:40}{cells}")
        total = "".join(f"{sum(each.milliseconds[:-1]):{width}.1f}" for each in measured)
        lines.append(f"{'together, to the first answer':40}{total}")
    lines += [
        f"{each.model}: no request was found that it accepts, predictions are not measured"
        for each in measured
        if not each.predicted
    ]
    lines += [f"{each.model}: not measured: {each.error}" for each in profiles if each.error]
    return "\n".join(lines)


def picture(profiles: list[Profile]) -> str:
    """Return the same as an SVG: a bar per measured model, a piece per phase."""
    profiles = [each for each in profiles if not each.error]
    longest = max((sum(each.milliseconds[:-1]) for each in profiles), default=0.0)
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
