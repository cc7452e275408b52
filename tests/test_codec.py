"""What a request's data means, exactly; and how every result of scikit-learn is spelled."""

from __future__ import annotations

import sys
from datetime import datetime
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd
import pytest
import scipy.sparse

from mlserverless import codec, wire
from mlserverless.errors import BadRequest, MLServerlessError, TooLarge
from mlserverless.metadata import Column, InputSchema
from mlserverless.protocol import (
    DATATYPES,
    InferenceRequest,
    InferenceResponse,
    Raw,
    RequestInput,
    RequestOutput,
    TensorMetadata,
)
from mlserverless.settings import ModelSettings

MODEL = ModelSettings(name="m", location="/")
LIMIT = 10_000
NAN = float("nan")


def tensor(
    data: Any, datatype: str = "FP64", shape: Any = None, kind: str | None = None, name: str = "x"
) -> RequestInput:
    if shape is None:
        shape = np.shape(data)
    return RequestInput(
        name, tuple(shape), datatype, data, {} if kind is None else {"content_type": kind}
    )


def decode(*inputs: RequestInput, kind: str | None = None, model: ModelSettings = MODEL) -> Any:
    parameters = {} if kind is None else {"content_type": kind}
    return codec.decode(InferenceRequest(None, parameters, inputs, ()), model, LIMIT)


