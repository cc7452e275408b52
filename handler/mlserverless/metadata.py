"""What a fitted estimator records about its training data: input columns and output tensors.

Everything here reads attributes that scikit-learn documents (`n_features_in_`,
`feature_names_in_`, `categories_`, `classes_` …) and never raises: an attribute that an
estimator lacks, or refuses to give, leaves the default. Time and output are bounded by the
constants below. Neither scikit-learn nor pandas is imported: types are recognised by their
attributes.
"""

from __future__ import annotations

import base64
import math
import operator
import time
from collections import UserList
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np
import orjson

from mlserverless import codec
from mlserverless.protocol import TensorMetadata

Array = np.ndarray[Any, np.dtype[Any]]

MISSING: Final = float("nan")  # what pandas gives for a missing string

MAX_DEPTH: Final = 64  # nested estimators; three Python frames each
MAX_VISITS: Final = 1_000  # estimators that one description looks at
MAX_COLUMN_VISITS: Final = 2_000_000  # columns, summed over these estimators
MAX_SECONDS: Final = 2.0  # after which no further estimator is looked at
MAX_LISTED_COLUMNS: Final = 10_000  # tensors in the metadata of one model
MAX_LISTED_NAME_CHARACTERS: Final = 1_000_000  # of all these tensors' names
MAX_LABELS: Final = 10_000  # class labels of one output
MAX_LABEL_CHARACTERS: Final = 200_000  # of all these labels
MAX_FEATURES: Final = 2**31  # a larger n_features_in_ is not believed
MAX_XGBOOST_ROUNDS: Final = 2_000  # the model is serialized to read its categories

_TEXT_EXAMPLE: Final = "text"
_DEFAULT_EXAMPLES: Final[dict[str, Any]] = {"BYTES": _TEXT_EXAMPLE, "BOOL": False}


@dataclass(frozen=True, slots=True)
class Column:
    """One input column, as the estimator was trained on it.

    `datatype` is the protocol's. `missing` is the value for a JSON null: NaN, or None if an
    encoder was trained with None. `categories` are those of a pandas `category` column, in the
    order of its codes, if the estimator requires that dtype; None for any other column.
    `example` is a value that training may have seen, as JSON carries it. `content_type` is how
    the elements of a BYTES column are decoded.
    """

    name: str
    datatype: str = "FP64"
    missing: Any = MISSING
    categories: Array | None = None
    example: Any = 0
    content_type: str = "str"


@dataclass(frozen=True, slots=True)
class InputSchema:
    """What an estimator takes.

    `has_names` says whether it was trained on a DataFrame: `columns` then carry its names in its
    order. `takes_documents` says that it takes a list of strings instead of rows of columns, as
    text vectorizers do; `columns` has one entry then. `columns` is empty if nothing is known, and
    for an estimator that was trained on arrays. For that one `features` is the number of columns
    and `positions` describes them (empty beyond MAX_LISTED_COLUMNS); `needs_objects` says that a
    numpy text array is refused, since the estimator takes strings in object columns only.
    `is_flat` says that it takes one value per row, as LabelEncoder does.
    """

    columns: tuple[Column, ...] = ()
    has_names: bool = False
    takes_documents: bool = False
    features: int | None = None
    positions: tuple[Column, ...] = ()
    needs_objects: bool = False
    is_flat: bool = False


def describe_inputs(estimator: Any) -> InputSchema:
    """Return what `estimator` takes, read from its attributes; never raises."""
    try:
        return _describe_inputs(estimator)
    except BaseException:  # noqa: BLE001 - an estimator's attribute may raise anything
        return InputSchema()


def _describe_inputs(estimator: Any) -> InputSchema:
    names = _find(estimator, _names_of)
    count = len(names) if names is not None else _find(estimator, _count_of)
    explorer = _Explorer(names)
    if count is None or count <= MAX_COLUMN_VISITS:
        explorer.visit(estimator, None if count is None else _Sources(range(count)), 0)
    if names is not None:
        columns = tuple(explorer.column(place, name) for place, name in enumerate(names))
        return InputSchema(columns, has_names=True, features=count)
    if count is not None:
        listed = range(count if count <= MAX_LISTED_COLUMNS else 0)
        positions = tuple(explorer.column(place, f"input-{place}") for place in listed)
        objects = explorer.needs_objects
        return InputSchema(features=count, positions=positions, needs_objects=objects)
    whole = explorer.whole
    if whole is None:
        return InputSchema()
    if whole.datatype == "BYTES":
        return InputSchema((whole,), takes_documents=True)
    return InputSchema(positions=(whole,), is_flat=True)


# ── attributes ──────────────────────────────────────────────────────────────────────────


def _get(thing: Any, name: str) -> Any:
    """Return an attribute; None if there is none or if reading it raises, whatever it raises."""
    try:
        return getattr(thing, name, None)
    except BaseException:  # noqa: BLE001 - a property may raise anything
        return None


def _as_list(value: Any) -> list[Any] | None:
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


def _as_array(value: Any, dimensions: int) -> Array | None:
    is_one = isinstance(value, np.ndarray) and value.ndim == dimensions
    return value if is_one else None


def _pairs(value: Any) -> list[tuple[Any, ...]]:
    """Return the entries of `steps`, `transformers_` or `transformer_list`."""
    entries = value if isinstance(value, list | tuple) else ()
    return [tuple(each) for each in entries if isinstance(each, list | tuple) and len(each) > 1]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)


def _is_missing(value: Any) -> bool:
    return value is None or isinstance(value, float | np.floating) and math.isnan(value)


