"""Bytes to a request and an answer to bytes: the protocol's own rules, whatever the model."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import orjson
import pytest

from mlserverless import wire
from mlserverless.errors import BadRequest, TooLarge, UnsupportedEncoding
from mlserverless.protocol import InferenceResponse, Raw, ResponseOutput

INPUT = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}


def body(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{**INPUT, **changes}]}).encode()


def binary(header: dict[str, Any], raw: bytes) -> tuple[bytes, str]:
    text = json.dumps(header).encode()
    return text + raw, str(len(text))


def test_a_request_keeps_every_word_that_the_protocol_knows() -> None:
    request = wire.decode(
        b'{"id":"7","parameters":{"content_type":"pd"},"other":1,'
        b'"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["a"],'
        b'"parameters":{"content_type":"str"}}],"outputs":[{"name":"predict"}]}'
    )
    assert ("7", "pd", "predict") == (request.id, request.content_type, request.outputs[0].name)
    tensor = request.inputs[0]
    assert ("x", (1,), "BYTES", ["a"], "str") == (
        tensor.name, tensor.shape, tensor.datatype, tensor.data, tensor.content_type,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "read"), [([1.0, "4"], (1, 4)), ([], ()), ([-1, 2], (-1, 2)), ([True], (1,))]
)
def test_a_shape_is_read_as_mlserver_reads_it(shape: Any, read: tuple[int, ...]) -> None:
    assert read == wire.decode(body(shape=shape)).inputs[0].shape


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "the body is empty"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "inputs must be a list of tensors$"),
        (b'{"dataframe_records":[]}', "inputs must be a list of tensors, not dataframe_records$"),
        (b'{"instances":[[1]]}', "inputs must be a list of tensors, not instances$"),
        (b'{"inputs":{},"instances":[]}', "inputs must be a list of tensors$"),
        (b'{"inputs":[1,NaN]}', "^NaN is not JSON: send null, or the tensor as binary$"),
        ('{"\N{EURO SIGN}":-Infinity}'.encode(), "^-Infinity is not JSON: send null"),
        (b"Infinity", "^Infinity is not JSON: send null"),
        (b'{"inputs":nan}', "not valid JSON"),
        (b'{"inputs":[1]}', "each of inputs must be an object"),
        (b'{"inputs":[{}]}', "each input needs a name"),
        (b'{"id":1,"inputs":[]}', "id must be a string"),
        (b'{"inputs":[],"parameters":[]}', "parameters of the request must be an object"),
        (b'{"inputs":[],"parameters":{"content_type":1}}', "content_type of the request must be"),
        (b'{"inputs":[],"outputs":{}}', "outputs must be a list"),
        (b'{"inputs":[],"outputs":[1]}', "each of outputs must be an object"),
        (b'{"inputs":[],"outputs":[{}]}', "each output needs a name"),
        (body(datatype="FP8"), "input x needs a datatype"),
        (body(datatype=["FP32"]), "input x needs a datatype"),
        (body(shape=4), "input x needs a shape"),
        (body(shape=[1.5]), "shape of input x must hold whole numbers"),
        (body(shape=[None]), "shape of input x must hold whole numbers"),
        (body(shape=["a"]), "shape of input x must hold whole numbers"),
        (body(shape=[-2]), "may hold one -1"),
        (body(shape=[-1, -1]), "may hold one -1"),
        (body(shape=[2**63]), "holds a number that no tensor has room for"),
        (body(shape=[1e308] * 5000), "too many dimensions"),
        (body(shape=[1e308] * 64), "holds a number that no tensor has room for"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}', "input x has no data"),
        (body(parameters={"binary_data_size": 4}), "the request no Inference-Header"),
        (body(parameters={"binary_data_size": -4}), "must be a number of bytes"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"inputs":[{"name":"\\ud800"}]}', "not valid JSON"),
    ],
)
def test_what_breaks_the_protocol_is_the_clients_error_in_one_line(
    raw: bytes, sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence) as caught:
        wire.decode(raw)
    assert "\n" not in str(caught.value)


def test_at_most_a_hundred_outputs_may_be_asked_for() -> None:
    outputs = [{"name": "predict"}] * 101
    with pytest.raises(BadRequest, match="at most 100"):
        wire.decode(json.dumps({"inputs": [], "outputs": outputs}).encode())


def test_the_last_of_two_equal_keys_wins() -> None:
    assert wire.decode(b'{"id":"a","id":"b","inputs":[]}').id == "b"


def test_raw_tensors_follow_the_json_in_the_order_of_their_inputs() -> None:
    def tensor(name: str, **rest: Any) -> dict[str, Any]:
        return {"name": name, "shape": [1], "datatype": "INT8", **rest}

    header = {
        "inputs": [
            tensor("a", parameters={"binary_data_size": 1}),
            tensor("b", data=[7]),
            tensor("c", parameters={"binary_data_size": 2}),
        ]
    }
    raw, length = binary(header, b"\x01\x02\x03")
    a, b, c = (each.data for each in wire.decode(raw, length).inputs)
    assert (b"\x01", [7], b"\x02\x03") == (bytes(a.view), b, bytes(c.view))
    assert isinstance(a, Raw)


@pytest.mark.parametrize(
    ("size", "raw", "length", "sentence"),
    [
        (9, b"12345678", None, "fewer bytes are left"),
        (7, b"12345678", None, "add up to 7 bytes, 8 follow"),
        (True, b"1", None, "must be a number of bytes"),
        (8, b"12345678", "x", "must be a number of bytes"),
        (8, b"12345678", "-1", "must be a number of bytes"),
        (8, b"12345678", "9" * 19, "the body has"),
        (8, b"12345678", "9" * 30, "must be a number of bytes"),
        (8, b"12345678", "0", "the body is empty"),
        (8, b"12345678", "3", "not valid JSON"),
    ],
)
def test_every_length_of_the_binary_extension_is_checked(
    size: Any, raw: bytes, length: str | None, sentence: str
) -> None:
    tensor = {"name": "x", "shape": [2], "datatype": "FP32"}
    header = {"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}
    sent, true_length = binary(header, raw)
    with pytest.raises(BadRequest, match=sentence):
        wire.decode(sent, length or true_length)


def test_a_tensor_cannot_be_both_in_the_json_and_behind_it() -> None:
    sent, length = binary({"inputs": [{**INPUT, "parameters": {"binary_data_size": 1}}]}, b"1")
    with pytest.raises(BadRequest, match="both data and binary_data_size"):
        wire.decode(sent, length)


def deflated(raw: bytes) -> bytes:
    return zlib.compress(raw, wbits=-zlib.MAX_WBITS)


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("", b"text"),
        ("identity", b"text"),
        ("gzip", gzip.compress(b"text")),
        ("GZIP", gzip.compress(b"text")),
        ("x-gzip", gzip.compress(b"te") + gzip.compress(b"xt")),
        ("deflate", zlib.compress(b"text")),
        ("Deflate", deflated(b"text")),
        ("deflate, gzip", gzip.compress(zlib.compress(b"text"))),
    ],
)
def test_compression_is_undone_whatever_its_spelling(coding: str, packed: bytes) -> None:
    assert wire.unpack(packed, coding, 100) == b"text"


@pytest.mark.parametrize(
    ("coding", "packed", "error", "sentence"),
    [
        ("br", b"", UnsupportedEncoding, "br is not supported; gzip and deflate are"),
        ("gzip", b"text", BadRequest, "not valid gzip"),
        ("gzip", gzip.compress(b"text")[:-4], BadRequest, "not valid gzip"),
        ("deflate", b"\xfftext", BadRequest, "not valid deflate"),
        ("gzip", gzip.compress(b"") * 17, BadRequest, "more than 16 compressed members"),
        ("gzip, gzip, gzip", b"", BadRequest, "more than 2 content codings"),
        ("identity, , br, gzip", gzip.compress(b""), UnsupportedEncoding, "br is not supported"),
        (
            "gzip",
            gzip.compress(bytes(1001)),
            TooLarge,
            "larger than 1000 bytes once it is unpacked",
        ),
        ("deflate", zlib.compress(bytes(10**6)), TooLarge, "larger than 1000 bytes"),
        ("", bytes(1001), TooLarge, "larger than 1000 bytes"),
    ],
)
def test_a_damaged_or_growing_body_is_refused_within_its_limit(
    coding: str, packed: bytes, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        wire.unpack(packed, coding, 1000)


def test_an_empty_body_is_an_empty_question_where_one_is_allowed() -> None:
    assert [{}, {"ready": True}] == [
        dict(wire.decode_object(each)) for each in (b" \n", b'{"ready":true}')
    ]
    with pytest.raises(BadRequest, match="must be a JSON object"):
        wire.decode_object(b"[]")


def answer(*outputs: ResponseOutput) -> InferenceResponse:
    return InferenceResponse("m", "v1", "7", outputs)


NUMBERS = ResponseOutput("predict", (2, 1), "INT64", np.array([1, 2]), "np")


def test_an_answer_is_spelled_in_the_order_of_the_specification() -> None:
    assert (
        b'{"model_name":"m","model_version":"v1","id":"7","parameters":{},"outputs":'
        b'[{"name":"predict","shape":[2,1],"datatype":"INT64",'
        b'"parameters":{"content_type":"np"},"data":[1,2]}]}'
    ) == wire.encode(answer(NUMBERS)).body


def test_a_model_without_a_version_answers_without_one() -> None:
    encoded = wire.encode(InferenceResponse("m", None, "", []))
    assert encoded.body == b'{"model_name":"m","id":"","parameters":{},"outputs":[]}'


def test_a_binary_output_follows_the_json_whose_length_a_header_tells() -> None:
    raw = ResponseOutput("scores", (1, 1), "FP32", b"\0\0\x80?", "np", binary=True)
    encoded = wire.encode(answer(NUMBERS, raw))
    end = int(encoded.headers["Inference-Header-Content-Length"])
    outputs = orjson.loads(encoded.body[:end])["outputs"]
    assert ("application/octet-stream", b"\0\0\x80?") == (encoded.media_type, encoded.body[end:])
    assert [1, 2] == outputs[0]["data"]
    assert {"content_type": "np", "binary_data_size": 4} == outputs[1]["parameters"]
    assert "data" not in outputs[1]


@pytest.mark.parametrize(
    ("accept", "size", "packed"),
    [
        ("gzip", 500, True),
        ("GZIP, br", 500, True),
        ("br, gzip;q=0.5", 500, True),
        ("*", 500, True),
        ("gzip", 499, False),
        ("gzip;q=0", 500, False),
        ("gzip; q=0.000", 500, False),
        ("br", 500, False),
        ("", 500, False),
    ],
)
def test_an_answer_is_compressed_when_asked_and_worth_it(
    accept: str, size: int, packed: bool
) -> None:
    encoded = wire.compress(wire.Encoded(bytes(size), "application/json", {}), accept)
    assert packed == (encoded.headers.get("Content-Encoding") == "gzip")
    assert bytes(size) == (gzip.decompress(encoded.body) if packed else encoded.body)
