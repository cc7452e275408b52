"""Read attributes of estimators, and of those inside them, without raising.

Neither scikit-learn nor pandas is imported: types are recognised by their attributes and names.
"""

from __future__ import annotations

import math
from collections import UserList
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MAX_DEPTH: Final = 64  # levels of nested estimators that are read
MAX_CHILDREN: Final = 1_000  # of one ensemble
MAX_FEATURES: Final = 2**31  # a larger n_features_in_ is ignored


def get(thing: Any, name: str) -> Any:
    """Return an attribute; None if there is none or if reading it raises, whatever it raises."""
    try:
        return getattr(thing, name, None)
    except BaseException:  # noqa: BLE001 - a property may raise anything
        return None


def as_list(value: Any) -> list[Any] | None:
    """Return the elements of a list, tuple, array or pandas Index or Series; else None."""
    if isinstance(value, UserList):  # scikit-learn 1.5 warns if its own list is iterated
        value = value.data
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim == 1 else None
    if type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "tolist"):
        return list(value.tolist())
    return None


def as_array(value: Any, dimensions: int) -> Array | None:
    """Return the value if it is an array with so many dimensions, else None."""
    is_one = isinstance(value, np.ndarray) and value.ndim == dimensions
    return value if is_one else None


def pairs(value: Any) -> list[tuple[Any, ...]]:
    """Return the entries of `steps`, `transformers_` or `transformer_list`."""
    entries = value if isinstance(value, list | tuple) else ()
    return [tuple(each) for each in entries if isinstance(each, list | tuple) and len(each) > 1]


def is_whole(value: Any) -> bool:
    """Return whether the value is an integer, of Python or numpy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)


def is_missing(value: Any) -> bool:
    """Return whether the value is None or NaN."""
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def is_from(estimator: Any, *packages: str) -> bool:
    """Return whether the class itself, not one that it inherits from, is from a package."""
    return str(type(estimator).__module__).partition(".")[0] in packages


def has_base(estimator: Any, *names: str) -> bool:
    """Return whether the class, or one that it inherits from, has one of these names."""
    return any(base.__name__ in names for base in type(estimator).__mro__)


def names_of(estimator: Any) -> list[str] | None:
    """Return the names of the DataFrame columns that the estimator was trained on."""
    names = as_list(get(estimator, "feature_names_in_"))
    if not names:
        return None
    # LightGBM before 4.6 makes these up for arrays
    made_up = is_from(estimator, "lightgbm") and str(names[0]) == "Column_0"
    return None if made_up else [str(name) for name in names]


def count_of(estimator: Any) -> int | None:
    """Return the number of columns that the estimator was trained on."""
    count = get(estimator, "n_features_in_")
    return int(count) if is_whole(count) and 0 < count < MAX_FEATURES else None


def is_passthrough(step: Any) -> bool:
    """Return whether a step of a pipeline hands on its input as it is."""
    return step is None or (isinstance(step, str) and step == "passthrough")


def find(estimator: Any, read: Callable[[Any], Any]) -> Any:
    """Return what `read` finds in the estimator, or in one inside it that takes the same input."""
    waiting, seen = [estimator], set[int]()
    while waiting and len(seen) < MAX_DEPTH:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        found = read(each)
        if found is not None:
            return found
        first = [step[1] for step in pairs(get(each, "steps")) if not is_passthrough(step[1])]
        union = [part[1] for part in pairs(get(each, "transformer_list"))]
        waiting += first[:1] + union + [child for child, _ in children(each)][:1]
    return None


def is_function_transformer(estimator: Any) -> bool:
    """Return whether the estimator is a FunctionTransformer."""
    return has_base(estimator, "FunctionTransformer")


# ── estimators inside estimators ────────────────────────────────────────────────────────

# Attributes that hold fitted estimators which take the same input as the one that has them.
_FITTED: Final = ("best_estimator_", "estimator_", "regressor_", "classifier_")


def fitted_child(estimator: Any, name: str) -> Any:
    """Return an estimator inside another; None for the unfitted template of an ensemble."""
    is_template = name == "estimator_" and get(estimator, "estimators_") is not None
    return None if is_template else get(estimator, name)


def children(estimator: Any) -> Iterator[tuple[Any, Sequence[int] | None]]:
    """Yield each estimator inside one, with the columns that it sees (None: all of them)."""
    fitted = list(_fitted_children(estimator))
    yield from fitted
    if fitted:
        return
    child = get(estimator, "estimator")
    if child is not None:
        yield child, None
    elif not is_from(estimator, "sklearn", "lightgbm", "xgboost"):
        for child in list((get(estimator, "__dict__") or {}).values()):
            if get(child, "fit") is not None and not isinstance(child, type):
                yield child, None


def _fitted_children(estimator: Any) -> Iterator[tuple[Any, Sequence[int] | None]]:
    support = None
    if get(estimator, "ranking_") is not None:  # RFE hands on what it has selected
        mask = as_array(get(estimator, "support_"), 1)
        support = None if mask is None else np.flatnonzero(mask).tolist()
    for name in _FITTED:
        child = fitted_child(estimator, name)
        if child is not None:
            yield child, support
    for each in _nested(get(estimator, "calibrated_classifiers_")):
        child = get(each, "estimator")
        if child is None:
            child = get(each, "base_estimator")  # before scikit-learn 1.2
        if child is not None:
            yield child, None
    subsets = get(estimator, "estimators_features_")
    subsets = subsets if isinstance(subsets, list) else []
    for place, child in enumerate(_nested(get(estimator, "estimators_"))):
        yield child, as_list(subsets[place]) if place < len(subsets) else None


def _nested(value: Any) -> list[Any]:
    """Return the estimators of a list or array of them, or of lists of them."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[:MAX_CHILDREN].tolist() if value.dtype == object else []
    if not isinstance(value, list | tuple):
        return []
    flat = [part for each in value[:MAX_CHILDREN] for part in _unpack(each)]
    # the trees of a forest record nothing about columns
    return [each for each in flat if not isinstance(each, str) and get(each, "tree_") is None]


def _unpack(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)