def _is_from(estimator: Any, *packages: str) -> bool:
    """Return whether the class itself, not one that it inherits from, is from a package."""
    return str(type(estimator).__module__).partition(".")[0] in packages


def _has_base(estimator: Any, *names: str) -> bool:
    return any(base.__name__ in names for base in type(estimator).__mro__)


def _names_of(estimator: Any) -> list[str] | None:
    names = _as_list(_get(estimator, "feature_names_in_"))
    if not names:
        return None
    # LightGBM before 4.6 makes these up for arrays
    made_up = _is_from(estimator, "lightgbm") and str(names[0]) == "Column_0"
    return None if made_up else [str(name) for name in names]


def _count_of(estimator: Any) -> int | None:
    count = _get(estimator, "n_features_in_")
    return int(count) if _is_whole(count) and 0 < count < MAX_FEATURES else None


def _is_passthrough(step: Any) -> bool:
    return step is None or (isinstance(step, str) and step == "passthrough")


def _find(estimator: Any, read: Callable[[Any], Any]) -> Any:
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
        first = [step[1] for step in _pairs(_get(each, "steps")) if not _is_passthrough(step[1])]
        union = [part[1] for part in _pairs(_get(each, "transformer_list"))]
        waiting += first[:1] + union[:1] + [child for child, _ in _children(each)][:1]
    return None


# ── inputs ──────────────────────────────────────────────────────────────────────────────


class _Sources(tuple[int | None, ...]):
    """For each column that an estimator sees, the input's column that it is made of.

    `i` is column i with its values unchanged, `~i` the same after a step that may have changed
    them, None a column of another origin.
    """

    __slots__ = ()

    def changed(self) -> _Sources:
        return _Sources(~each if each is not None and each >= 0 else each for each in self)

    def pick(self, places: Sequence[int]) -> _Sources:
        return _Sources(self[place] for place in places)


class _Facts:
    """What is known of one input column so far."""

    __slots__ = ("categories", "content_type", "datatype", "example", "missing", "rank")

    def __init__(self) -> None:
        self.datatype: str | None = None
        self.missing: Any = MISSING
        self.categories: Array | None = None
        self.example: Any = None
        self.rank = -1  # of the example: a better source replaces it
        self.content_type = "str"


