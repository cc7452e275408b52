"""Tensor ⇄ array, text, table: what a request's data means, and how a result is spelled.

Decoding order and results are MLServer's, with its losses mended: a value that does not
fit its datatype is refused, never wrapped, cut or made infinite. The plain numeric path
is one conversion in C; only a request that looks wrong pays for a second look.
pandas is imported by the first request that needs a table.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import chain
from math import isnan, nan, prod
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import orjson

from mlserverless import memory
from mlserverless.errors import NAME_LIMIT, BadRequest, MLServerlessError, TooLarge, quote
from mlserverless.protocol import (
    InferenceRequest,
    Raw,
    RequestInput,
    RequestOutput,
    ResponseOutput,
)
from mlserverless.settings import ModelSettings

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": "?",
        "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8",
        "INT8": "i1", "INT16": "i2", "INT32": "i4", "INT64": "i8",
        "FP16": "f2", "FP32": "f4", "FP64": "f8",
    }.items()
}  # fmt: skip
_DATATYPES: Final = {dtype: name for name, dtype in DTYPES.items()}

INPUT_CODECS: Final = ("np", "str", "base64", "datetime", "pd_json")
REQUEST_CODECS: Final = ("np", "pd", "str")

MAX_NAMES_SHOWN: Final = 10  # names of columns that one message lists
_MAX_NAMES_COMPARED: Final = 100  # columns of a request that are compared for a misspelling

_INFINITE: Final = frozenset({"inf", "infinity"})
_EXACT: Final = 2.0**53  # from here on a double no longer tells neighbours apart
_TEXT_FACTOR: Final = 8  # padded text may take this many times the body limit


# ── decoding ────────────────────────────────────────────────────────────────────────────


class TrainedColumn(Protocol):
    """One column of the training data; see `metadata.Column`."""

    @property
    def name(self) -> str:
        """The column's name."""

    @property
    def missing(self) -> Any:
        """The value that stands for a JSON null: NaN or None."""

    @property
    def categories(self) -> Array | None:
        """The categories, if the estimator requires pandas' category dtype."""


class TrainedInputs(Protocol):
    """What an estimator takes; see `metadata.InputSchema`."""

    @property
    def columns(self) -> Sequence[TrainedColumn]:
        """The columns in training order."""

    @property
    def has_names(self) -> bool:
        """Whether the estimator was trained on a DataFrame."""

    @property
    def positions(self) -> Sequence[TrainedColumn]:
        """The columns of an estimator that was trained on arrays, if they are known."""

    @property
    def takes_documents(self) -> bool:
        """Whether the estimator takes a list of strings."""


class TrainedModel(Protocol):
    """A loaded model. Only requests that need its properties read them."""

    @property
    def schema(self) -> TrainedInputs:
        """What the estimator takes."""

    @property
    def unused_columns(self) -> frozenset[str]:
        """The columns that the estimator drops, which a request may leave out."""


def decode(
    request: InferenceRequest,
    model: ModelSettings,
    body_limit: int,
    trained: TrainedModel | None = None,
) -> Any:
    """Return what the estimator is called with: an array, a list, or a DataFrame.

    `body_limit` (bytes) bounds what padding text may allocate. `trained` decides what the
    request leaves open: the order of columns, missing values, and whether text is a list.
    Raises BadRequest with one sentence, TooLarge if the padded text would not fit.
    """
    declared = {tensor.name: tensor.content_type for tensor in model.inputs}
    codecs = [_input_codec(tensor, declared.get(tensor.name)) for tensor in request.inputs]
    content_type = request.content_type or model.content_type
    codec = _request_codec(content_type)
    if codec == "pd":
        return _table(request.inputs, codecs, body_limit, trained)
    if len(request.inputs) != 1:
        raise BadRequest(
            f"this request is decoded as one tensor and has {len(request.inputs)} inputs; "
            'set parameters.content_type to "pd" for one input a column'
        )
    tensor, own = request.inputs[0], codecs[0]
    if own == "pd_json":  # means something inside a table only
        own = None
    if (
        tensor.datatype == "BYTES"
        and own is None
        and codec != content_type  # the request leaves the codec open
        and trained is not None
        and trained.schema.takes_documents
    ):
        own = "str"
    return _DECODERS[own or codec](tensor, body_limit)


