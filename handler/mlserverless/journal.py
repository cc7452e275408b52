"""What is logged: one JSON line a request, and one for every other message.

A line holds names that the owner gave, numbers and ids; never a payload, a header's value, a
client's words or a credential: of what others log, warn of or raise where nobody catches it, the
kind and the place. Lambda captures standard error, a line an entry; on it, lines are metrics too,
by CloudWatch's embedded metric format.
Source: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType, TracebackType
from typing import Any, Final

import orjson

STDERR: Final = 2
NAMESPACE: Final = "MLServerless"
METRICS: Final = {
    "predict_ms": "Milliseconds",
    "rows": "Count",
    "cold_starts": "Count",
    "model_load_ms": "Milliseconds",
    "load_failures": "Count",
    "server_errors": "Count",
    "predict_failures": "Count",
}
# A canary's alarm watches the new version alone: by function and by function_version.
_BY_VERSION: Final = frozenset({"server_errors"})
# `…Z`, as Lambda documents timestamps of log entries, and not `…+00:00`
_ENCODING: Final = orjson.OPT_UTC_Z

# What a pipe takes whole or not at all, whoever else writes; longer lines are cut to it.
_WHOLE: Final = select.PIPE_BUF
_SHORT: Final = 200  # characters of each text in a line that would be longer
# Lambda's names of levels: a line of another is one of INFO to it
_LEVELS: Final = {"WARNING": "WARN", "CRITICAL": "FATAL"}
# Libraries that would log headers, signatures and paths to whoever asks for everything.
_TALKATIVE: Final = ("asyncio", "boto3", "botocore", "urllib3", "uvicorn")

_PLACES: Final = 20  # of a traceback, the innermost

Fields = Mapping[str, Any]


class Line:
    """What is known of one request, filled in on its way; what it never came to stays None."""

    route: str | None = None
    model: str | None = None
    version: str | None = None
    rows: int | None = None
    bytes_in: int | None = None
    load_ms: float | None = None
    predict_ms: float | None = None
    error: str | None = None  # a sentence of ours, where the fault is not the client's

    def __init__(self, ids: Fields = MappingProxyType({})) -> None:
        self.started = time.perf_counter()
        self.ids = ids  # of the request: Lambda's, the gateway's, X-Ray's


class Journal(logging.Handler):
    """Writes lines of a level and above.

    `function` is the name of the Lambda function and `version` its published version, None
    elsewhere.
    """

    def __init__(self, level: str, function: str | None = None, version: str | None = None) -> None:
        super().__init__(level)
        self.function = function
        self.version = version
        self.cold = True

    def attach(self) -> None:
        """Take every message of ours, and whatever Python would warn of."""
        ours = logging.getLogger("mlserverless")
        ours.handlers = [self]
        ours.setLevel(self.level)
        ours.propagate = False
        logging.getLogger().handlers = [self]
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        warnings.showwarning = self._warned  # type: ignore[assignment] # called by position
        sys.unraisablehook = lambda said: self._uncaught(said.exc_type, said.exc_traceback)
        threading.excepthook = lambda said: self._uncaught(said.exc_type, said.exc_traceback)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message of ours, with the `fields` that came with it as `extra`."""
        if record.name.partition(".")[0] == "mlserverless":
            self._write(record.levelname, record.getMessage(), getattr(record, "fields", {}))
        else:
            where = f"{os.path.basename(record.pathname)}:{record.lineno}"
            self._write(record.levelname, f"{record.name} logged a message", {"where": where})

    def request(self, line: Line, status: int, bytes_out: int) -> None:
        """Write the line of a request that has been answered."""
        number = (
            logging.INFO if status < 400 else logging.WARNING if status < 500 else logging.ERROR
        )
        cold, self.cold = self.cold, False
        if number < self.level:
            return
        fields = {
            "route": line.route,
            "model": line.model,
            "version": line.version,
            "status": status,
            "rows": line.rows,
            "bytes_in": line.bytes_in,
            "bytes_out": bytes_out,
            "load_ms": line.load_ms,
            "predict_ms": line.predict_ms,
            "ms": milliseconds(line.started),
            "cold": cold,
            **line.ids,
        }
        if cold:
            fields["cold_starts"] = 1
        if status >= 500 and self.version is not None:
            fields["server_errors"] = 1
            fields["function_version"] = self.version
        if line.error is not None:
            fields["error"] = line.error
        self._write(logging.getLevelName(number), "request", fields)

    def _write(self, level: str, message: str, fields: Fields) -> None:
        now = datetime.now(UTC)
        level = _LEVELS.get(level, level)
        line = {"timestamp": now, "level": level, "message": message, **fields}
        if self.function is not None:
            names = tuple([name for name in METRICS if line.get(name) is not None])
            if names:
                at = int(now.timestamp() * 1000)
                line["function"] = self.function
                line["_aws"] = {"Timestamp": at, "CloudWatchMetrics": _metrics(names)}
        try:
            text = orjson.dumps(line, option=_ENCODING)
            if len(text) >= _WHOLE:
                line = {name: _cut(value) for name, value in line.items()}
                text = orjson.dumps(line, option=_ENCODING)
            # a full pipe that nobody reads would keep the request for ever
            if select.select((), (STDERR,), (), 0)[1]:
                os.write(STDERR, text + b"\n")
        except Exception:  # noqa: BLE001, S110 - whatever it is, it is no request's fault
            pass

    def _warned(
        self, _: Any, category: type[Warning], filename: str, lineno: int, *__: Any
    ) -> None:
        # a warning's words may hold what an estimator was asked with
        where = {"where": f"{os.path.basename(filename)}:{lineno}"}
        self._write("WARNING", f"{category.__name__} was raised", where)

    def _uncaught(self, kind: type[BaseException], where: TracebackType | None) -> None:
        message = f"{kind.__name__} was raised where nobody catches it"
        self._write("ERROR", message, {"where": places(where)})


def places(where: TracebackType | None) -> str:
    """The last places that an exception went through, the innermost last, without its words."""
    found = traceback.extract_tb(where, -_PLACES)
    return "; ".join(f"{_module(each.filename)}:{each.lineno} {each.name}" for each in found)


def _module(path: str) -> str:
    return "/".join(path.split(os.sep)[-2:])


def _cut(value: Any) -> Any:
    return value[:_SHORT] if isinstance(value, str) else value


@cache
def _metrics(names: tuple[str, ...]) -> orjson.Fragment:
    """Encode the directives: one for the metrics by function, one for those by version."""
    directives = []
    for by_version in (False, True):
        each = [
            {"Name": name, "Unit": METRICS[name]}
            for name in names
            if (name in _BY_VERSION) == by_version
        ]
        if each:
            dimensions = ["function", "function_version"] if by_version else ["function"]
            directives.append({"Namespace": NAMESPACE, "Dimensions": [dimensions], "Metrics": each})
    return orjson.Fragment(orjson.dumps(directives))


def milliseconds(since: float) -> float:
    """From a `time.perf_counter()` to now, to a thousandth."""
    return round(1000 * (time.perf_counter() - since), 3)