class _Explorer:
    """Walks through nested estimators and notes what each says of the input's columns."""

    def __init__(self, names: list[str] | None) -> None:
        self.places = {name: place for place, name in enumerate(names or ())}
        self.facts: dict[int, _Facts] = {}
        self.whole: Column | None = None
        self.needs_objects = False
        self.visits = MAX_VISITS
        self.column_visits = MAX_COLUMN_VISITS
        self.end = time.monotonic() + MAX_SECONDS
        self.path: set[int] = set()

    def column(self, place: int, name: str) -> Column:
        facts = self.facts.get(place)
        if facts is None:
            return Column(name)
        datatype = facts.datatype or "FP64"
        example = _DEFAULT_EXAMPLES.get(datatype, 0) if facts.example is None else facts.example
        return Column(
            name, datatype, facts.missing, facts.categories, example, facts.content_type
        )

    def visit(self, estimator: Any, sources: _Sources | None, depth: int) -> _Sources | None:
        """Note what an estimator says of its columns; return those that it passes on.

        `sources` is None for an input that is not known to have columns. The result is None if
        nothing is known of what is passed on.
        """
        if _is_passthrough(estimator):
            return sources
        if isinstance(estimator, str) or depth > MAX_DEPTH or id(estimator) in self.path:
            return None
        self.visits -= 1
        self.column_visits -= len(sources or ())
        if min(self.visits, self.column_visits) < 0 or time.monotonic() > self.end:
            return None
        self.path.add(id(estimator))
        try:
            return self._explore(estimator, self._align(estimator, sources), depth + 1)
        except BaseException:  # noqa: BLE001 - what was noted before holds
            return None
        finally:
            self.path.discard(id(estimator))

    def _align(self, estimator: Any, sources: _Sources | None) -> _Sources | None:
        """Return `sources` as this estimator counts columns, after steps that may change them."""
        if sources is None:
            return None
        names, count = _names_of(estimator), _count_of(estimator)
        if names is not None and any(each is None or each < 0 for each in sources):
            known = [self.places.get(name) for name in names]
            if any(place is not None for place in known):
                return _Sources(None if place is None else ~place for place in known)
        extra = 0 if count is None else count - len(sources)
        if not 0 <= extra <= MAX_LISTED_COLUMNS:
            return None
        # the estimators of a chain also see the targets before theirs
        return _Sources((*sources, *[None] * extra)) if extra else sources

    def _explore(self, estimator: Any, sources: _Sources | None, depth: int) -> _Sources | None:
        steps = _pairs(_get(estimator, "steps"))
        if steps:
            return self._explore_steps(steps, sources, depth)
        if sources is not None and _get(estimator, "transformers_"):
            return self._explore_columns(estimator, sources, depth)
        parts = _pairs(_get(estimator, "transformer_list"))
        if parts:
            return self._explore_union(parts, sources, depth)
        if _get(estimator, "build_analyzer") is not None:
            self._note_text(estimator, sources)
            return None
        if sources is None:
            self._note_labels(estimator)
        else:
            self._note_columns(estimator, sources, depth)
        for child, places in _children(estimator):
            seen = sources
            if places is not None and sources is not None:
                seen = sources.pick(places)
            self.visit(child, seen, depth)
        return _passed_on(estimator, sources)

    def _explore_steps(
        self, steps: list[tuple[Any, ...]], sources: _Sources | None, depth: int
    ) -> _Sources | None:
        is_whole = sources is None
        for step in steps:
            sources = self.visit(step[1], sources, depth)
            if sources is None and not (is_whole and _may_pass_documents(step[1])):
                return None
        return sources

    def _explore_union(
        self, parts: list[tuple[Any, ...]], sources: _Sources | None, depth: int
    ) -> _Sources | None:
        passed = [self.visit(part[1], sources, depth) for part in parts if part[1] != "drop"]
        if any(each is None for each in passed):
            return None
        return _Sources(source for each in passed for source in each or ())

    def _explore_columns(
        self, estimator: Any, sources: _Sources, depth: int
    ) -> _Sources | None:
        names = _names_of(estimator)
        outputs = _get(estimator, "output_indices_")
        outputs = outputs if isinstance(outputs, Mapping) else {}
        ends = [part.stop for part in outputs.values() if isinstance(part, slice)]
        passed: list[int | None] = [None] * min(max(ends, default=0), self.column_visits)
        for entry in _pairs(_get(estimator, "transformers_")):
            name, part, columns = (*entry, None)[:3]
            places = _places(columns, names, len(sources))
            if places is None:
                private = _get(estimator, "_transformer_to_input_indices")
                places = _as_list(private.get(name)) if isinstance(private, Mapping) else None
            if places is None or (isinstance(part, str) and part == "drop"):
                continue
            result = self.visit(part, sources.pick(places), depth)
            output = outputs.get(name)
            if result is not None and isinstance(output, slice):
                width = len(range(*output.indices(len(passed))))
                if width == len(result):
                    passed[output] = result
        return _Sources(passed) if passed else None

    # what one estimator says

    def _note(
        self,
        source: int | None,
        values: Any,
        rank: int,
        *,
        datatype: str | None = None,
        categories: Array | None = None,
    ) -> None:
        """Note the values that a column had in training; `rank` says how good an example is."""
        if source is None:
            return
        found, content_type, example = _describe_values(values)
        found = found if datatype is None or found == "BYTES" else datatype
        if found is None or (source < 0 and found != "BYTES"):
            return  # numbers of a changed column may have been something else before
        facts = self.facts.setdefault(source if source >= 0 else ~source, _Facts())
        if facts.datatype is None:
            facts.datatype, facts.content_type = found, content_type
        fits = facts.datatype in (found, "FP64") and (found == "BYTES") == (
            facts.datatype == "BYTES"
        )
        if fits and rank > facts.rank and example is not None:
            facts.example, facts.rank = example, rank
        if categories is not None and facts.categories is None:
            facts.categories = categories

    def _note_text(self, vectorizer: Any, sources: _Sources | None) -> None:
        example = _TEXT_EXAMPLE
        vocabulary = _get(vectorizer, "vocabulary_")
        if isinstance(vocabulary, Mapping) and vocabulary:
            example = _encodable(str(next(iter(vocabulary)))) or example
        if sources is None:
            self.whole = self.whole or Column("input-0", "BYTES", example=example)
        elif len(sources) == 1:
            self._note(sources[0], [example], 3)

    def _note_labels(self, estimator: Any) -> None:
        """Note that LabelEncoder and LabelBinarizer take one label per row."""
        classes = _as_array(_get(estimator, "classes_"), 1)
        is_encoder = _get(estimator, "inverse_transform") is not None
        if classes is None or not is_encoder or _get(estimator, "predict") is not None:
            return
        found, content_type, example = _describe_values(classes)
        if found is not None and not _has_base(estimator, "MultiLabelBinarizer"):
            self.whole = Column("input-0", found, example=example, content_type=content_type)

    def _note_columns(self, estimator: Any, sources: _Sources, depth: int) -> None:
        categories = _get(estimator, "categories_")
        if isinstance(categories, list | tuple) and len(categories) == len(sources):
            for source, values in zip(sources, categories, strict=True):
                self._note(source, values, 4)
                if source is not None and any(value is None for value in _ends(values)):
                    self._set_missing(source)
        statistics = _as_array(_get(estimator, "statistics_"), 1)
        if statistics is not None and len(statistics) == len(sources):
            self._note_statistics(estimator, statistics, sources)
        for source, example in zip(sources, _numeric_examples(estimator, len(sources)), strict=False):
            self._note(source, [example], 2, datatype="FP64")
        preprocessor = _get(estimator, "_preprocessor")  # HistGradientBoosting's encoder
        if preprocessor is not None:
            self.visit(preprocessor, sources, depth)
        for place, values in _required_categories(estimator, preprocessor, sources):
            self._note(sources[place], values, 4, categories=values)

    def _note_statistics(self, imputer: Any, statistics: Array, sources: _Sources) -> None:
        """Note what an imputer puts for a missing value, which training has seen."""
        takes_none = _get(imputer, "missing_values") is None and hasattr(imputer, "missing_values")
        for source, value in zip(sources, statistics.tolist(), strict=True):
            if isinstance(value, str):
                self.needs_objects = True
                self._note(source, [value], 1)
            elif not _is_missing(value):
                self._note(source, [value], 1, datatype="FP64")
            if takes_none and source is not None:
                self._set_missing(source)

    def _set_missing(self, source: int) -> None:
        self.facts.setdefault(source if source >= 0 else ~source, _Facts()).missing = None


