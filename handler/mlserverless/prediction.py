"""How an estimator is called: its steps' containers, its columns, its class scores, its faults.

Everything here reads a fitted estimator or a raised exception, and never the request's data.
Attributes are those that scikit-learn documents, unless a comment says otherwise.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType
from typing import Any, Final

import numpy as np

from mlserverless import memory
from mlserverless.errors import BadRequest, quote
from mlserverless.protocol import RequestOutput

Array = np.ndarray[Any, np.dtype[Any]]

CLASSIFICATION: Final = "classification"  # the parameter of Triton's extension
SCORES: Final = ("predict_proba", "decision_function", "predict_log_proba")

_MAX_LIST_LENGTH: Final = 10_000  # elements of a list that are searched for estimators
_MAX_DEPTH: Final = 100  # estimators inside one another
_NOT_FITTED_PATTERN: Final = re.compile(r"This (\w+) instance is not fitted")
_QUOTED_PATTERN: Final = re.compile(r"'([\w.]+)'")
_IMPORTED_NAME_PATTERN: Final = re.compile(r"cannot import name '(\w+)'")
# what the dynamic linker says, without the folder
_LIBRARY_PATTERN: Final = re.compile(r"([\w.+-]+): cannot open shared object file")
# Packages whose objects are data. The rest of scipy (splines, trees) is part of models.
_DATA_PACKAGES: Final = (
    "builtins", "datetime", "decimal", "narwhals", "numpy", "pandas", "polars", "scipy.sparse",
)  # fmt: skip


# ── faults of the model ─────────────────────────────────────────────────────────────────


def describe_fault(error: BaseException) -> str | None:
    """Return what the model lacks if `error` is its fault; None if it may be the data's.

    An estimator that is not fitted, or lacks an attribute, a name or a module, fails for every
    request. The text holds names of the model's code only, never the exception's own message.
    """
    from sklearn.exceptions import NotFittedError  # noqa: PLC0415 - INIT must not import it

    if isinstance(error, ImportError | OSError):
        return _describe_missing_code(error)
    if isinstance(error, NameError):
        name = f"the name {quote(error.name)}, which" if error.name else "a name that"
        return f"its code uses {name} is not defined"
    if isinstance(error, NotFittedError):
        match = _NOT_FITTED_PATTERN.match(str(error))
        subject = f"its {match[1]}" if match else "it"
        return f"{subject} is not fitted; call fit before you save the model"
    if isinstance(error, AttributeError) and error.name and not _is_data(error.obj):
        owner = error.obj
        if isinstance(owner, ModuleType | type):
            subject = f"{'the module' if isinstance(owner, ModuleType) else 'the class'} "
            subject += quote(owner.__name__)
        else:
            subject = f"its {quote(type(owner).__name__)}"
        return f"{subject} has no attribute {quote(error.name)}"
    return None


def _describe_missing_code(error: ImportError | OSError) -> str | None:
    """Name the module or shared library that is missing; None for another OSError."""
    library = _LIBRARY_PATTERN.search(str(error))
    if library is not None:
        return f"it needs the library {quote(library[1])}, which is not installed here"
    if isinstance(error, OSError):
        return None
    found = error.name or (_QUOTED_PATTERN.findall(str(error)) or ["a module"])[0]
    match = _IMPORTED_NAME_PATTERN.match(str(error))
    if match is not None:  # the module is there, in another version
        return f"the module {quote(found)} has no attribute {quote(match[1])}"
    return f"it needs {quote(found)}, which is not installed here"


def _is_data(value: Any) -> bool:
    """Return whether `value` may come from the request; an object of the model does not."""
    if callable(value) or isinstance(value, ModuleType):
        return False
    module = type(value).__module__
    if module.startswith("numpy.random"):
        return False
    return any(module == name or module.startswith(f"{name}.") for name in _DATA_PACKAGES)


# ── steps ───────────────────────────────────────────────────────────────────────────────


def _find_inner(estimator: Any, step: int) -> Any:
    """Return the first (0) or last (-1) estimator inside pipelines, searches and the like."""
    for _ in range(_MAX_DEPTH):
        steps = [each for _, each in getattr(estimator, "steps", None) or () if _is_step(each)]
        if steps:
            estimator = steps[step]
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif type(estimator).__name__ == "FrozenEstimator":
            estimator = estimator.estimator
        else:
            break
    return estimator


def _is_step(step: Any) -> bool:
    return step is not None and not isinstance(step, str)  # "passthrough"


def find_unused_columns(estimator: Any, names: Sequence[str]) -> frozenset[str]:
    """Return those of `names` that a ColumnTransformer at the input drops; never raises."""
    try:
        first = _find_inner(estimator, 0)
        # private, and what its own transform checks; without it every column is needed
        indices: Mapping[str, Any] = first._transformer_to_input_indices  # noqa: SLF001
        used: set[int] = set()
        for name, transformer, _ in first.transformers_:
            found = indices[name]
            if not isinstance(transformer, str) or transformer != "drop":
                used.update(range(len(names))[found] if isinstance(found, slice) else found)
    except Exception:  # noqa: BLE001 - an estimator may raise anything
        return frozenset()
    return frozenset(name for index, name in enumerate(names) if index not in used)


# ── transform_output ────────────────────────────────────────────────────────────────────


def find_transform_output(estimator: Any) -> tuple[str | None, bool]:
    """Return the container that transformers returned in training, and whether it is unclear.

    scikit-learn does not record `set_config(transform_output="pandas")` in a model. A step with
    `feature_names_in_` shows it: its predecessor returned a DataFrame with these names, and
    returns an array under the default configuration. That is certain for scikit-learn's own
    transformers; others may return a DataFrame by themselves, so their models are unclear.
    Never raises.
    """
    unclear = False
    try:
        for before, after in _iter_step_pairs(estimator):
            names = getattr(after, "feature_names_in_", None)
            source = _find_inner(before, -1)
            own: Mapping[str, str] = getattr(source, "_sklearn_output_config", {})
            if own.get("transform") is not None:
                continue
            if names is None:  # a user's class need not record them, and may use them
                unclear = unclear or (hasattr(source, "set_output") and not _is_from_sklearn(after))
                continue
            returned = _read_names_out(source) if _has_array_output(source) else None
            if returned == [*names]:
                return ("pandas" if is_installed("pandas") else None), False
            unclear = unclear or (returned is None and hasattr(source, "set_output"))
    except Exception:  # noqa: BLE001 - an estimator may raise anything
        return None, True
    return None, unclear


def is_installed(container: str) -> bool:
    """Return whether the package of a `transform_output` can be imported."""
    try:
        return find_spec(container) is not None
    except ValueError:  # imported, and without a spec
        return sys.modules[container] is not None


def _read_names_out(transformer: Any) -> list[str] | None:
    try:
        return [*transformer.get_feature_names_out()]
    except Exception:  # noqa: BLE001 - a transformer inside it may have no names to give
        return None


def _has_array_output(transformer: Any) -> bool:
    """Return whether it never returns a DataFrame under scikit-learn's default configuration."""
    return _is_from_sklearn(transformer) and type(transformer).__name__ != "FunctionTransformer"