# ── np ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP64", [1, 2.5], np.array([1, 2.5])),
        ("FP32", [[0.1, None]], np.array([[0.1, np.nan]], np.float32)),
        ("FP16", [1.5], np.array([1.5], np.float16)),
        ("FP32", ["1.5", "nan", "-inf"], np.array([1.5, np.nan, -np.inf], np.float32)),
        ("INT64", [2**63 - 1, -(2**63)], np.array([2**63 - 1, -(2**63)])),
        ("UINT64", [2**64 - 1, 0], np.array([2**64 - 1, 0], np.uint64)),
        ("INT64", [2**53 + 1, 1.0], np.array([2**53 + 1, 1])),
        ("INT8", [1.0, -128], np.array([1, -128], np.int8)),
        ("UINT8", [True, False], np.array([1, 0], np.uint8)),
        ("INT32", [], np.array([], np.int32)),
        ("BOOL", [True, 0, 2.5], np.array([True, False, True])),
        ("BYTES", ["a", "bcd"], np.array(["a", "bcd"])),
        ("BYTES", ["a\0", ""], np.array(["a\0", ""], object)),
    ],
)
def test_np_reads_each_value_exactly_as_its_datatype(
    datatype: str, data: Any, expected: Any
) -> None:
    found = decode(tensor(data, datatype))
    assert (expected.dtype, expected.shape) == (found.dtype, found.shape)
    np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4,), (4,)), ((2, 2), (2, 2)), ((-1, 2), (2, 2)), ((-1,), (4,)), ((1, 4, 1), (1, 4, 1))],
)
def test_flat_and_nested_data_take_the_shape_that_is_asked(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        found = decode(tensor(data, "INT32", shape))
        assert expected == found.shape
        assert [1, 2, 3, 4] == found.ravel().tolist()


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_bare_scalar_fits_a_shape_of_one(shape: tuple[int, ...]) -> None:
    assert shape == decode(tensor(7, "INT8", shape)).shape


@pytest.mark.parametrize(
    ("datatype", "data", "sentence"),
    [
        ("UINT8", [300], "out of range for UINT8"),
        ("INT8", [-129], "out of range for INT8"),
        ("INT64", [2**63], "out of range for INT64"),
        ("UINT64", [-1], "out of range for UINT64"),
        ("INT64", [2**53 + 0.0, 1e19], "out of range for INT64"),
        ("INT8", [1e3], "out of range for INT8"),
        ("INT32", [1.9], "whole numbers"),
        ("INT64", [2.0**60, 0.5], "whole numbers"),
        ("INT32", [None], "whole numbers"),
        ("INT32", ["1"], "whole numbers"),
        ("FP32", [1e300], "out of range for FP32"),
        ("FP16", [70000], "out of range for FP16"),
        ("FP32", ["1e300"], "out of range for FP32"),
        ("FP64", ["one"], "numbers that FP64 can hold"),
        ("FP64", [{}], "numbers that FP64 can hold"),
        ("BOOL", ["true"], "booleans or numbers"),
        ("BOOL", [None], "booleans or numbers"),
        ("BYTES", [1], "data must be strings"),
        ("BYTES", [None], "data must be strings"),
    ],
)
def test_a_value_outside_its_datatype_is_refused_never_wrapped_or_cut(
    datatype: str, data: Any, sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        decode(tensor(data, datatype, [len(data)]))


@pytest.mark.parametrize("datatype", DATATYPES)
def test_ragged_data_is_refused_or_flattened_but_never_an_accident(datatype: str) -> None:
    item: Any = "a" if datatype == "BYTES" else 1
    ragged = tensor([[item], [item, item]], datatype, [2, 2])
    with pytest.raises(BadRequest, match=r"evenly|3 elements do not fit shape \[2, 2\]"):
        decode(ragged)


def test_more_rows_than_the_shape_has_elements_are_refused_unconverted() -> None:
    with pytest.raises(BadRequest, match=r"3 rows do not fit shape \[1, 2\]"):
        decode(tensor([[], [], []], "FP32", [1, 2]))


@pytest.mark.parametrize(
    "shape", [(3,), (2, 3), (-1, 3), (-1, 0), (10**30,), (0,), (2**62, 2**62), ()]
)
def test_the_count_is_checked_before_anything_is_allocated(shape: tuple[int, ...]) -> None:
    for each in (tensor([1, 2], "FP32", shape), tensor(["a", "b"], "BYTES", shape)):
        with pytest.raises(BadRequest, match="2 elements do not fit shape"):
            decode(each)


def test_more_dimensions_than_numpy_has_are_refused() -> None:
    for data in (1, Raw(memoryview(b"\0\0\0\0"))):
        with pytest.raises(BadRequest, match="beyond what an array can have"):
            decode(tensor(data, "FP32", [1] * 70))


def test_zero_rows_reach_the_estimator() -> None:
    assert (0, 4) == decode(tensor([], "FP32", (0, 4))).shape


def test_one_long_string_may_not_blow_the_rest_up() -> None:
    with pytest.raises(TooLarge, match="would pad all 100"):
        decode(tensor(["x" * 1000] + ["y"] * 99, "BYTES"))


# ── binary ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("datatype", codec.DTYPES)
def test_raw_numbers_keep_all_their_bits(datatype: str) -> None:
    values = np.array([0, 1, 1], codec.DTYPES[datatype])
    found = decode(tensor(Raw(memoryview(values.tobytes())), datatype, (3,)))
    assert (values.dtype, values.tobytes()) == (found.dtype, found.tobytes())
    assert found.flags.writeable or datatype == "BOOL"


@pytest.mark.parametrize(
    ("datatype", "raw", "sentence"),
    [
        ("FP32", b"12345", "5 bytes are no whole number of FP32 elements"),
        ("FP32", b"1234", r"1 elements do not fit shape \[2\]"),
        ("BYTES", b"\x01\0\0\0a", r"1 elements do not fit shape \[2\]"),
        ("BYTES", b"\x09\0\0\0a", "runs past the tensor's end"),
        ("BYTES", b"\x01\0", "runs past the tensor's end"),
        ("BYTES", b"\x01\0\0\0\xff", "not valid UTF-8"),
    ],
)
def test_raw_bytes_that_do_not_add_up_are_refused(datatype: str, raw: bytes, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        decode(tensor(Raw(memoryview(raw)), datatype, (2,)))


@pytest.mark.parametrize("shape", [(0, 2**62, 2**62), (0, 2**62, 8)])
def test_an_empty_tensor_is_no_way_around_numpys_limits(shape: tuple[int, ...]) -> None:
    none: list[float] = []
    for data in (none, Raw(memoryview(b""))):
        with pytest.raises(BadRequest, match="beyond what an array can have"):
            decode(tensor(data, "FP64", shape))


def test_strings_where_numbers_belong_are_refused_before_they_are_padded() -> None:
    """One long string among many short ones would be copied for each of them."""
    for datatype in ("INT32", "BOOL"):
        with pytest.raises(BadRequest, match=r"^input x: "):
            decode(tensor(["x" * 1_000_000] + ["1"] * 100_000, datatype, (100_001,)))


def test_raw_text_is_length_and_bytes() -> None:
    raw = b"\x01\0\0\0a\x03\0\0\0\xe2\x82\xac"
    assert ["a", "€"] == decode(tensor(Raw(memoryview(raw)), "BYTES", (2,))).tolist()


# ── the other codecs ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("str", ["a", "b"], ["a", "b"]),
        ("str", [["a"], ["b"]], ["a", "b"]),
        ("base64", ["YQ=="], [b"a"]),
        ("datetime", ["2022-01-11"], [datetime(2022, 1, 11)]),  # noqa: DTZ001 - as sent
        ("pd_json", ["{}"], np.array(["{}"])),  # outside a table it counts as absent
        ("np", ["a"], np.array(["a"])),
    ],
)
def test_an_input_names_its_codec(kind: str, data: Any, expected: Any) -> None:
    found = decode(tensor(data, "BYTES", [len(data)], kind))
    assert type(expected) is type(found)
    assert list(expected) == list(found)


def test_a_str_request_is_one_list_of_strings_whatever_the_datatype_says() -> None:
    assert ["one"] == decode(tensor("one", "FP32", [1]), kind="str")


@pytest.mark.parametrize(
    ("kind", "data", "sentence"),
    [
        ("str", [1], "data must be strings"),
        ("base64", ["a"], "not valid base64"),
        ("base64", ["é"], "not valid base64"),
        ("datetime", ["soon"], "not an ISO 8601"),
        ("hdf5", ["a"], "content_type hdf5 of input x is not known"),
    ],
)
def test_what_a_codec_cannot_read_is_the_clients_error(kind: str, data: Any, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        decode(tensor(data, "BYTES", [len(data)], kind))


def test_an_unknown_request_codec_is_refused_and_an_input_codec_ignored() -> None:
    with pytest.raises(BadRequest, match="content_type numpy of the request is not known"):
        decode(tensor([1]), kind="numpy")
    assert [1] == decode(tensor([1]), kind="base64").tolist()


def test_the_request_wins_over_the_model_and_an_input_over_its_declaration() -> None:
    declared = TensorMetadata("x", "BYTES", (-1,), {"content_type": "base64"})
    model = ModelSettings(name="m", location="/", content_type="str", inputs=(declared,))
    assert [b"a"] == decode(tensor(["YQ=="], "BYTES"), model=model)
    assert ["YQ=="] == decode(tensor(["YQ=="], "BYTES", kind="str"), model=model)
    assert ["a"] == decode(tensor(["a"], "BYTES", name="y"), model=model)
    assert ["a"] == decode(tensor(["a"], "BYTES", name="y"), kind="np", model=model).tolist()


@pytest.mark.parametrize("count", [0, 2])
def test_np_takes_exactly_one_input(count: int) -> None:
    with pytest.raises(BadRequest, match=f"one tensor and has {count} inputs"):
        decode(*[tensor([1])] * count)


# ── tables ──────────────────────────────────────────────────────────────────────────────


def test_a_table_has_a_column_an_input_each_read_by_its_own_codec() -> None:
    table = decode(
        tensor([1, 2], "INT64", name="i"),
        tensor([[1.5], [None]], "FP32", name="f"),
        tensor(["a", None], "BYTES", name="text"),
        tensor(["YQ==", None], "BYTES", kind="base64", name="raw"),
        tensor(['{"a":1}', "2"], "BYTES", kind="pd_json", name="json"),
        tensor(["a", "b"], "BYTES", kind="np", name="np"),
        kind="pd",
    )
    assert ["i", "f", "text", "raw", "json", "np"] == list(table.columns)
    assert ("int64", "float32") == (table["i"].dtype, table["f"].dtype)
    assert [True] * 3 == [bool(table[name].isna()[1]) for name in ("f", "text", "raw")]
    assert [{"a": 1}, 2] == table["json"].tolist()
    assert ["a", "b"] == table["np"].tolist()


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([], "at least one input"),
        ([tensor([1]), tensor([1])], "given to two columns"),
        ([tensor([1], name="a"), tensor([1, 2], name="b")], "2 rows where the columns before"),
        ([tensor([[1, 2]])], "a column has shape"),
        ([tensor([1, 2], shape=[3])], "2 elements do not fit"),
        ([tensor(["{"], "BYTES", kind="pd_json")], "not valid JSON"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(
    inputs: list[RequestInput], sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        decode(*inputs, kind="pd")


class Trained(NamedTuple):
    """What the codec reads of a loaded model."""

    schema: Any
    unused_columns: frozenset[str] = frozenset()


def column(data: Any, known: Column | None = None, **options: Any) -> pd.Series[Any]:
    """Return how one column of a DataFrame request is decoded."""
    sent = tensor(data, **{"datatype": "BYTES", "name": "c", **options})
    schema = InputSchema(() if known is None else (known,), has_names=known is not None)
    request = InferenceRequest(None, {"content_type": "pd"}, (sent,), ())
    found: pd.Series[Any] = codec.decode(request, MODEL, LIMIT, Trained(schema))["c"]
    return found


PRESENT: dict[tuple[str, str | None], Any] = {
    ("BYTES", None): "a",
    ("BYTES", "str"): "a",
    ("BYTES", "np"): "a",
    ("BYTES", "base64"): "YQ==",
    ("BYTES", "datetime"): "2022-01-11T11:00:00",
    ("BYTES", "pd_json"): "1",
    ("FP16", None): 1,
    ("FP32", None): 1.5,
    ("FP64", None): 1.5,
}


@pytest.mark.parametrize(("datatype", "codec_name"), PRESENT)
@pytest.mark.parametrize("missing", [NAN, None], ids=["NaN", "None"])
def test_a_null_is_the_same_value_and_dtype_whatever_the_other_rows_are(
    datatype: str, codec_name: str | None, missing: Any
) -> None:
    present = PRESENT[datatype, codec_name]
    known = Column("c", datatype, missing=missing)
    options: dict[str, Any] = {"datatype": datatype, "kind": codec_name}
    columns = [
        column(data, known, **options)
        for data in ([None], [None, None], [None, present], [present, None], [present])
    ]
    assert 1 == len({each.dtype for each in columns})
    found = [value for each in columns for value in each if pd.isna(value)]
    assert 5 == len(found)
    assert 1 == len({type(value) for value in found})
    if datatype == "BYTES" and codec_name != "datetime":
        assert (missing is None) == (found[0] is None)


@pytest.mark.parametrize(("datatype", "codec_name"), PRESENT)
def test_no_rows_have_the_dtype_that_rows_have(datatype: str, codec_name: str | None) -> None:
    options: dict[str, Any] = {"datatype": datatype, "kind": codec_name}
    some = column([PRESENT[datatype, codec_name]], **options)
    none = column([], **options, shape=[0])
    assert (0, some.dtype) == (len(none), none.dtype)


def test_text_has_the_dtype_that_pandas_gives_text() -> None:
    assert pd.Series(["a"]).dtype == column(["a", None]).dtype
    none = Column("c", "BYTES", missing=None)
    assert object == column(["a"], none).dtype


def test_a_content_type_of_the_metadata_is_the_default_of_its_column() -> None:
    class Dated(NamedTuple):
        name: str = "c"
        missing: Any = NAN
        categories: Any = None
        content_type: str = "datetime"

    sent = tensor(["2022-01-11", None], "BYTES", name="c")
    schema = SimpleNamespace(columns=(Dated(),), has_names=True, takes_documents=False)
    request = InferenceRequest(None, {"content_type": "pd"}, (sent,), ())
    found = codec.decode(request, MODEL, LIMIT, Trained(schema))["c"]
    assert "datetime64[us]" == str(found.dtype)


def test_dates_with_an_offset_keep_it_and_do_not_mix_with_others() -> None:
    aware = "2022-01-11T11:00:00+01:00"
    found = column([aware, None], kind="datetime")
    assert ("datetime64[us, UTC+01:00]", True) == (str(found.dtype), found.isna()[1])
    with pytest.raises(BadRequest, match="either all elements have a UTC offset, or none"):
        column([aware, "2022-01-11"], kind="datetime")


@pytest.mark.parametrize("datatype", ["INT8", "INT64", "UINT64", "BOOL"])
def test_a_missing_number_needs_a_datatype_that_has_one(datatype: str) -> None:
    with pytest.raises(BadRequest, match="use FP64 for missing values"):
        column([1, None], datatype=datatype)


@pytest.mark.parametrize(
    ("datatype", "data", "sentence"),
    [
        ("UINT8", [300], "out of range for UINT8"),
        ("INT32", [1.9], "whole numbers"),
        ("FP32", [1e300], "out of range for FP32"),
        ("INT64", [2**63], "out of range for INT64"),
    ],
)
def test_a_number_in_a_column_is_refused_never_wrapped(
    datatype: str, data: Any, sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        column(data, datatype=datatype)
    assert [2**63 - 1] == column([2**63 - 1], datatype="INT64").tolist()


SIZES = Column("c", "BYTES", categories=np.array(["small", "big"], object))
YEARS = Column("c", "INT64", categories=np.array([2020, 2021]))


@pytest.mark.parametrize(
    ("known", "datatype", "data", "codes"),
    [
        (SIZES, "BYTES", ["big", "small"], [1, 0]),
        (SIZES, "BYTES", ["big"], [1]),
        (SIZES, "BYTES", [None, "huge"], [-1, -1]),
        (SIZES, "BYTES", [], []),
        (YEARS, "INT64", [2021, 2020], [1, 0]),
        (YEARS, "FP64", [2021.0, None, 2021.5], [1, -1, -1]),
    ],
)
def test_a_category_column_has_the_categories_of_the_training_data(
    known: Column, datatype: str, data: Any, codes: list[int]
) -> None:
    found = column(data, known, datatype=datatype, shape=[len(data)])
    assert known.categories is not None
    assert known.categories.tolist() == found.cat.categories.tolist()
    assert codes == found.cat.codes.tolist()


@pytest.mark.parametrize(
    ("known", "datatype", "data", "sentence"),
    [
        (SIZES, "FP64", [1.0], "the categories of this column are strings: send BYTES"),
        (YEARS, "BYTES", ["2021"], "the categories of this column are numbers: send numbers"),
    ],
)
def test_a_category_of_another_type_is_refused_and_not_missing(
    known: Column, datatype: str, data: Any, sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        column(data, known, datatype=datatype)


def test_without_pandas_only_a_table_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MLServerlessError, match="this server has no pandas"):
        decode(tensor([1]), kind="pd")
    assert [1] == decode(tensor([1])).tolist()


# ── answers ─────────────────────────────────────────────────────────────────────────────


def encode(
    value: Any,
    kind: str | None = None,
    model: ModelSettings = MODEL,
    *,
    binary: bool = False,
) -> list[dict[str, Any]]:
    """What a client finds in `outputs` when a method answered `value`."""
    asked = RequestOutput("out", {} if kind is None else {"content_type": kind})
    request = InferenceRequest(None, {"binary_data_output": binary}, (), ())
    outputs = codec.encode([(asked, value)], request, model)
    encoded = wire.encode(InferenceResponse("m", None, "", outputs))
    end = int(encoded.headers.get("Inference-Header-Content-Length", len(encoded.body)))
    found: list[dict[str, Any]] = orjson.loads(encoded.body[:end])["outputs"]
    return found


def one(value: Any, kind: str | None = None) -> tuple[Any, ...]:
    (output,) = encode(value, kind)
    return (
        output["shape"],
        output["datatype"],
        output.get("parameters", {}).get("content_type"),
        output["data"],
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([1, 2]), ([2, 1], "INT64", "np", [1, 2])),
        (np.float64(1.5), ([1], "FP64", "np", [1.5])),
        (np.array([[1, 2]], np.int8), ([1, 2], "INT8", "np", [1, 2])),
        (np.asfortranarray([[1, 2], [3, 4]]), ([2, 2], "INT64", "np", [1, 2, 3, 4])),
        (np.zeros((1, 2, 1), bool), ([1, 2, 1], "BOOL", "np", [False, False])),
        (np.array([0.1], np.float32), ([1, 1], "FP32", "np", [0.10000000149011612])),
        (np.array([0.5], np.float16), ([1, 1], "FP16", "np", [0.5])),
        (np.array([1], ">i4"), ([1, 1], "INT32", "np", [1])),
        (np.array([NAN, np.inf]), ([2, 1], "FP64", "np", [None, None])),
        (np.array([2**64 - 1], np.uint64), ([1, 1], "UINT64", "np", [2**64 - 1])),
        (np.array([]), ([0, 1], "FP64", "np", [])),
        ([1, 2], ([2, 1], "INT64", "np", [1, 2])),
        (np.array(["a", "b"]), ([2, 1], "BYTES", "np", ["a", "b"])),
        (np.array([b"a"]), ([1, 1], "BYTES", "np", ["a"])),
        (np.array(["a", None], object), ([2, 1], "BYTES", "np", ["a", None])),
        (np.array([1, 2], object), ([2, 1], "INT64", "np", [1, 2])),
        (["a", "b"], ([2, 1], "BYTES", "str", ["a", "b"])),
        ([b"a"], ([1, 1], "BYTES", "base64", ["YQ=="])),
        ([datetime(2022, 1, 1)], ([1, 1], "BYTES", "datetime", ["2022-01-01T00:00:00"])),  # noqa: DTZ001
        (np.array(["2022-01-01"], "M8[D]"), ([1, 1], "BYTES", "datetime", ["2022-01-01T00:00:00"])),
        (scipy.sparse.eye(2, format="csr"), ([2, 2], "FP64", "np", [1, 0, 0, 1])),
        ([np.array([[1, 2]]), np.array([[3, 4]])], ([2, 1, 2], "INT64", "np", [1, 2, 3, 4])),
        (np.array([["a"], ["b"]], object), ([2, 1], "BYTES", "np", ["a", "b"])),
    ],
    ids=str,
)
def test_every_sort_of_result_has_one_spelling(value: Any, expected: Any) -> None:
    assert expected == one(value)


def test_arrays_of_several_shapes_are_one_output_each() -> None:
    outputs = encode([np.zeros((1, 2)), np.zeros((1, 3))])
    assert [("out_0", [1, 2]), ("out_1", [1, 3])] == [(o["name"], o["shape"]) for o in outputs]


def test_a_tuple_is_one_output_an_element_and_never_stacked() -> None:
    elements = (np.zeros((1, 2)), np.zeros((1, 2), np.int64), scipy.sparse.eye(1), ["a"])
    outputs = encode((*elements, pd.DataFrame({"a": [1]})))
    assert [
        ("out_0", [1, 2], "FP64"),
        ("out_1", [1, 2], "INT64"),
        ("out_2", [1, 1], "FP64"),
        ("out_3", [1, 1], "BYTES"),
        ("out_4", [1, 1], "INT64"),
    ] == [(each["name"], each["shape"], each["datatype"]) for each in outputs]


def test_what_is_infinite_is_null_in_json_and_kept_in_binary() -> None:
    values = np.array([-np.inf, np.inf, NAN, 0.5])
    assert [None, None, None, 0.5] == one(values)[3]
    wanted = [(RequestOutput("out", {"binary_data": True}), values)]
    (output,) = codec.encode(wanted, InferenceRequest(None, {}, (), ()), MODEL)
    np.testing.assert_array_equal(values, np.frombuffer(output.data))


def test_a_table_is_one_output_a_column() -> None:
    table = pd.DataFrame(
        {
            "number": [1, 2],
            "gap": pd.array([1, None], "Int64"),
            "truth": pd.array([True, False], "boolean"),
            "text": ["a", None],
            "raw": [b"a", b"b"],
            "day": [pd.Timestamp("2022-01-01"), pd.NaT],
            "json": [{"a": 1}, [2]],
        }
    )
    found = [
        (o["name"], o["datatype"], o.get("parameters", {}).get("content_type"), o["data"])
        for o in encode(table)
    ]
    assert [
        ("number", "INT64", None, [1, 2]),
        ("gap", "FP64", None, [1.0, None]),
        ("truth", "BOOL", None, [True, False]),
        ("text", "BYTES", "str", ["a", None]),
        ("raw", "BYTES", "base64", ["YQ==", "Yg=="]),
        ("day", "BYTES", "datetime", ["2022-01-01T00:00:00", None]),
        ("json", "BYTES", "pd_json", ['{"a":1}', "[2]"]),
    ] == found


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (np.array(["a"]), "str", ("str", ["a"])),
        (np.array(["a"]), "base64", ("base64", ["YQ=="])),
        (np.array([1]), "np", ("np", [1])),
        (np.array([1]), "pd", ("np", [1])),
    ],
)
def test_an_output_may_name_a_codec_that_can_hold_it(
    value: Any, kind: str, expected: tuple[Any, ...]
) -> None:
    assert expected == one(value, kind)[2:]


@pytest.mark.parametrize(
    ("value", "kind", "sentence"),
    [
        (np.array([1]), "str", "out is numbers, which str cannot hold"),
        (np.array([1]), "base64", "out is numbers, which base64 cannot hold"),
        (np.array([1]), "hdf5", "content_type hdf5 of output out is not known"),
        (np.array(["a"]), "datetime", "holds what datetime cannot hold"),
        (np.array([1j]), None, "complex128, which JSON cannot hold"),
        ([[1], [1, 2]], None, "a ragged list"),
        (np.array([object()]), None, "holds what np cannot hold"),
    ],
)
def test_a_result_that_cannot_be_spelled_so_is_the_clients_error(
    value: Any, kind: str | None, sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        encode(value, kind)


def test_the_models_own_declaration_may_name_the_codec() -> None:
    declared = TensorMetadata("out", "BYTES", (-1,), {"content_type": "str"})
    model = ModelSettings(name="m", location="/", outputs=(declared,))
    (output,) = encode(np.array(["a"]), model=model)
    assert {"content_type": "str"} == output["parameters"]


def test_only_one_table_fits_an_answer() -> None:
    table = pd.DataFrame({"a": [1]})
    results = [(RequestOutput("transform"), table)] * 2
    with pytest.raises(BadRequest, match="second table"):
        codec.encode(results, InferenceRequest(None, {}, (), ()), MODEL)


def test_binary_text_without_a_value_has_no_bytes_to_travel_as() -> None:
    with pytest.raises(BadRequest, match="elements that are no text"):
        encode(np.array(["a", None], object), binary=True)


@pytest.mark.parametrize("datatype", codec.DTYPES)
def test_what_is_answered_in_binary_reads_back_as_it_was(datatype: str) -> None:
    values = np.array([[0, 1], [1, 1]], codec.DTYPES[datatype])
    asked = [(RequestOutput("out", {"binary_data": True}), values)]
    (output,) = codec.encode(asked, InferenceRequest(None, {}, (), ()), MODEL)
    back = decode(tensor(Raw(memoryview(output.data)), output.datatype, output.shape))
    assert (values.dtype, values.tolist()) == (back.dtype, back.tolist())