def _ends(values: Any) -> tuple[Any, ...]:
    """Return the last two categories: scikit-learn sorts None and NaN behind all others."""
    kind = _as_array(values, 1)
    return tuple(kind[-2:]) if kind is not None and kind.dtype.kind == "O" else ()


def _describe_values(values: Any) -> tuple[str | None, str, Any]:
    """Return the datatype, the content type and an example of the values that a column had."""
    items = _as_list(values)
    present = [item for item in items or () if not _is_missing(item)]
    kinds = {type(item) for item in present}
    if not present:
        return None, "str", None
    if any(issubclass(kind, str) for kind in kinds):
        texts = (_encodable(item) for item in present if isinstance(item, str))
        return "BYTES", "str", next((text for text in texts if text is not None), _TEXT_EXAMPLE)
    first = present[0].item() if isinstance(present[0], np.generic) else present[0]
    if all(issubclass(kind, bytes) for kind in kinds):
        return "BYTES", "base64", base64.b64encode(first).decode("ascii")
    if all(issubclass(kind, date | np.datetime64) for kind in kinds):
        moment = present[0].astype("datetime64[us]").item() if first is not present[0] else first
        return "BYTES", "datetime", moment.isoformat()
    if all(issubclass(kind, bool | np.bool_) for kind in kinds):
        return "BOOL", "str", first
    if all(issubclass(kind, int | np.integer | bool | np.bool_) for kind in kinds):
        # a missing value among whole numbers can only be sent as FP64
        is_exact = len(present) == len(items or ()) and -(2**63) <= first < 2**63
        return ("INT64" if is_exact else "FP64"), "str", first
    if all(issubclass(kind, int | float | np.number) for kind in kinds):
        return "FP64", "str", first if math.isfinite(first) else 0
    return None, "str", None


def _encodable(text: str) -> str | None:
    """Return the string if UTF-8 can hold it, else None."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return str(text)


_LEARNED_ROWS: Final = (
    "quantiles_",
    "cluster_centers_",
    "centroids_",
    "theta_",
    "_fit_X",
    "X_train_",
    "X_fit_",
    "support_vectors_",
)


def _numeric_examples(estimator: Any, count: int) -> list[float]:
    """Return a value for each column that a scaler, a clusterer or the like has learned."""
    for name in ("data_min_", "center_", "mean_", "xbar_"):
        row = _as_array(_get(estimator, name), 1)
        if row is not None and _is_usable(row, count):
            return [float(value) for value in row]
    for name in _LEARNED_ROWS:
        rows = _as_array(_get(estimator, name), 2)
        if rows is not None and len(rows) and _is_usable(rows[0], count):
            return [float(value) for value in rows[0]]
    edges = _get(estimator, "bin_edges_")
    if isinstance(edges, np.ndarray | list) and len(edges) == count:
        return [float(each[0]) for each in edges]
    return []


def _is_usable(row: Array, count: int) -> bool:
    return row.shape == (count,) and row.dtype.kind in "iuf" and bool(np.isfinite(row).all())


def _places(columns: Any, names: list[str] | None, count: int) -> list[int] | None:
    """Return the positions that a ColumnTransformer's entry selects; None if it cannot be told."""
    if isinstance(columns, str):
        return [names.index(columns)] if names and columns in names else None
    if _is_whole(columns):
        return [range(count)[int(columns)]]
    if isinstance(columns, slice):
        return _slice_places(columns, names, count)
    items = _as_list(columns)
    if items is None:
        return None
    if all(isinstance(item, bool | np.bool_) for item in items) and len(items) == count:
        return [place for place, item in enumerate(items) if item]
    if all(isinstance(item, str) for item in items):
        known = {name: place for place, name in enumerate(names or ())}
        found = [known.get(item) for item in items]
        return None if None in found else [place for place in found if place is not None]
    return [range(count)[operator.index(item)] for item in items]


def _slice_places(columns: slice, names: list[str] | None, count: int) -> list[int] | None:
    start, stop = columns.start, columns.stop
    if isinstance(start, str) or isinstance(stop, str):
        if not names or {each for each in (start, stop) if each is not None} - set(names):
            return None
        start = None if start is None else names.index(start)
        stop = None if stop is None else names.index(stop) + 1  # pandas includes the end
    return list(range(count)[slice(start, stop, columns.step)])


def _passed_on(estimator: Any, sources: _Sources | None) -> _Sources | None:
    """Return the columns that a transformer without parts passes to the next step."""
    if sources is None:
        return None
    if _get(estimator, "fit_resample") is not None and _get(estimator, "transform") is None:
        return sources  # imbalanced-learn's samplers do nothing in a prediction
    statistics = _as_array(_get(estimator, "statistics_"), 1)
    if statistics is not None and _get(estimator, "strategy") is not None:
        return _passed_by_imputer(estimator, statistics, sources)
    support = _get(estimator, "get_support")
    if callable(support):
        mask = _as_array(support(), 1)
        if mask is None or len(mask) != len(sources):
            return None
        return _Sources(source for source, kept in zip(sources, mask, strict=True) if kept)
    if _is_function_transformer(estimator):
        return sources if _get(estimator, "func") is None else sources.changed()
    return None if _is_from(estimator, "sklearn") else sources.changed()


def _passed_by_imputer(imputer: Any, statistics: Array, sources: _Sources) -> _Sources | None:
    if len(statistics) != len(sources):
        return None
    keeps = _get(imputer, "keep_empty_features") or _get(imputer, "strategy") == "constant"
    kept = [
        source
        for source, value in zip(sources, statistics.tolist(), strict=True)
        if keeps or not _is_missing(value)
    ]
    added = _as_list(_get(_get(imputer, "indicator_"), "features_")) or []
    return _Sources((*kept, *[None] * len(added)))


