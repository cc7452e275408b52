"""The OpenAPI document of the server, and of a model, and a page that shows one.

Written by hand, since the routes read raw bytes; imported by the first who asks. The page
loads nothing from any other host.
Source: https://github.com/kserve/open-inference-protocol (open_inference_rest.yaml)
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import orjson

from mlserverless.protocol import DATATYPES, TensorMetadata

Document = dict[str, Any]

MAX_EXAMPLE_BYTES: Final = 262_144  # a larger example is left out: Lambda carries 6 MB
MAX_SHOWN_TENSORS: Final = 200  # in a description; the metadata lists them all
MAX_SHOWN_LABELS: Final = 100  # the same, of one output
_NULL_NOTE: Final = (
    "In a JSON response, NaN, infinity and -infinity are null; binary output distinguishes them."
)


class Subject(NamedTuple):
    """The model that a document is about; `example` is a request that it has answered."""

    name: str
    version: str | None
    inputs: Sequence[TensorMetadata]
    outputs: Sequence[TensorMetadata]
    example: Mapping[str, Any] | None


def server(depth: int) -> Document:
    """Every route, for any model. `depth` is how many segments the document's path has."""
    name = {"name": "model_name", "in": "path", "required": True, "schema": {"type": "string"}}
    version = {**name, "name": "model_version"}
    paths: Document = {
        "/v2": {"get": _operation("Server metadata", "ServerMetadata")},
        "/v2/health/live": {"get": _operation("Whether the server is up", "Live")},
        "/v2/health/ready": {"get": _operation("Whether models can be served", "Ready")},
        "/v2/repository/index": {
            "post": _operation("Every model, with its state", "Index", "IndexRequest")
        },
    }
    for verb in ("load", "unload"):
        paths[f"/v2/repository/models/{{model_name}}/{verb}"] = {
            "parameters": [name],
            "post": _operation(f"{verb.capitalize()} a model, where the owner allows it"),
        }
    for prefix, parameters in (
        ("/v2/models/{model_name}", [name]),
        ("/v2/models/{model_name}/versions/{model_version}", [name, version]),
    ):
        for path, item in _model_paths(prefix).items():
            paths[path] = {"parameters": parameters, **item}
    return _document("MLServerless", paths, depth)


def model(subject: Subject, depth: int) -> Document:
    """Return the routes of one model, with its inputs, outputs, labels and an example request.

    The example is left out if it is larger than MAX_EXAMPLE_BYTES.
    """
    prefix = f"/v2/models/{quote(subject.name, safe='')}"
    if subject.version is not None:
        prefix += f"/versions/{quote(subject.version, safe='')}"
    paths = _model_paths(prefix)
    described = _describe(subject)
    has_example = subject.example is not None and (
        len(orjson.dumps(subject.example)) <= MAX_EXAMPLE_BYTES
    )
    for verb in ("infer", "generate"):
        operation = paths[f"{prefix}/{verb}"]["post"]
        operation["description"] = described
        if has_example:
            operation["requestBody"]["content"]["application/json"]["example"] = subject.example
    return _document(subject.name, paths, depth)


def page(document: Document) -> bytes:
    """The document for people: its routes, and a form that sends the example."""
    rows, example, described = [], None, ""
    for path, item in document["paths"].items():
        for verb in item.keys() & {"get", "post"}:
            rows.append((verb.upper(), path, item[verb]["summary"]))
            content = item[verb].get("requestBody", {}).get("content", {})
            found = content.get("application/json", {}).get("example")
            if path.endswith("/infer"):
                example, described = found, item[verb].get("description", "")
    title = html.escape(document["info"]["title"])
    table = "".join(
        f"<tr><td>{verb}<td><code>{html.escape(path)}</code><td>{html.escape(summary)}"
        for verb, path, summary in rows
    )
    form = f"<p>{html.escape(described)}</p>\n" if described else ""
    if example is not None:
        form += _FORM.format(example=html.escape(_format_example(example)))
    return _PAGE.format(title=title, form=form, table=table).encode()


def _model_paths(prefix: str) -> Document:
    paths: Document = {
        prefix: {"get": _operation("Model metadata", "ModelMetadata")},
        f"{prefix}/ready": {"get": _operation("Whether the model can be asked", "ModelReady")},
    }
    for verb in ("infer", "generate"):
        paths[f"{prefix}/{verb}"] = {
            "post": _operation("Ask the model", "InferenceResponse", "InferenceRequest")
        }
        stream = _operation("The same answer, as a server-sent event", None, "InferenceRequest")
        stream["responses"]["200"]["content"] = {"text/event-stream": {}}
        paths[f"{prefix}/{verb}_stream"] = {"post": stream}
    return paths


def _operation(summary: str, answer: str | None = None, body: str | None = None) -> Document:
    success: Document = {"description": "OK"}
    if answer is not None:
        success["content"] = _json(answer)
    failure = {"description": "What went wrong, in one line", "content": _json("Error")}
    operation: Document = {
        "summary": summary,
        "responses": {"200": success, "default": failure},
    }
    if answer == "Ready":
        operation["responses"]["400"] = {"description": "Not ready", "content": _json("Ready")}
    if body is not None:
        operation["requestBody"] = {
            "required": body == "InferenceRequest",
            "content": _json(body),
        }
    return operation


