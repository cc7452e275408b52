"""What a fitted estimator records about its training data: input columns and output tensors.

Everything here reads attributes that scikit-learn documents (`n_features_in_`,
`feature_names_in_`, `classes_` …) and never raises: an attribute that an estimator lacks, or
refuses to give, leaves the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mlserverless import codec
from mlserverless.protocol import TensorMetadata

Array = np.ndarray[Any, np.dtype[Any]]

MISSING: Final = float("nan")  # what pandas gives for a missing string


@dataclass(frozen=True, slots=True)
class Column:
    """One input column, as the estimator was trained on it.

    `datatype` is the protocol's. `missing` is the value for a JSON null: NaN, or None if an
    encoder was trained with None. `categories` are those of a pandas `category` column, in the
    order of its codes, if the estimator requires that dtype; None for any other column.
    `example` is a value that training may have seen.
    """

    name: str
    datatype: str = "FP64"
    missing: Any = MISSING
    categories: Array | None = None
    example: Any = 0


@dataclass(frozen=True, slots=True)
class InputSchema:
    """What an estimator takes.

    `has_names` says whether it was trained on a DataFrame: `columns` then carry its names in its
    order. `takes_documents` says that it takes a list of strings instead of rows of columns, as
    text vectorizers do; `columns` has one entry then. `columns` is empty if nothing is known.
    """

    columns: tuple[Column, ...] = ()
    has_names: bool = False
    takes_documents: bool = False


def describe_inputs(estimator: Any) -> InputSchema:
    """Return what `estimator` takes, read from its attributes; never raises."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        known = _known_values(estimator)
        columns = tuple(_text_or_number(str(name), known.get(name)) for name in names)
        return InputSchema(columns, has_names=True)
    if getattr(estimator, "n_features_in_", None) is None and _takes_documents(estimator):
        return InputSchema((Column("input-0", "BYTES", example="text"),), takes_documents=True)
    return InputSchema()


def input_tensors(schema: InputSchema, features: int | None) -> tuple[TensorMetadata, ...]:
    """Return the metadata of the inputs: one tensor per named column, else one for all."""
    if schema.columns:
        return tuple(_input_tensor(column) for column in schema.columns)
    return (TensorMetadata("input-0", "FP64", (-1, features or -1), {"content_type": "np"}),)


def _input_tensor(column: Column) -> TensorMetadata:
    if column.datatype == "BYTES":
        return TensorMetadata(column.name, "BYTES", (-1, 1), {"content_type": "str"})
    return TensorMetadata(column.name, column.datatype, (-1, 1))


def output_tensors(estimator: Any, methods: Sequence[str]) -> tuple[TensorMetadata, ...]:
    """Return the metadata of the outputs: one tensor per method of `methods`."""
    classes = getattr(estimator, "classes_", None)
    return tuple(_output_tensor(name, classes) for name in methods)


def _output_tensor(name: str, classes: Any) -> TensorMetadata:
    several = isinstance(classes, list)  # a multi-output classifier has one list a target
    datatype, width = "FP64", -1
    if name == "predict":
        width = len(classes) if several else 1
        if classes is not None:
            dtype = (classes[0] if several else classes).dtype
            datatype = "BYTES" if dtype.kind in "USO" else codec.datatype(dtype)
    elif name in ("predict_proba", "predict_log_proba") and classes is not None and not several:
        width = len(classes)
    elif name == "score_samples":
        width = 1
    return TensorMetadata(name, datatype, (-1, width), {"content_type": "np"})


def _text_or_number(name: str, known: Any) -> Column:
    if isinstance(known, str):
        return Column(name, "BYTES", example=known)
    return Column(name, example=0 if known is None else known)


def _first_step(estimator: Any) -> Any:
    """What sees the raw input: an estimator, or the first step of a pipeline."""
    return estimator.steps[0][1] if getattr(estimator, "steps", None) else estimator


def _takes_documents(estimator: Any) -> bool:
    return hasattr(_first_step(estimator), "build_analyzer")


def _known_values(estimator: Any) -> dict[Any, Any]:
    """A value that was seen in training, for each column of categories."""
    step = _first_step(estimator)
    encoders = [(part, columns) for _, part, columns in getattr(step, "transformers_", ())]
    encoders.append((step, getattr(step, "feature_names_in_", ())))
    return {
        column: categories[0].item() if hasattr(categories[0], "item") else categories[0]
        for part, columns in encoders
        for column, categories in zip(columns, getattr(part, "categories_", ()), strict=False)
    }
