"""Bytes ⇄ request and answer: JSON, the binary tensor extension, compression, limits.

No IO, no numpy, no opinion on models: what arrives is checked against the protocol's
own rules, and what leaves is spelled in the order of the specification.
Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from mlserverless import memory
from mlserverless.collector import paused
from mlserverless.errors import BadRequest, TooLarge, UnsupportedEncoding, quote
from mlserverless.protocol import (
    BINARY_HEADER,
    DATATYPES,
    JSON,
    OCTETS,
    InferenceRequest,
    InferenceResponse,
    JSONObject,
    Raw,
    RequestInput,
    RequestOutput,
    ResponseOutput,
)

# keys of other servers' requests: MLflow's, and TensorFlow Serving's and KServe's first protocol
_OTHER_FORMATS: Final = ("dataframe_records", "dataframe_split", "instances")
MAX_OUTPUTS: Final = 100
MAX_CODINGS: Final = 2  # of one body, each a pass over all of it
MAX_DIMENSIONS: Final = 64  # numpy's own limit
MAX_LENGTH: Final = 2**63 - 1  # of one dimension, numpy's own limit
MAX_MEMBERS: Final = 16  # of one gzip body; each costs a copy of what follows it
GZIP_FROM: Final = 500  # bytes; below it compression costs more than it saves

# what Python's json module writes for numbers that JSON does not have
_NOT_JSON_PATTERN: Final = re.compile(r"NaN|-?Infinity")

_GZIP: Final = zlib.MAX_WBITS | 16
_WINDOWS: Final[Mapping[str, tuple[int, ...]]] = {
    # "deflate" is zlib's format by the RFC and a bare stream by the habit of some clients
    "gzip": (_GZIP,),
    "x-gzip": (_GZIP,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer's bytes and the headers that tell a client how to read them."""

    body: bytes
    media_type: str
    headers: Mapping[str, str]


# ── requests ────────────────────────────────────────────────────────────────────────────