def _json(schema: str) -> Document:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _document(title: str, paths: Document, depth: int) -> Document:
    return {
        "openapi": "3.0.3",
        "info": {"title": title, "version": "2.0"},
        # from this document's own place back to where /v2 stands, whatever stands before it
        "servers": [{"url": "/".join([".."] * (depth - 1))}],
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }


def _describe(subject: Subject) -> str:
    """Return what the model takes and returns, and the labels of its outputs, in sentences."""
    sentences = [
        f"Takes {_list_tensors(subject.inputs)}.",
        f"Returns {_list_tensors(subject.outputs)}.",
    ]
    for tensor in subject.outputs:
        labels = tensor.parameters.get("classes")
        if isinstance(labels, list):
            shown = orjson.dumps(labels[:MAX_SHOWN_LABELS]).decode()
            left_out = len(labels) - MAX_SHOWN_LABELS
            more = f" and {left_out} more" if left_out > 0 else ""
            sentences.append(f"Labels of {tensor.name}: {shown}{more}.")
    return " ".join([*sentences, _NULL_NOTE])


def _list_tensors(tensors: Sequence[TensorMetadata]) -> str:
    shown = [f"{each.name} {each.datatype} {list(each.shape)}" for each in tensors]
    more = [f"{len(shown) - MAX_SHOWN_TENSORS} more"] if shown[MAX_SHOWN_TENSORS:] else []
    return ", ".join(shown[:MAX_SHOWN_TENSORS] + more)


def _format_example(example: Mapping[str, Any]) -> str:
    """Return the request as JSON for people, with one line per tensor."""
    fields = []
    for key, value in example.items():
        text = orjson.dumps(value).decode()
        if isinstance(value, list):
            lines = ",\n    ".join(orjson.dumps(each).decode() for each in value)
            text = f"[\n    {lines}\n  ]"
        fields.append(f"  {orjson.dumps(key).decode()}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}"


def _object(required: Sequence[str] = (), **properties: Any) -> Document:
    schema: Document = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    return schema


def _list_of(items: Document) -> Document:
    return {"type": "array", "items": items}


_TEXT: Final = {"type": "string"}
_TRUTH: Final = {"type": "boolean"}
_ANY: Final = {"type": "object"}
_TENSOR: Final = {
    "name": _TEXT,
    "datatype": {"type": "string", "enum": list(DATATYPES)},
    "shape": _list_of({"type": "integer"}),
    "parameters": _ANY,
}
_DATA: Final[Document] = {"$ref": "#/components/schemas/TensorData"}
_SCHEMAS: Final[Document] = {
    "Error": _object(["error"], error=_TEXT),
    "Live": _object(["live"], live=_TRUTH),
    "Ready": _object(["ready"], ready=_TRUTH, error=_TEXT),
    "ModelReady": _object(["name", "ready"], name=_TEXT, ready=_TRUTH),
    "ServerMetadata": _object(
        ["name", "version", "extensions"], name=_TEXT, version=_TEXT, extensions=_list_of(_TEXT)
    ),
    "ModelMetadata": _object(
        ["name", "versions", "platform", "inputs", "outputs"],
        name=_TEXT,
        versions=_list_of(_TEXT),
        platform=_TEXT,
        inputs=_list_of(_object(["name", "datatype", "shape"], **_TENSOR)),
        outputs=_list_of(_object(["name", "datatype", "shape"], **_TENSOR)),
        parameters=_ANY,
    ),
    "IndexRequest": _object(ready=_TRUTH),
    "Index": _list_of(
        _object(["name", "state", "reason"], name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)
    ),
    "TensorData": {
        "description": "Flat, or nested in row-major order. In a response, null stands for NaN, "
        "inf and -inf; an output with binary_data keeps them.",
        "type": "array",
        "items": {
            "nullable": True,
            "anyOf": [_DATA, {"type": "number"}, _TEXT, _TRUTH],
        },
    },
    "InferenceRequest": _object(
        ["inputs"],
        id=_TEXT,
        parameters=_ANY,
        inputs=_list_of(_object(["name", "shape", "datatype", "data"], **_TENSOR, data=_DATA)),
        outputs=_list_of(_object(["name"], name=_TEXT, parameters=_ANY)),
    ),
    "InferenceResponse": _object(
        ["model_name", "id", "parameters", "outputs"],
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        parameters=_ANY,
        outputs=_list_of(_object(["name", "shape", "datatype", "data"], **_TENSOR, data=_DATA)),
    ),
}

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }}
td {{ padding: 0.2rem 1rem 0.2rem 0 }}
textarea {{ box-sizing: border-box; width: 100%; font-family: monospace }}
pre {{ white-space: pre-wrap }}
</style>
<h1>{title}</h1>
{form}
<h2>Routes</h2>
<table>{table}</table>
<p><a id="document">OpenAPI document</a></p>
<script>
const here = location.pathname.replace(/[/]$/, "");
document.getElementById("document").href = here + "/dataplane.json";
const form = document.querySelector("form");
if (form) form.onsubmit = async (event) => {{
  event.preventDefault();
  const body = form.elements.question.value;
  const answer = await fetch(here.replace(/docs$/, "infer"), {{ method: "POST", body }});
  form.elements.answer.value = answer.status + " " + await answer.text();
}};
</script>
</html>
"""
_FORM: Final = """<form>
<p><label>Request<textarea name="question" rows="12">{example}</textarea></label></p>
<p><button>Send</button></p>
<pre><output name="answer"></output></pre>
</form>
"""