def _is_function_transformer(estimator: Any) -> bool:
    return _has_base(estimator, "FunctionTransformer")


def _may_pass_documents(step: Any) -> bool:
    """Return whether a step in front of a vectorizer may hand on strings, one per row."""
    return (
        _is_passthrough(step)
        or _is_function_transformer(step)
        or not _is_from(step, "sklearn")
    )


# Attributes that hold fitted estimators which take the same input as the one that has them.
_FITTED: Final = ("best_estimator_", "estimator_", "regressor_", "classifier_")


def _fitted_child(estimator: Any, name: str) -> Any:
    """Return an estimator inside another; None for the unfitted template of an ensemble."""
    is_template = name == "estimator_" and _get(estimator, "estimators_") is not None
    return None if is_template else _get(estimator, name)


def _children(estimator: Any) -> Iterator[tuple[Any, Sequence[int] | None]]:
    """Yield each estimator inside one, with the columns that it sees (None: all of them)."""
    found = False
    support = None
    if _get(estimator, "ranking_") is not None:  # RFE hands on what it has selected
        mask = _as_array(_get(estimator, "support_"), 1)
        support = None if mask is None else np.flatnonzero(mask).tolist()
    for name in _FITTED:
        child = _fitted_child(estimator, name)
        if child is not None:
            found = True
            yield child, support
    for each in _nested(_get(estimator, "calibrated_classifiers_")):
        child = _get(each, "estimator") or _get(each, "base_estimator")
        if child is not None:
            found = True
            yield child, None
    subsets = _get(estimator, "estimators_features_")
    for place, child in enumerate(_nested(_get(estimator, "estimators_"))):
        found = True
        picked = None
        if isinstance(subsets, list) and place < len(subsets):
            picked = _as_list(subsets[place])
        yield child, picked
    if found:
        return
    child = _get(estimator, "estimator")
    if child is not None:
        yield child, None
    elif not _is_from(estimator, "sklearn", "lightgbm", "xgboost"):
        for child in list((_get(estimator, "__dict__") or {}).values()):
            if _get(child, "fit") is not None and not isinstance(child, type):
                yield child, None


