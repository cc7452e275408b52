"""Find a request that a model accepts: rows of values that training may have seen, then others.

The documents show it, and the SnapStart hook and `profile` predict with it. Imported at the
first use, since a prediction needs none of it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from mlserverless.metadata import Column, InputSchema, needs_dataframe
from mlserverless.protocol import TensorMetadata

EXAMPLE_SECONDS: Final = 5.0  # for all attempts together
MAX_EXAMPLE_VALUES: Final = 1_000_000  # in one request
_ROWS: Final = 5  # for methods that refuse a single row
_IMAGE: Final = (1, 20, 20)  # for transformers of images, if nothing is known of the shape

Example = dict[str, Any]
_BYTES_VALUES: Final = {"base64": "dGV4dA==", "datetime": "2026-01-01T00:00:00", "pd_json": "{}"}


class ExampleFinder:
    """Tries made-up requests on a model until it accepts one.

    `content_type` is the one that the operator declared for requests, `output` the one to request
    if the model has no default. `attempt` is called with a request and raises if the model does
    not accept it.
    """

    def __init__(
        self,
        schema: InputSchema,
        tensors: Sequence[TensorMetadata],
        content_type: str | None,
        output: str | None,
        attempt: Callable[[Example], object],
    ) -> None:
        self._schema = schema
        self._tensors = tensors
        self._content_type = content_type
        self._output = output
        self._attempt = attempt
        self._found: Example | None = None
        self._thread: threading.Thread | None = None

    def find(self) -> Example | None:
        """Return a request that the model has just accepted; None if none was found in time.

        A request that was found before is tried first. An attempt that takes too long cannot be
        stopped: it ends on its thread, and until then there is no other attempt.
        """
        if self._thread is not None and self._thread.is_alive():
            return None
        accepted: list[Example] = []
        self._thread = threading.Thread(target=self._search, args=[accepted], daemon=True)
        self._thread.start()
        self._thread.join(EXAMPLE_SECONDS)
        return accepted[0] if accepted else None

    def _search(self, accepted: list[Example]) -> None:
        end = time.monotonic() + EXAMPLE_SECONDS
        try:
            for example in self._candidates():
                if time.monotonic() > end:
                    return
                if self._is_accepted(example):
                    self._found = example
                    accepted.append(example)
                    return
        except BaseException:  # noqa: BLE001, S110 - a declared shape may be anything
            pass

    def _is_accepted(self, example: Example) -> bool:
        try:
            self._attempt(example)
        except BaseException:  # noqa: BLE001 - an estimator may raise anything
            return False
        return True

    def _candidates(self) -> Iterator[Example]:
        if self._found is not None:
            yield self._found
        yield self._request(None)
        yield self._request(1)
        yield self._request(None, rows=_ROWS)
        yield self._request(1, rows=_ROWS)
        yield self._request(0.5)
        if self._is_unknown():
            yield self._request(0, shape=_IMAGE)

    def _is_unknown(self) -> bool:
        return len(self._tensors) == 1 and self._tensors[0].shape == (-1, -1)

    def _request(
        self, number: float | None, rows: int = 1, shape: tuple[int, ...] | None = None
    ) -> Example:
        """Build a request. `number` replaces every number; None leaves the column's example."""
        columns = self._schema.columns or self._schema.positions
        known = {column.name: column for column in columns}
        inputs = []
        for tensor in self._tensors:
            lengths = list(shape or tensor.shape)
            if lengths and lengths[0] < 0:
                lengths[0] = rows
            lengths = [1 if length < 0 else length for length in lengths]
            if math.prod(lengths) > MAX_EXAMPLE_VALUES:
                raise OverflowError
            row = _row(tensor, lengths, columns, known, number)
            inputs.append(
                {
                    "name": tensor.name,
                    "shape": lengths,
                    "datatype": tensor.datatype,
                    "parameters": _input_parameters(tensor),
                    "data": row * (math.prod(lengths) // max(1, len(row))),
                }
            )
        parameters = {}
        if self._content_type is None and needs_dataframe(self._schema, self._tensors):
            parameters["content_type"] = "pd"
        request: Example = {"parameters": parameters, "inputs": inputs}
        if self._output is not None:
            request["outputs"] = [{"name": self._output}]
        return request


def _input_parameters(tensor: TensorMetadata) -> dict[str, Any]:
    return {key: value for key, value in tensor.parameters.items() if key == "content_type"}


def _row(
    tensor: TensorMetadata,
    lengths: Sequence[int],
    columns: Sequence[Column],
    known: Mapping[str, Column],
    number: float | None,
) -> list[Any]:
    """Return the values of one row of a tensor."""
    width = math.prod(lengths[1:])
    if tensor.name in known and width == 1:
        return [_value(tensor, known[tensor.name], number)]
    if width == len(columns):
        return [_value(tensor, column, number) for column in columns]
    return [_value(tensor, None, number)] * width


def _value(tensor: TensorMetadata, column: Column | None, number: float | None) -> Any:
    """Return a value that the tensor's datatype and content type can hold."""
    example: Any = 0 if column is None else column.example
    if tensor.datatype == "BYTES":
        if column is not None and column.datatype == "BYTES" and isinstance(example, str):
            return example
        return _BYTES_VALUES.get(tensor.content_type or "", "text")
    value = example if number is None or isinstance(example, str) else number
    if isinstance(value, str):  # the operator declared numbers for a column of strings
        value = number or 0
    if tensor.datatype == "BOOL":
        return bool(value)
    return value if tensor.datatype.startswith("FP") else math.ceil(value)