def _is_from_sklearn(estimator: Any) -> bool:
    return type(estimator).__module__.startswith("sklearn.")


def _iter_step_pairs(root: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each step with the next one, of every pipeline inside `root`."""
    seen, stack = set[int](), [root]
    while stack:
        each = stack.pop()
        if id(each) in seen or not hasattr(each, "__dict__"):
            continue
        seen.add(id(each))
        steps = getattr(each, "steps", None)
        if isinstance(steps, list):
            effective = [step for _, step in steps if _is_step(step)]
            yield from pairwise(effective)
        for value in vars(each).values():
            stack += _find_estimators(value)


def _find_estimators(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        short = value[:_MAX_LIST_LENGTH]
        return [found for each in short for found in _find_estimators(each)]
    module = type(value).__module__
    # a forest has thousands of trees, and they have no steps
    if module.startswith("sklearn.tree") or not hasattr(value, "__dict__"):
        return []
    # the wrapper of each fold in CalibratedClassifierCV is not an estimator
    is_part = hasattr(value, "get_params") or type(value).__name__ == "_CalibratedClassifier"
    return [value] if is_part and not isinstance(value, type) else []


# ── keyword arguments ───────────────────────────────────────────────────────────────────


def read_keyword_arguments(output: RequestOutput, allowed: Sequence[str]) -> dict[str, Any]:
    """Return those of an output's parameters that the model's settings allow.

    Raises BadRequest for a value that is not a boolean, a number, a string or a list of these.
    """
    found = {name: output.parameters[name] for name in allowed if name in output.parameters}
    for name, value in found.items():
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, bool | int | float | str) for item in items):
            raise BadRequest(
                f"parameter {quote(name)} of output {quote(output.name)} must be a boolean, "
                "a number, a string or a list of these"
            )
    return found


# ── classification ──────────────────────────────────────────────────────────────────────


def read_count(output: RequestOutput) -> int:
    """Return how many classes of each row an output's `classification` requests."""
    count = output.parameters[CLASSIFICATION]
    if type(count) is not int or count < 1:
        raise BadRequest(
            f"classification of output {quote(output.name)} must be a positive integer"
        )
    return count


def choose_scores(name: str, methods: Sequence[str]) -> str:
    """Return the method whose scores rank the classes for output `name`."""
    if name in SCORES:
        return name
    if name == "predict":
        for method in ("predict_proba", "decision_function"):
            if method in methods:
                return method
        raise BadRequest(
            "classification needs scores of classes: this model has neither predict_proba "
            "nor decision_function"
        )
    raise BadRequest(
        f"classification works for predict and {', '.join(SCORES)}, not for output {quote(name)}"
    )


def classify(name: str, scores: Any, estimator: Any, count: int) -> Array:
    """Return the `count` highest scores of each row as `score:index:label`, highest first.

    `scores` is what method `name` returned: [n, classes], or [n] for two classes. The result is
    [n, min(count, classes)]; equal scores keep the order of the classes. The label is left out
    where the estimator has no `classes_`. Raises BadRequest if there is no score per class.
    """
    classes = getattr(estimator, "classes_", None)
    if isinstance(scores, list | tuple) or isinstance(classes, list):
        raise BadRequest("classification needs a model with one target; this model has several")
    values = np.asarray(scores, np.float64)
    labels = None if classes is None else np.asarray(classes).tolist()
    if values.ndim == 1 and labels is not None and len(labels) == 2:
        values = np.stack([-values, values], axis=1)
    if name == "decision_function" and labels is not None and len(labels) > 2:
        final = _find_inner(estimator, -1)
        if getattr(final, "decision_function_shape", None) == "ovo":
            raise BadRequest("decision_function of this model scores pairs of classes")
    if values.ndim != 2 or (labels is not None and len(labels) != values.shape[1]):
        raise BadRequest(f"{quote(name)} of this model does not return one score per class")
    rows, width = values.shape[0], min(count, values.shape[1])
    memory.check(rows * width * memory.ITEM)
    order = np.argsort(-values, axis=1, kind="stable")[:, :width]
    highest = np.take_along_axis(values, order, axis=1)
    texts = np.empty((rows, width), object)
    for cell, score, index in zip(np.ndindex(texts.shape), highest.flat, order.flat, strict=True):
        text = f"{float(score)!r}:{index}"
        texts[cell] = text if labels is None else f"{text}:{labels[index]}"
    return texts