def _nested(value: Any) -> list[Any]:
    """Return the estimators of a list or array of them, or of lists of them."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[:MAX_VISITS].tolist() if value.dtype == object else []
    if not isinstance(value, list | tuple):
        return []
    flat = [part for each in value[:MAX_VISITS] for part in _unpack(each)]
    # the trees of a forest know nothing of columns
    return [each for each in flat if not isinstance(each, str) and _get(each, "tree_") is None]


def _unpack(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _required_categories(
    estimator: Any, preprocessor: Any, sources: _Sources
) -> Iterator[tuple[int, Array]]:
    """Yield the columns that must come as pandas `category`, with their categories."""
    if preprocessor is not None:
        if _get(estimator, "categorical_features") == "from_dtype":
            yield from _histogram_categories(estimator, preprocessor)
        return
    booster = _get(estimator, "booster_")
    lists = _get(booster, "pandas_categorical")
    if isinstance(lists, list) and lists:
        params = _get(booster, "params")
        places = params.get("categorical_column") if isinstance(params, Mapping) else None
        if isinstance(places, list) and len(places) == len(lists):
            for place, values in zip(places, lists, strict=True):
                yield place, _category_array(values)
    elif _is_from(estimator, "xgboost"):
        yield from _xgboost_categories(estimator, len(sources))


def _histogram_categories(estimator: Any, preprocessor: Any) -> Iterator[tuple[int, Array]]:
    mask = _as_array(_get(estimator, "is_categorical_"), 1)
    encoders = _get(preprocessor, "named_transformers_")
    categories = _get(encoders["encoder"] if encoders is not None else None, "categories_")
    if mask is not None and isinstance(categories, list):
        for place, values in zip(np.flatnonzero(mask).tolist(), categories, strict=True):
            yield place, _category_array(value for value in values if not _is_missing(value))


def _xgboost_categories(estimator: Any, count: int) -> Iterator[tuple[int, Array]]:
    """Yield the categories that XGBoost 3.1 and later store in the model."""
    booster = estimator.get_booster()
    if "c" not in (booster.feature_types or ()):
        return
    if booster.num_boosted_rounds() > MAX_XGBOOST_ROUNDS:
        return
    learner = orjson.loads(bytes(booster.save_raw("json")))["learner"]
    encoded = learner["gradient_booster"]["model"]["cats"]["enc"]
    for place, each in enumerate(encoded[:count]):
        values = each["values"]
        if "offsets" in each:
            raw, ends = bytes(value % 256 for value in values), each["offsets"]
            values = [raw[start:end].decode() for start, end in zip(ends, ends[1:], strict=False)]
        if values:
            yield place, _category_array(values)


def _category_array(values: Any) -> Array:
    items = list(values)
    array = np.array(items)
    if array.dtype.kind in "biufM" and array.ndim == 1:
        return array
    array = np.empty(len(items), object)
    array[:] = items
    return array


def input_tensors(schema: InputSchema, *, list_all: bool = False) -> tuple[TensorMetadata, ...]:
    """Return the metadata of the inputs.

    One tensor per column for an estimator that was trained on a DataFrame, or on an object array
    with strings and numbers; else one tensor for all columns. More columns than
    MAX_LISTED_COLUMNS are one tensor if all are numbers, else the first of them are listed, or
    all of them with `list_all`.
    """
    if schema.is_flat:
        only = schema.positions[0]
        parameters = {"content_type": _content_type(only)}
        return (TensorMetadata("input-0", only.datatype, (-1,), parameters),)
    if schema.columns:
        listed = _listed(schema.columns)
        if len(listed) == len(schema.columns) or {"FP64"} != _datatypes(schema.columns):
            return tuple(map(_input_tensor, schema.columns if list_all else listed))
    datatypes = _datatypes(schema.positions)
    if "BYTES" in datatypes and (len(datatypes) > 1 or schema.needs_objects):
        return tuple(_input_tensor(column) for column in _listed(schema.positions))
    datatype = datatypes.pop() if len(datatypes) == 1 else "FP64"
    parameters = {"content_type": "np"}
    return (TensorMetadata("input-0", datatype, (-1, schema.features or -1), parameters),)


def needs_dataframe(schema: InputSchema, tensors: Sequence[TensorMetadata]) -> bool:
    """Return whether a request with these inputs has to be decoded as a DataFrame."""
    return len(tensors) > 1 or (schema.has_names and len(schema.columns) == len(tensors))


def _datatypes(columns: Sequence[Column]) -> set[str]:
    return {column.datatype for column in columns}


def _listed(columns: Sequence[Column]) -> Sequence[Column]:
    """Return as many of the columns as metadata may list."""
    columns, characters = columns[:MAX_LISTED_COLUMNS], MAX_LISTED_NAME_CHARACTERS
    for place, column in enumerate(columns):
        characters -= len(column.name)
        if characters < 0:
            return columns[: max(1, place)]
    return columns


def _content_type(column: Column) -> str:
    return column.content_type if column.datatype == "BYTES" else "np"


def _input_tensor(column: Column) -> TensorMetadata:
    name = column.name.encode("utf-8", "replace").decode()  # JSON cannot carry lone surrogates
    if column.datatype == "BYTES":
        return TensorMetadata(name, "BYTES", (-1, 1), {"content_type": column.content_type})
    return TensorMetadata(name, column.datatype, (-1, 1))


# ── outputs ─────────────────────────────────────────────────────────────────────────────


def output_tensors(estimator: Any, methods: Sequence[str]) -> tuple[TensorMetadata, ...]:
    """Return the metadata of the outputs, one tensor per method; never raises.

    A length that is not known is -1. `predict_proba`, `predict_log_proba` and
    `decision_function` of a classifier carry `parameters.classes`.
    """
    return tuple(_output_tensor(estimator, name) for name in methods)


def _output_tensor(estimator: Any, name: str) -> TensorMetadata:
    parameters: dict[str, Any] = {"content_type": "np"}
    try:
        describe = _DESCRIBE_OUTPUT.get(name, _describe_unknown)
        datatype, shape, classes = describe(estimator)
    except BaseException:  # noqa: BLE001 - an estimator's attribute may raise anything
        return TensorMetadata(name, "FP64", (-1, -1), parameters)
    if datatype.startswith("BYTES:"):
        datatype, parameters["content_type"] = datatype.split(":")
    if classes is not None:
        parameters["classes"] = classes
    return TensorMetadata(name, datatype, shape, parameters)


Described = tuple[str, tuple[int, ...], list[Any] | None]  # datatype, shape, labels


def _describe_unknown(_: Any) -> Described:
    return "FP64", (-1, -1), None


def _describe_predict(estimator: Any) -> Described:
    classes = _find_classes(estimator)
    if classes is not None:
        several = isinstance(classes, list)
        first = classes[0] if several else classes
        width = len(classes) if several or _is_multilabel(estimator) else 1
        if _has_base(_deciding(estimator), "ClassifierChain"):
            return "FP64", (-1, width), None
        return _label_datatype(first), (-1, width), None
    last = _deciding(estimator)
    if _has_base(last, "SGDOneClassSVM"):
        return "INT32", (-1, 1), None
    labels = _as_array(_get(last, "labels_"), 1)
    if labels is not None and labels.dtype.kind in "iu":
        return codec.datatype(labels.dtype), (-1, 1), None
    if _is_regressor(last):
        datatype = "FP32" if _is_from(last, "xgboost") else "FP64"
        return datatype, (-1, _target_count(last, 0)), None
    is_outlier_detector = _get(last, "offset_") is not None and _get(last, "fit_predict")
    is_mixture = _has_base(last, "BaseMixture")
    if is_outlier_detector or is_mixture or _has_base(last, "ClusterMixin"):
        return "INT64", (-1, 1), None
    return "FP64", (-1, -1), None


def _describe_probabilities(estimator: Any) -> Described:
    classes = _find_classes(estimator)
    if classes is None:
        mixture = _get(_deciding(estimator), "weights_")
        components = _as_array(mixture, 1)
        return "FP64", (-1, -1 if components is None else len(components)), None
    if not isinstance(classes, list):
        return _probability_datatype(estimator), (-1, len(classes)), _labels(classes)
    labels = _labels_per_target(classes)
    if _has_base(_deciding(estimator), "ClassifierChain"):
        return "FP64", (-1, len(classes)), labels
    counts = {len(each) for each in classes}
    shape = (len(classes), -1, counts.pop()) if len(counts) == 1 else (-1, -1)
    return "FP64", shape, labels


def _probability_datatype(estimator: Any) -> str:
    return "FP32" if _is_from(_deciding(estimator), "xgboost") else "FP64"


def _describe_decision(estimator: Any) -> Described:
    classes = _find_classes(estimator)
    if classes is None:
        return "FP64", (-1, 1), None
    if isinstance(classes, list):
        return "FP64", (-1, len(classes)), _labels_per_target(classes)
    last, count = _deciding(estimator), len(classes)
    labels = _labels(classes)
    if count == 2 and not _is_multilabel(estimator):
        return "FP64", (-1, 1), labels
    is_support_vector = _has_base(last, "BaseSVC")
    if is_support_vector and count > 2 and _get(last, "decision_function_shape") == "ovo":
        if labels is None or count * (count - 1) // 2 > MAX_LABELS:
            return "FP64", (-1, count * (count - 1) // 2), None
        pairs = [[one, other] for i, one in enumerate(labels) for other in labels[i + 1 :]]
        return "FP64", (-1, len(pairs)), pairs
    return "FP64", (-1, count), labels


def _describe_scores(_: Any) -> Described:
    return "FP64", (-1, 1), None


def _describe_transform(estimator: Any) -> Described:
    last = _last_transformer(estimator)
    flatten, inner = _get(last, "flatten_transform"), _get(last, "estimators_")
    if flatten is not None and isinstance(inner, list):  # of a VotingClassifier
        if _get(last, "voting") == "hard":
            return "INT64", (-1, len(inner)), None
        count = len(last.classes_)
        return "FP64", (-1, len(inner) * count) if flatten else (len(inner), -1, count), None
    width = _transform_width(estimator, 0)
    return _transform_datatype(estimator, 0), (-1, -1 if width is None else width), None


def _describe_apply(estimator: Any) -> Described:
    last = _deciding(estimator)
    trees = _get(last, "estimators_")
    if isinstance(trees, list):
        return "INT64", (-1, len(trees)), None
    return ("INT64", (-1, 1), None) if _get(last, "tree_") is not None else _describe_unknown(last)


def _describe_inverse(estimator: Any) -> Described:
    return "FP64", (-1, _find(estimator, _count_of) or -1), None


_DESCRIBE_OUTPUT: Final[dict[str, Callable[[Any], Described]]] = {
    "predict": _describe_predict,
    "predict_proba": _describe_probabilities,
    "predict_log_proba": _describe_probabilities,
    "predict_joint_log_proba": _describe_probabilities,
    "decision_function": _describe_decision,
    "score_samples": _describe_scores,
    "transform": _describe_transform,
    "apply": _describe_apply,
    "inverse_transform": _describe_inverse,
}


def _deciding(estimator: Any) -> Any:
    """Return the estimator whose method is called in the end, through pipelines and searches."""
    for _ in range(MAX_DEPTH):
        steps = _pairs(_get(estimator, "steps"))
        inner = steps[-1][1] if steps else None
        for name in ("best_estimator_", "estimator_"):
            if inner is None and not _has_base(estimator, "SelectFromModel"):
                inner = _fitted_child(estimator, name)
        if inner is None and _has_base(estimator, "FrozenEstimator"):
            inner = _get(estimator, "estimator")
        if inner is None or _is_passthrough(inner):
            break
        estimator = inner
    return estimator


def _find_classes(estimator: Any) -> Array | list[Array] | None:
    """Return the labels of a classifier, a list of them for several targets."""
    classes = _get(estimator, "classes_")
    if classes is None:
        classes = _get(_deciding(estimator), "classes_")
    if isinstance(classes, np.ndarray) and classes.ndim == 1 and len(classes):
        return classes
    if isinstance(classes, list) and classes:
        several = [each for each in classes if isinstance(each, np.ndarray) and each.ndim == 1]
        if len(several) == len(classes):
            return several
        return None if several else _object_array(classes)  # a list of labels, as CatBoost has
    return None


def _object_array(items: Sequence[Any]) -> Array:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _is_multilabel(estimator: Any) -> bool:
    """Return whether a classifier with one list of labels predicts a column for each of them."""
    for each in (estimator, _deciding(estimator)):
        if _get(each, "multilabel_") is True:
            return True
        for name in ("_label_binarizer", "label_binarizer_"):
            if str(_get(_get(each, name), "y_type_")).startswith("multilabel"):
                return True
    return False


def _label_datatype(classes: Array) -> str:
    """Return the datatype of these labels in a response."""
    if classes.dtype.kind == "M":
        return "BYTES:datetime"
    if classes.dtype.kind in "biuf":
        return codec.datatype(classes.dtype)
    if classes.dtype.kind == "O":
        kinds = set(map(type, classes.tolist()))
        if kinds == {bool}:
            return "BOOL"
        if kinds and kinds <= {int, float}:
            return "FP64" if float in kinds else "INT64"
    return "BYTES"


def _labels(classes: Array) -> list[Any] | None:
    """Return the labels as JSON values; None if they are too many to be listed."""
    if len(classes) > MAX_LABELS:
        return None
    labels = [_json_label(each) for each in classes.tolist()]
    characters = sum(len(each) if isinstance(each, str) else 8 for each in labels)
    return labels if characters <= MAX_LABEL_CHARACTERS else None


def _labels_per_target(classes: Sequence[Array]) -> list[Any] | None:
    if sum(map(len, classes)) > MAX_LABELS:
        return None
    labels = [_labels(each) for each in classes]
    characters = sum(len(str(each)) for each in labels)
    return None if None in labels or characters > 2 * MAX_LABEL_CHARACTERS else labels


def _json_label(label: Any) -> Any:
    """Return a label as JSON has it; what JSON has no value for as a string."""
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, bool) or (isinstance(label, int) and -(2**63) <= label < 2**64):
        return label if type(label) in (bool, int) else int(label)
    if isinstance(label, float) and math.isfinite(label):
        return float(label)
    if isinstance(label, bytes):
        return label.decode("utf-8", "backslashreplace")
    if isinstance(label, date):
        return label.isoformat()
    return str(label).encode("utf-8", "replace").decode()


def _is_regressor(estimator: Any) -> bool:
    if _get(estimator, "_estimator_type") == "regressor" or _has_base(estimator, "RegressorMixin"):
        return True
    tags = _get(estimator, "__sklearn_tags__")
    return callable(tags) and _get(tags(), "estimator_type") == "regressor"


def _target_count(estimator: Any, depth: int) -> int:
    """Return how many values a regressor predicts per row; -1 if it cannot be told."""
    if depth > MAX_DEPTH:
        return -1
    estimator = _deciding(estimator)
    for name in ("n_outputs_", "_training_dim"):
        count = _get(estimator, name)
        if name == "n_outputs_" and _is_whole(count):
            return int(count)
        if name == "_training_dim" and count == 1:  # of a TransformedTargetRegressor
            return 1
    for name in ("regressor_", "final_estimator_"):
        inner = _get(estimator, name)
        if inner is not None:
            return _target_count(inner, depth + 1)
    if _has_base(estimator, "MultiOutputRegressor", "RegressorChain"):
        return len(_get(estimator, "estimators_"))
    coefficients = _as_array(_get(estimator, "coef_"), 2)
    if coefficients is not None:
        return len(coefficients)
    columns = ["_y", "y_train_"]
    if _get(estimator, "support_") is None:  # of a support vector machine, other coefficients
        columns.append("dual_coef_")
    for name in columns:
        targets = _as_array(_get(estimator, name), 2)
        if targets is not None:
            return int(targets.shape[1])
    return 1 if _is_from(estimator, "sklearn", "lightgbm", "xgboost") else -1


def _last_transformer(estimator: Any) -> Any:
    for _ in range(MAX_DEPTH):
        steps = [step[1] for step in _pairs(_get(estimator, "steps"))]
        inner = next((step for step in reversed(steps) if not _is_passthrough(step)), None)
        if inner is None:
            inner = _get(estimator, "best_estimator_")
        if inner is None and _has_base(estimator, "FrozenEstimator"):
            inner = _get(estimator, "estimator")
        if inner is None:
            break
        estimator = inner
    return estimator


def _transform_width(estimator: Any, depth: int) -> int | None:
    """Return how many columns `transform` gives; None if it cannot be told at little cost."""
    last = _last_transformer(estimator)
    parts = _pairs(_get(last, "transformer_list"))
    if depth > MAX_DEPTH:
        return None
    if _has_base(last, "IsotonicRegression"):
        return 1
    if _is_passthrough(last) or (_is_function_transformer(last) and _get(last, "func") is None):
        return _count_of(last)
    if parts:
        widths = [
            _count_of(last) if _is_passthrough(part[1]) else _transform_width(part[1], depth + 1)
            for part in parts
            if part[1] != "drop"
        ]
        known = [width for width in widths if width is not None]
        return sum(known) if len(known) == len(widths) else None
    outputs = _get(last, "output_indices_")
    if isinstance(outputs, Mapping):
        return max((int(part.stop) for part in outputs.values()), default=0)
    for name in ("vocabulary_", "feature_names_", "_n_features_outs"):
        found = _get(last, name)
        if isinstance(found, Mapping | list):
            return sum(found) if name == "_n_features_outs" else len(found)
    if _get(last, "alternate_sign") is not None:  # a hasher's parameter, not what it has learned
        return int(_get(last, "n_features"))
    for name in ("n_output_features_", "n_features_out_", "_n_features_out"):
        count = _get(last, name)
        if _is_whole(count):
            return int(count)
    return _width_by_names(last)


def _width_by_names(estimator: Any) -> int | None:
    """Return the number of output names, if there cannot be very many."""
    count = _count_of(estimator)
    name_outputs = _get(estimator, "get_feature_names_out")
    if count is None or count > MAX_LISTED_COLUMNS or not callable(name_outputs):
        classes = _as_array(_get(estimator, "classes_"), 1)
        if classes is None or count is not None:
            return None
        if _get(estimator, "neg_label") is None or len(classes) != 2:
            return len(classes) if _get(estimator, "sparse_output") is not None else 1
        return 1
    try:
        return len(name_outputs())
    except BaseException:  # noqa: BLE001 - an estimator may raise anything
        return None


def _transform_datatype(estimator: Any, depth: int) -> str:
    """Return the datatype of what `transform` gives for numbers as FP64 and strings as BYTES."""
    last = _last_transformer(estimator)
    if depth > MAX_DEPTH:
        return "FP64"
    parts = _pairs(_get(last, "transformer_list")) or _pairs(_get(last, "transformers_"))
    if parts:
        kept = [part[1] for part in parts if not isinstance(part[1], str)]
        found = {_transform_datatype(part, depth + 1) for part in kept}
        return found.pop() if len(found) == 1 and len(kept) == len(parts) else "FP64"
    if _has_base(last, "MissingIndicator"):
        return "BOOL"
    if _get(last, "classes_") is not None and _count_of(last) is None:
        return "INT64"
    statistics = _as_array(_get(last, "statistics_"), 1)
    if statistics is not None and statistics.dtype.kind == "O":
        return "BYTES"
    dtype = _get(last, "dtype")
    return codec.datatype(np.dtype(dtype)) if dtype is not None else "FP64"