def unpack(body: bytes, content_encoding: str, limit: int) -> bytes:
    """Undo `Content-Encoding`, never making more than `limit` bytes of it.

    Raises TooLarge, UnsupportedEncoding, or BadRequest for a damaged stream.
    """
    if len(body) > limit:
        raise TooLarge(f"the body is larger than {limit} bytes")
    codings = [each.strip().lower() for each in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if len(codings) > MAX_CODINGS:
        raise BadRequest(f"the body has more than {MAX_CODINGS} content codings")
    for coding in reversed(codings):
        if coding not in _WINDOWS:
            raise UnsupportedEncoding(
                f"Content-Encoding {quote(coding)} is not supported; gzip and deflate are"
            )
        body = _inflate(body, coding, limit)
    return body


def _inflate(body: bytes, coding: str, limit: int) -> bytes:
    *candidates, last = _WINDOWS[coding]
    for window in candidates:
        try:
            return _inflate_as(body, window, limit)
        except zlib.error:
            continue
    try:
        return _inflate_as(body, last, limit)
    except zlib.error as error:
        raise BadRequest(f"the body is not valid {coding} data") from error


def _inflate_as(body: bytes, window: int, limit: int) -> bytes:
    parts: list[bytes] = []
    room = limit
    for _ in range(MAX_MEMBERS):
        stream = zlib.decompressobj(window)
        part = stream.decompress(body, room + 1)
        room -= len(part)
        if room < 0:
            raise TooLarge(f"the body is larger than {limit} bytes once it is unpacked")
        if not stream.eof:
            raise zlib.error("the stream ends too early")
        parts.append(part)
        body = stream.unused_data
        if not body:
            return parts[0] if len(parts) == 1 else b"".join(parts)
    raise BadRequest(f"the body has more than {MAX_MEMBERS} compressed members")


def decode(body: bytes, header_length: str | None = None) -> InferenceRequest:
    """Read an infer request: JSON, or JSON and raw tensors behind it.

    `header_length` is the value of `Inference-Header-Content-Length`: how many of the
    bytes are JSON. Raises BadRequest with one sentence.
    """
    raw: memoryview | None = None
    text: bytes | memoryview = body
    if header_length is not None:
        end = _header_length(header_length, len(body))
        view = memoryview(body)
        text, raw = view[:end], view[end:]
    message = _loads(text)
    if not isinstance(message, dict):
        raise BadRequest("an inference request must be a JSON object")
    return InferenceRequest(
        id=_optional(message, "id", str, "id must be a string"),
        parameters=_parameters(message, "the request"),
        inputs=_inputs(message, raw),
        outputs=_outputs(message),
    )


def decode_object(body: bytes) -> JSONObject:
    """Read a body that is a JSON object, or nothing at all."""
    if not body.strip():
        return {}
    message = _loads(body)
    if not isinstance(message, dict):
        raise BadRequest("the body must be a JSON object")
    return message


def _loads(text: bytes | memoryview) -> Any:
    if not text:
        raise BadRequest("the body is empty; an inference request is a JSON object")
    try:
        # a list a row makes the collector run, again and again, over all that scikit-learn holds
        with paused():
            return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        start = error.pos - (error.doc[max(0, error.pos - 1) : error.pos] == "-")
        token = _NOT_JSON_PATTERN.match(error.doc, start)
        if token is not None:
            raise BadRequest(
                f"{token[0]} is not JSON: send null, or the tensor as binary"
            ) from error
        raise BadRequest(f"the body is not valid JSON: {error}") from error


def _header_length(value: str, available: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise BadRequest(f"{BINARY_HEADER} must be a number of bytes")
    length = int(value)
    if length > available:
        raise BadRequest(f"{BINARY_HEADER} is {length}, the body has {available} bytes")
    return length


def _optional(message: JSONObject, key: str, kind: type, complaint: str) -> Any:
    value = message.get(key)
    if value is not None and type(value) is not kind:
        raise BadRequest(complaint)
    return value


def _parameters(message: JSONObject, owner: str) -> JSONObject:
    parameters = message.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise BadRequest(f"parameters of {owner} must be an object")
    content_type = parameters.get("content_type")
    if content_type is not None and type(content_type) is not str:
        raise BadRequest(f"content_type of {owner} must be a string")
    return parameters


def _inputs(message: JSONObject, raw: memoryview | None) -> tuple[RequestInput, ...]:
    entries = message.get("inputs")
    if type(entries) is not list:
        other = next((name for name in _OTHER_FORMATS if name in message), None)
        hint = f", not {other}" if entries is None and other is not None else ""
        raise BadRequest(f"inputs must be a list of tensors{hint}")
    inputs = []
    offset = 0
    for entry in entries:
        tensor, offset = _input(entry, raw, offset)
        inputs.append(tensor)
    if raw is not None and offset != len(raw):
        raise BadRequest(
            f"the inputs' binary_data_size add up to {offset} bytes, {len(raw)} follow the JSON"
        )
    return tuple(inputs)


def _input(entry: object, raw: memoryview | None, offset: int) -> tuple[RequestInput, int]:
    if type(entry) is not dict:
        raise BadRequest("each of inputs must be an object")
    name = entry.get("name")
    if type(name) is not str:
        raise BadRequest("each input needs a name, a string")
    owner = f"input {quote(name)}"
    datatype = entry.get("datatype")
    if type(datatype) is not str or datatype not in DATATYPES:
        raise BadRequest(f"{owner} needs a datatype, one of {', '.join(DATATYPES)}")
    parameters = _parameters(entry, owner)
    shape = _shape(entry.get("shape"), owner)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise BadRequest(f"{owner} has no data")
        data = entry["data"]
    else:
        if type(size) is not int or size < 0:
            raise BadRequest(f"binary_data_size of {owner} must be a number of bytes")
        if raw is None:
            raise BadRequest(f"{owner} has binary_data_size, the request no {BINARY_HEADER}")
        if "data" in entry:
            raise BadRequest(f"{owner} has both data and binary_data_size")
        if size > len(raw) - offset:
            raise BadRequest(f"binary_data_size of {owner} is {size}, fewer bytes are left")
        data = Raw(raw[offset : offset + size])
        offset += size
    return RequestInput(name, shape, datatype, data, parameters), offset


def _shape(value: object, owner: str) -> tuple[int, ...]:
    if type(value) is not list:
        raise BadRequest(f"{owner} needs a shape, a list of whole numbers")
    if len(value) > MAX_DIMENSIONS:
        raise BadRequest(f"shape of {owner} has too many dimensions")
    shape = tuple([each if type(each) is int else _length(each, owner) for each in value])
    if shape and max(shape) > MAX_LENGTH:  # beyond it, only to multiply them would take its time
        raise BadRequest(f"shape of {owner} holds a number that no tensor has room for")
    if shape and min(shape) < 0 and (min(shape) < -1 or shape.count(-1) > 1):
        raise BadRequest(f"shape of {owner} may hold one -1 and no other negative number")
    return shape


def _length(value: object, owner: str) -> int:
    # 1.0 and "4" are read as MLServer reads them
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str | bool):
        try:
            return int(value)
        except ValueError:
            pass
    raise BadRequest(f"shape of {owner} must hold whole numbers")


def _outputs(message: JSONObject) -> tuple[RequestOutput, ...]:
    entries = _optional(message, "outputs", list, "outputs must be a list of objects") or ()
    if len(entries) > MAX_OUTPUTS:
        raise BadRequest(f"at most {MAX_OUTPUTS} outputs may be asked for, not {len(entries)}")
    return tuple([_output(entry) for entry in entries])


def _output(entry: object) -> RequestOutput:
    if type(entry) is not dict:
        raise BadRequest("each of outputs must be an object")
    name = entry.get("name")
    if type(name) is not str:
        raise BadRequest("each output needs a name, a string")
    return RequestOutput(name, _parameters(entry, f"output {quote(name)}"))


# ── answers ─────────────────────────────────────────────────────────────────────────────


def most_bytes(output: ResponseOutput) -> int:
    """What spelling an output may take, in bytes."""
    if output.binary:
        return 2 * len(output.data)
    if isinstance(output.data, list):  # of texts, for most
        texts = sum([memory.of_text(item) for item in output.data if type(item) is str])
        return texts + memory.ITEM * len(output.data)
    return memory.NUMBER * len(output.data)


def encode(response: InferenceResponse) -> Encoded:
    """Spell an answer: JSON, or JSON and raw tensors where an output travels as bytes."""
    tensors: list[bytes] = []
    outputs = [_spelled(output, tensors) for output in response.outputs]
    message: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version is not None:
        message["model_version"] = response.model_version
    message |= {"id": response.id, "parameters": {}, "outputs": outputs}
    text = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(output.binary for output in response.outputs):
        return Encoded(text, JSON, {})
    return Encoded(b"".join([text, *tensors]), OCTETS, {BINARY_HEADER: str(len(text))})


def _spelled(output: ResponseOutput, tensors: list[bytes]) -> dict[str, Any]:
    spelled: dict[str, Any] = {
        "name": output.name,
        "shape": output.shape,
        "datatype": output.datatype,
    }
    parameters: dict[str, Any] = {}
    if output.content_type is not None:
        parameters["content_type"] = output.content_type
    if output.binary:
        parameters["binary_data_size"] = len(output.data)
        tensors.append(output.data)
    if parameters:
        spelled["parameters"] = parameters
    if not output.binary:
        spelled["data"] = output.data
    return spelled


def encode_json(value: Any) -> bytes:
    """Spell anything else that is made of JSON's own values."""
    return orjson.dumps(value)


def compress(answer: Encoded, accept_encoding: str) -> Encoded:
    """Gzip an answer for a client that asks for it, when it is worth it."""
    if len(answer.body) < GZIP_FROM or not _accepts_gzip(accept_encoding):
        return answer
    body = zlib.compress(answer.body, 4, wbits=_GZIP)
    headers = {**answer.headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Encoded(body, answer.media_type, headers)


def _accepts_gzip(accept_encoding: str) -> bool:
    for each in accept_encoding.lower().split(","):
        coding, _, quality = each.partition(";")
        if coding.strip() in ("gzip", "x-gzip", "*"):
            weight = quality.replace(" ", "").removeprefix("q=")
            return weight.strip("0.") != "" or not weight
    return False
