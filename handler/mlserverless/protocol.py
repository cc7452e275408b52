"""The Open Inference Protocol's own words, as frozen records in the order of the specification.

Source: https://github.com/kserve/open-inference-protocol (REST), and Triton's binary
tensor extension. A record says what a message is; `wire` makes them of bytes and back,
`codec` makes arrays of their data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

JSONObject = Mapping[str, Any]

DATATYPES: Final = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
)  # fmt: skip

BINARY_HEADER: Final = "Inference-Header-Content-Length"
JSON: Final = "application/json"
OCTETS: Final = "application/octet-stream"


class Raw(NamedTuple):
    """A tensor's bytes as the binary extension carries them: little-endian, row-major."""

    view: memoryview


@dataclass(frozen=True, slots=True)
class RequestInput:
    """One tensor of a request; `data` is JSON's own values, or `Raw` bytes."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: Any
    parameters: JSONObject = field(default_factory=dict)

    @property
    def content_type(self) -> str | None:
        """How the client asks for the data to be decoded, if it does."""
        return self.parameters.get("content_type")


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """One output asked for, by the name of the estimator's method."""

    name: str
    parameters: JSONObject = field(default_factory=dict)

    @property
    def content_type(self) -> str | None:
        """How the client wants this output encoded, if it says so."""
        return self.parameters.get("content_type")


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A question. `id` is None when the client sent none."""

    id: str | None
    parameters: JSONObject
    inputs: tuple[RequestInput, ...]
    outputs: tuple[RequestOutput, ...]

    @property
    def content_type(self) -> str | None:
        """The request codec that the client names, if it does."""
        return self.parameters.get("content_type")


@dataclass(frozen=True, slots=True)
class ResponseOutput:
    """One tensor of an answer.

    `data` is a flat numpy array or a flat list; `binary` says that it travels as raw bytes.
    `content_type` None leaves `parameters` out, as MLServer does for columns of numbers.
    """

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: Any
    content_type: str | None = None
    binary: bool = False


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """An answer. `model_version` is None for a model without one."""

    model_name: str
    model_version: str | None
    id: str
    outputs: Sequence[ResponseOutput]


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """What a model says of one of its inputs or outputs; -1 stands for any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: JSONObject = field(default_factory=dict)

    @property
    def content_type(self) -> str | None:
        """The codec that the model's owner declared for this tensor."""
        return self.parameters.get("content_type")