def _input_codec(tensor: RequestInput, declared: str | None) -> str | None:
    name = tensor.content_type or declared
    if name is not None and name not in INPUT_CODECS:
        raise BadRequest(
            f"content_type {quote(name)} of input {quote(tensor.name)} is not known; "
            f"known are {', '.join(INPUT_CODECS)}"
        )
    return name


def _request_codec(name: str | None) -> str:
    if name is None or name in REQUEST_CODECS:
        return name or "np"
    if name in INPUT_CODECS:  # ignored here, as MLServer does
        return "np"
    raise BadRequest(
        f"content_type {quote(name)} of the request is not known; "
        f"known are {', '.join(REQUEST_CODECS)}"
    )


def _complain(tensor: RequestInput, complaint: str) -> BadRequest:
    return BadRequest(f"input {quote(tensor.name)}: {complaint}")


def _fit(tensor: RequestInput, count: int) -> tuple[int, ...]:
    """The shape with its -1 filled in, when `count` elements fit it exactly."""
    shape = tensor.shape
    if -1 in shape:
        rest = prod(length for length in shape if length != -1)
        if rest and count % rest == 0:
            return tuple([count // rest if length == -1 else length for length in shape])
    elif prod(shape) == count:
        return shape
    raise _complain(tensor, f"{count} elements do not fit shape {_shown(shape)}")


def _shown(shape: Sequence[int]) -> str:
    return quote("[" + ", ".join(map(str, shape)) + "]")


def _reshape(tensor: RequestInput, values: Array) -> Array:
    shape = _fit(tensor, values.size)
    try:
        return values.reshape(shape)
    except (ValueError, OverflowError) as error:  # lengths, or their product, that numpy has not
        raise _complain(tensor, "the shape is beyond what an array can have") from error


def _array(tensor: RequestInput, body_limit: int) -> Array:
    """`np`: numbers as their datatype, text as numpy text; always in the tensor's shape."""
    if tensor.datatype == "BYTES":
        return _text_array(tensor, body_limit)
    if isinstance(tensor.data, Raw):
        return _raw_numbers(tensor, tensor.data)
    _check_length(tensor)
    convert = _booleans if tensor.datatype == "BOOL" else _integers
    if tensor.datatype.startswith("FP"):
        convert = _floats
    return _reshape(tensor, convert(tensor))


def _check_length(tensor: RequestInput) -> None:
    """Refuse what cannot fit before it is converted: a list that is longer than its shape."""
    data = tensor.data
    if type(data) is list and data:
        if type(data[0]) is not list:
            _fit(tensor, len(data))
        elif len(data) > prod(tensor.shape) > 0:
            raise _complain(tensor, f"{len(data)} rows do not fit shape {_shown(tensor.shape)}")


def _kinds(data: Any) -> set[type]:
    """The types of the elements; list among them where they are nested unevenly."""
    level = [data]
    while (kinds := set(map(type, level))) == {list}:
        level = list(chain.from_iterable(level))
    return kinds


def _natural(tensor: RequestInput, complaint: str) -> Array:
    types = _kinds(tensor.data)
    if type(None) in types:
        raise _complain(tensor, f"{complaint}; use FP64 for missing values")
    if str in types:  # numpy would pad all of them to the longest
        raise _complain(tensor, complaint)
    try:
        return np.array(tensor.data)
    except ValueError as error:  # ragged, or nested deeper than numpy goes
        raise _complain(tensor, "data must be a flat list, or nested evenly") from error


def _floats(tensor: RequestInput) -> Array:
    dtype = DTYPES[tensor.datatype]
    try:
        with np.errstate(over="ignore"):
            values = np.array(tensor.data, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise _complain(
            tensor, f"data must be numbers that {tensor.datatype} can hold, evenly nested"
        ) from error
    infinite = np.isinf(values)
    if infinite.any():
        suspects = zip(_leaves(tensor.data), infinite.ravel().tolist(), strict=True)
        for leaf, suspect in suspects:
            if suspect and not (
                isinstance(leaf, str) and leaf.strip().lower().lstrip("+-") in _INFINITE
            ):
                raise _complain(tensor, f"a value is out of range for {tensor.datatype}")
    return values


def _booleans(tensor: RequestInput) -> Array:
    complaint = "data must be booleans or numbers"
    values = _natural(tensor, complaint)
    if values.dtype.kind not in "biuf":
        raise _complain(tensor, complaint)
    truths: Array = values != 0
    return truths


def _integers(tensor: RequestInput) -> Array:
    complaint = f"data must be whole numbers for {tensor.datatype}"
    values = _natural(tensor, complaint)
    dtype = DTYPES[tensor.datatype]
    if values.size == 0:
        return values.astype(dtype)
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    if kind in "iu":
        if int(values.min()) >= limits.min and int(values.max()) <= limits.max:
            return values.astype(dtype, copy=False)
        raise _complain(tensor, f"a value is out of range for {tensor.datatype}")
    if kind != "f":
        raise _complain(tensor, complaint)
    if (np.abs(values) < _EXACT).all():
        if not (values == np.trunc(values)).all():
            raise _complain(tensor, complaint)
        if values.min() < limits.min or values.max() > limits.max:
            raise _complain(tensor, f"a value is out of range for {tensor.datatype}")
        return values.astype(dtype)
    # whole numbers and fractions mixed near 2^53: each is looked at as Python sees it
    exact = [_whole(tensor, leaf) for leaf in _leaves(tensor.data)]
    if min(exact) < limits.min or max(exact) > limits.max:
        raise _complain(tensor, f"a value is out of range for {tensor.datatype}")
    return np.array(exact, dtype).reshape(values.shape)


def _whole(tensor: RequestInput, leaf: Any) -> int:
    if isinstance(leaf, float) and not leaf.is_integer():
        raise _complain(tensor, f"data must be whole numbers for {tensor.datatype}")
    return int(leaf)


def _leaves(data: Any) -> list[Any]:
    """Every element of nested lists in row-major order; no recursion, no second pass."""
    if not isinstance(data, list):
        return [data]
    found: list[Any] = []
    stack = [iter(data)]
    while stack:
        for item in stack[-1]:
            if type(item) is list:
                stack.append(iter(item))
                break
            found.append(item)
        else:
            stack.pop()
    return found


def _raw_numbers(tensor: RequestInput, raw: Raw) -> Array:
    dtype = DTYPES[tensor.datatype]
    count, odd = divmod(len(raw.view), dtype.itemsize)
    if odd:
        raise _complain(
            tensor, f"{len(raw.view)} bytes are no whole number of {tensor.datatype} elements"
        )
    _fit(tensor, count)
    if tensor.datatype == "BOOL":
        return _reshape(tensor, np.frombuffer(raw.view, np.uint8) != 0)
    # a copy: estimators may write to their input, and the bytes need not be aligned
    values = np.frombuffer(raw.view, dtype.newbyteorder("<")).astype(dtype)
    return _reshape(tensor, values)


def _raw_text(tensor: RequestInput, raw: Raw) -> list[str]:
    view, texts, offset = raw.view, list[str](), 0
    try:
        while offset < len(view):
            start = offset + 4
            offset = start + int.from_bytes(view[offset:start], "little")
            if start > len(view) or offset > len(view):
                raise _complain(tensor, "the length of an element runs past the tensor's end")
            texts.append(str(view[start:offset], "utf-8"))
    except UnicodeDecodeError as error:
        raise _complain(tensor, "an element is not valid UTF-8") from error
    return texts


def _texts(tensor: RequestInput, null: bool = False) -> list[Any]:
    """The elements as strings (or None where `null` allows it), as many as the shape says."""
    if isinstance(tensor.data, Raw):
        texts: list[Any] = _raw_text(tensor, tensor.data)
    else:
        texts = _leaves(tensor.data)
        kinds = set(map(type, texts))
        if not kinds <= ({str, type(None)} if null else {str}):
            raise _complain(tensor, "data must be strings")
    _fit(tensor, len(texts))
    return texts


def _text_array(tensor: RequestInput, body_limit: int) -> Array:
    texts = _texts(tensor)
    width = max(map(len, texts), default=0)
    if 4 * width * len(texts) > body_limit * _TEXT_FACTOR:
        raise TooLarge(
            f"input {quote(tensor.name)}: one long string would pad all {len(texts)} to "
            f'{width} characters; ask with content_type "str" instead'
        )
    # numpy text forgets trailing NULs; objects keep them
    padded = not any(text.endswith("\0") for text in texts)
    return _reshape(tensor, np.array(texts, "U" if padded else object))


def _strings(tensor: RequestInput, _: int) -> list[str]:
    return _texts(tensor)


def _unbase64(tensor: RequestInput, text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _complain(tensor, "an element is not valid base64") from error


def _undatetime(tensor: RequestInput, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise _complain(tensor, "an element is not an ISO 8601 date and time") from error


def _unjson(tensor: RequestInput, text: str) -> Any:
    raw = text.encode()
    memory.check_json(raw)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _complain(tensor, "an element is not valid JSON") from error


_ELEMENTS: Final[dict[str, Callable[[RequestInput, str], Any]]] = {
    "base64": _unbase64,
    "datetime": _undatetime,
    "pd_json": _unjson,
}


def _elements(tensor: RequestInput, codec: str, null: bool = False) -> list[Any]:
    decode_one = _ELEMENTS[codec]
    texts = _texts(tensor, null)
    return [None if text is None else decode_one(tensor, text) for text in texts]


_DECODERS: Final[dict[str, Callable[[RequestInput, int], Any]]] = {
    "np": _array,
    "str": _strings,
    "base64": lambda tensor, _: _elements(tensor, "base64"),
    "datetime": lambda tensor, _: _elements(tensor, "datetime"),
}


def _pandas() -> Any:
    try:
        import pandas as pd  # noqa: PLC0415 - a request without a table must not pay for it
    except ImportError as error:
        raise MLServerlessError(
            'this server has no pandas, which content_type "pd" needs; ask with "np"'
        ) from error
    return pd


def _table(
    inputs: Sequence[RequestInput],
    codecs: Sequence[str | None],
    body_limit: int,
    trained: TrainedModel | None,
) -> pd.DataFrame:
    """Return a DataFrame with one column per input, in training order where that is known.

    The dtype of a column follows from its datatype and codec, never from its values: a row
    reaches the estimator as the same values, whatever the other rows of the request are.
    """
    if not inputs:
        raise BadRequest("a table needs at least one input, one a column")
    schema = None if trained is None else trained.schema
    if schema is not None and schema.takes_documents:
        raise BadRequest(
            "this model takes a list of strings, not a DataFrame: "
            'send one input and set content_type to "str"'
        )
    pandas = _pandas()
    known: dict[str, TrainedColumn] = {}
    if schema is not None and schema.has_names:
        known = {column.name: column for column in schema.columns}
    by_position: Sequence[TrainedColumn] = ()
    if schema is not None and not known and len(schema.positions) == len(inputs):
        by_position = schema.positions
    columns: dict[str, Any] = {}
    rows: int | None = None
    for place, (tensor, codec) in enumerate(zip(inputs, codecs, strict=True)):
        if tensor.name in columns:
            raise _complain(tensor, "this name is given to two columns")
        trained_column = by_position[place] if by_position else known.get(tensor.name)
        column = _column(tensor, codec, body_limit, trained_column)
        if rows is not None and len(column) != rows:
            raise _complain(tensor, f"{len(column)} rows where the columns before have {rows}")
        rows = len(column)
        columns[tensor.name] = column
    if known and trained is not None:
        columns = _sort_as_trained(columns, known, trained)
    table: pd.DataFrame = pandas.DataFrame(columns)
    return table


def _sort_as_trained(
    columns: Mapping[str, Any], names: Mapping[str, Any], trained: TrainedModel
) -> dict[str, Any]:
    """Return the columns in the order of `names`, others after them.

    Raises BadRequest if one that the estimator needs is missing.
    """
    missing = [name for name in names if name not in columns]
    if missing:
        missing = [name for name in missing if name not in trained.unused_columns]
    if missing:
        others = [name for name in columns if name not in names]
        raise BadRequest(_describe_missing(missing, others))
    return {**{name: columns[name] for name in names if name in columns}, **columns}


def _describe_missing(missing: Sequence[str], others: Sequence[str]) -> str:
    shown = [quote(name) for name in missing[:MAX_NAMES_SHOWN]]
    listed = ", ".join(shown) + (", …" if missing[MAX_NAMES_SHOWN:] else "")
    similar = [
        f"{quote(found)} for {quote(name)}"
        for name in missing[:MAX_NAMES_SHOWN]
        if (found := _find_similar_name(name, others)) is not None
    ]
    hint = f"; the request has {', '.join(similar)}" if similar else ""
    columns = "the column" if len(missing) == 1 else "the columns"
    return f"{columns} {listed} that the model was trained with must be in the request{hint}"


def _find_similar_name(name: str, others: Sequence[str]) -> str | None:
    """Return the one of `others` that may be `name` misspelled, or None."""
    from difflib import get_close_matches  # noqa: PLC0415 - only a wrong request needs it

    # the comparison takes quadratic time, and a client chooses the names
    short = [other for other in others[:_MAX_NAMES_COMPARED] if len(other) <= 2 * len(name) + 2]
    folded = {other.strip().casefold(): other for other in short}
    found = get_close_matches(name.casefold()[:NAME_LIMIT], folded, n=1)
    return folded[found[0]] if found else None


def _column(
    tensor: RequestInput, codec: str | None, body_limit: int, known: TrainedColumn | None
) -> Any:
    """Return one column's values with the dtype that its datatype and codec decide."""
    if len(tensor.shape) not in (1, 2) or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
        raise _complain(tensor, f"a column has shape [n] or [n, 1], not {_shown(tensor.shape)}")
    missing = nan if known is None else known.missing
    if codec is None and tensor.datatype == "BYTES":
        codec = getattr(known, "content_type", None)  # the metadata's is the default
    if codec == "datetime":
        return _datetime_column(tensor)
    if codec in _ELEMENTS:
        return _object_column(_elements(tensor, codec, null=True), missing)
    is_text = codec == "str" or tensor.datatype == "BYTES"
    values: Any = _texts(tensor, null=True) if is_text else _array(tensor, body_limit).ravel()
    if known is not None and known.categories is not None:
        listed = values if is_text else values.tolist()
        return _category_column(tensor, listed, known.categories.tolist())
    return _text_column(values, missing) if is_text else values


def _text_column(texts: Sequence[Any], missing: Any) -> Any:
    if missing is None:
        return _object_column(texts, missing)
    filled = [missing if text is None else text for text in texts]
    return _pandas().Series(filled, dtype=_text_dtype())


@cache
def _text_dtype() -> Any:
    """Return the dtype of a text column: `str` in pandas 3, object in pandas 2."""
    return _pandas().Series(["text"]).dtype


def _object_column(values: Sequence[Any], missing: Any) -> Any:
    filled = [missing if value is None else value for value in values]
    return _pandas().Series(filled, dtype=object)


def _datetime_column(tensor: RequestInput) -> Any:
    values, pandas = _elements(tensor, "datetime", null=True), _pandas()
    has_offset = {value.tzinfo is not None for value in values if value is not None}
    if len(has_offset) > 1:
        raise _complain(tensor, "either all elements have a UTC offset, or none")
    if has_offset == {True}:
        return pandas.Series([pandas.NaT if value is None else value for value in values])
    return pandas.Series(values, dtype="datetime64[us]")


def _category_column(tensor: RequestInput, values: list[Any], categories: list[Any]) -> Any:
    """Return a categorical column; a value that training has not seen is missing in it."""
    codes = {category: code for code, category in enumerate(categories)}
    is_text = {isinstance(category, str) for category in categories}
    present = [value for value in values if not _missing(value)]
    if is_text and not is_text.issuperset(isinstance(value, str) for value in present):
        complaint = "strings: send BYTES" if is_text == {True} else "numbers: send numbers"
        raise _complain(tensor, f"the categories of this column are {complaint}")
    found = [codes.get(value, -1) for value in values]
    return _pandas().Categorical.from_codes(found, categories=categories)


# ── rows ────────────────────────────────────────────────────────────────────────────────


def count_rows(data: Any) -> int | None:
    """Return how many rows a decoded request has; None for a tensor of shape []."""
    shape = getattr(data, "shape", None)
    if shape is None:
        return len(data)
    return int(shape[0]) if shape else None


def has_rows(value: Any, rows: int) -> bool:
    """Return whether a result has one row for each of `rows`; a scalar counts as one row.

    Results of several estimators may be stacked: [estimators, rows, classes].
    """
    shape = getattr(value, "shape", None)
    if shape is not None:
        if (shape[0] if shape else 1) == rows:
            return True
        return len(shape) > 2 and bool(shape[1] == rows)
    if isinstance(value, tuple):  # a scalar beside arrays, such as a total, has no rows
        return all(np.ndim(part) == 0 or has_rows(part, rows) for part in value)
    if isinstance(value, list):
        is_per_target = bool(value) and all(isinstance(part, np.ndarray) for part in value)
        return len(value) == rows or (is_per_target and all(has_rows(part, rows) for part in value))
    return rows == 1


# ── encoding ────────────────────────────────────────────────────────────────────────────


def encode(
    results: Sequence[tuple[RequestOutput, Any]], request: InferenceRequest, model: ModelSettings
) -> list[ResponseOutput]:
    """Spell what the estimator answered, each result under the name that was asked for.

    Raises BadRequest for a content type that cannot hold its data, and for two tables.
    """
    declared = {tensor.name: tensor.content_type for tensor in model.outputs}
    all_binary = request.parameters.get("binary_data_output") is True
    outputs: list[ResponseOutput] = []
    tables = 0
    for asked, value in results:
        codec = _output_codec(asked, declared.get(asked.name))
        wish = asked.parameters.get("binary_data")
        binary = wish is True or (wish is None and all_binary)
        if _is_table(value):
            tables += 1
            if tables > 1:
                raise BadRequest(f"{asked.name} is a second table; ask for one at a time")
            outputs += [_spell_column(str(key), value[key], binary) for key in value.columns]
        else:
            parts = _parts(asked.name, value)
            outputs += [_spell(name, part, codec, binary) for name, part in parts]
    return outputs


def _output_codec(asked: RequestOutput, declared: str | None) -> str | None:
    name = asked.content_type or declared
    if name is None or name == "pd":  # a request codec, ignored here as MLServer does
        return None
    if name not in INPUT_CODECS:
        raise BadRequest(
            f"content_type {quote(name)} of output {quote(asked.name)} is not known; "
            f"known are {', '.join(INPUT_CODECS)}"
        )
    return name


def _is_table(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "dtypes")


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """One result as the tensors it makes: a list of arrays may be one, or one each."""
    if hasattr(value, "toarray"):  # scipy's sparse matrices and arrays
        return [(name, value.toarray())]
    if isinstance(value, tuple):  # several results of one call, each with its own datatype
        return [(f"{name}_{index}", _dense(part)) for index, part in enumerate(value)]
    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        if len({np.shape(part) for part in value}) == 1:
            return [(name, np.stack(value))]
        return [(f"{name}_{index}", part) for index, part in enumerate(value)]
    return [(name, value)]


def _dense(value: Any) -> Any:
    """Return a sparse result, or a DataFrame in a tuple, as an array."""
    if hasattr(value, "toarray"):
        return value.toarray()
    return value.to_numpy() if _is_table(value) else value


def _spell(name: str, value: Any, codec: str | None, binary: bool) -> ResponseOutput:
    if isinstance(value, list) and value:
        own = _element_codec(value)
        if own is not None:
            return _text_output(name, (len(value), 1), value, codec or own, binary)
    array = _plain(value)
    shape = array.shape if array.ndim > 1 else (array.size, 1) if array.ndim else (1,)
    kind = array.dtype.kind
    if kind in "biuf":
        if codec not in (None, "np"):
            raise BadRequest(f"output {quote(name)} is numbers, which {codec} cannot hold")
        return _number_output(name, shape, array, "np", binary)
    if kind == "M":
        array = array.astype("datetime64[us]").astype(object)
        codec = codec or "datetime"
    elif kind not in "USO":
        raise BadRequest(f"output {quote(name)} is {array.dtype}, which JSON cannot hold")
    return _text_output(name, shape, array.ravel().tolist(), codec or "np", binary)


def _element_codec(items: Sequence[Any]) -> str | None:
    """The codec that holds every element (None is missing), if one does."""
    for kind, codec in ((str, "str"), (bytes, "base64"), (datetime, "datetime")):
        if all(item is None or isinstance(item, kind) for item in items):
            return codec
    return None


def _plain(value: Any) -> Array:
    """The result as an array; objects that are all numbers as the numbers they are."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise BadRequest("the model answered with a ragged list") from error
    if array.dtype.kind == "O":
        kinds = set(map(type, array.ravel().tolist()))
        if kinds == {bool} or (kinds and kinds <= {int, float}):
            return np.array(array.tolist())
    return array


def _number_output(
    name: str, shape: tuple[int, ...], array: Array, content_type: str | None, binary: bool
) -> ResponseOutput:
    dtype = array.dtype if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    datatype = _DATATYPES[dtype.newbyteorder("=")]
    if binary:
        data: Any = array.astype(dtype.newbyteorder("<"), copy=False).tobytes()
    else:
        # only a double prints the exact value of a narrower float
        spelled = np.dtype(np.float64) if dtype.kind == "f" else dtype.newbyteorder("=")
        data = np.ascontiguousarray(array, spelled).reshape(-1)
    return ResponseOutput(name, shape, datatype, data, content_type, binary)


def _text_output(
    name: str, shape: tuple[int, ...], items: Sequence[Any], codec: str, binary: bool
) -> ResponseOutput:
    spell_one = _SPELLERS[codec]
    try:
        texts = [None if _missing(item) else spell_one(item) for item in items]
    except (TypeError, ValueError) as error:
        raise BadRequest(f"output {quote(name)} holds what {codec} cannot hold") from error
    data: Any = _raw_elements(name, texts) if binary else texts
    return ResponseOutput(name, shape, "BYTES", data, codec, binary)


def _missing(item: Any) -> bool:
    return item is None or (isinstance(item, float) and isnan(item))


def _raw_elements(name: str, texts: Sequence[Any]) -> bytes:
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"output {quote(name)} has elements that are no text; ask for it as JSON")
    raw = [text.encode() for text in texts]
    return b"".join([part for each in raw for part in (len(each).to_bytes(4, "little"), each)])


def _spell_text(item: Any) -> str:
    if isinstance(item, bytes):
        return item.decode()
    if isinstance(item, str):
        return str(item)
    raise TypeError(type(item))


def _spell_scalar(item: Any) -> Any:
    # MLServer's np: whatever an object array holds, as JSON has it
    return item if isinstance(item, bool | int | float) else _spell_text(item)


def _spell_base64(item: Any) -> str:
    raw = item if isinstance(item, bytes) else _spell_text(item).encode()
    return base64.b64encode(raw).decode("ascii")


def _spell_datetime(item: Any) -> str:
    if not isinstance(item, datetime):
        raise TypeError(type(item))
    return item.isoformat()


def _spell_json(item: Any) -> str:
    memory.check_spelling(item)
    return orjson.dumps(item, option=orjson.OPT_SERIALIZE_NUMPY, default=str).decode()


_SPELLERS: Final[dict[str, Callable[[Any], Any]]] = {
    "np": _spell_scalar,
    "str": _spell_text,
    "base64": _spell_base64,
    "datetime": _spell_datetime,
    "pd_json": _spell_json,
}


def _spell_column(name: str, column: pd.Series[Any], binary: bool) -> ResponseOutput:
    values = column.to_numpy()
    shape = (len(values), 1)
    if values.dtype.kind in "biuf":
        return _number_output(name, shape, values, None, binary)
    # object() rather than the column's own kind: it can hold None for every sort of missing
    items = column.astype(object).where(column.notna(), None).tolist()
    present = [item for item in items if item is not None]
    if present and all(isinstance(item, bool | int | float) for item in present):
        # pandas' own numbers with gaps: NaN is the gap that a tensor has
        full = items if len(present) == len(items) else [np.nan if i is None else i for i in items]
        return _number_output(name, shape, np.array(full), None, binary)
    codec = _element_codec(items) or "pd_json"
    return _text_output(name, shape, items, codec, binary)


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy number type, FP64 for what it has no name for."""
    return _DATATYPES.get(dtype.newbyteorder("="), "FP64")
