"""What a fitted estimator records about the columns of its training data.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any, Final

import numpy as np
import orjson

from mlserverless.estimators import (
    MAX_DEPTH,
    Array,
    as_array,
    as_list,
    children,
    count_of,
    find,
    get,
    has_base,
    is_from,
    is_function_transformer,
    is_missing,
    is_passthrough,
    is_whole,
    names_of,
    pairs,
)
from mlserverless.protocol import TensorMetadata

MISSING: Final = float("nan")  # what pandas gives for a missing string

MAX_VISITS: Final = 1_000  # estimators that one description looks at
MAX_COLUMN_VISITS: Final = 2_000_000  # columns, summed over these estimators
MAX_SECONDS: Final = 2.0  # after which no further estimator is looked at
MAX_LISTED_COLUMNS: Final = 10_000  # tensors in the metadata of one model
MAX_LISTED_NAME_CHARACTERS: Final = 1_000_000  # of all these tensors' names
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
    and `positions` describes them (empty beyond MAX_LISTED_COLUMNS); `needs_objects` is True if a
    numpy text array is refused, since the estimator takes strings in object columns only.
    `is_flat` is True if it takes one value per row, as LabelEncoder does.
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
    names = find(estimator, names_of)
    if names is None and find(estimator, count_of) is None:
        names = _selected_names(estimator)
    count = len(names) if names is not None else find(estimator, count_of)
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
    """Walks through nested estimators and notes what each records about the input's columns."""

    def __init__(self, names: list[str] | None) -> None:
        self.places = {name: place for place, name in enumerate(names or ())}
        self.facts: dict[int, _Facts] = {}
        self.whole: Column | None = None
        self.needs_objects = False
        self.visits = MAX_VISITS
        self.column_visits = MAX_COLUMN_VISITS
        self.end = time.monotonic() + MAX_SECONDS
        self.path: set[int] = set()
        self.selected: _Sources | None = None  # what a step hands to a vectorizer as one string

    def column(self, place: int, name: str) -> Column:
        facts = self.facts.get(place)
        if facts is None:
            return Column(name)
        datatype = facts.datatype or "FP64"
        example = _DEFAULT_EXAMPLES.get(datatype, 0) if facts.example is None else facts.example
        return Column(name, datatype, facts.missing, facts.categories, example, facts.content_type)

    def visit(self, estimator: Any, sources: _Sources | None, depth: int) -> _Sources | None:
        """Note what an estimator records about its columns; return those that it passes on.

        `sources` is None for an input that is not known to have columns. The result is None if
        nothing is known of what is passed on.
        """
        if is_passthrough(estimator):
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
        names, count = names_of(estimator), count_of(estimator)
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
        steps = pairs(get(estimator, "steps"))
        if steps:
            return self._explore_steps(steps, sources, depth)
        if sources is not None and get(estimator, "transformers_"):
            return self._explore_columns(estimator, sources, depth)
        parts = pairs(get(estimator, "transformer_list"))
        if parts:
            return self._explore_union(parts, sources, depth)
        if get(estimator, "build_analyzer") is not None:
            self._note_text(estimator, sources)
            return None
        if sources is None:
            self._note_labels(estimator)
        else:
            self._note_columns(estimator, sources, depth)
        for child, places in children(estimator):
            seen = sources
            if places is not None and sources is not None:
                seen = sources.pick(places)
            self.visit(child, seen, depth)
        return _find_passed_columns(estimator, sources)

    def _explore_steps(
        self, steps: list[tuple[Any, ...]], sources: _Sources | None, depth: int
    ) -> _Sources | None:
        is_whole = sources is None
        working = [step for step in steps if not is_passthrough(step[1])]
        for step, following in zip(working, [*working[1:], (None, None)], strict=True):
            given, sources = sources, self.visit(step[1], sources, depth)
            if given is None or sources is None or len(sources) < 2:
                pass
            elif _starts_with_vectorizer(following[1]):
                names = names_of(step[1]) or list(self.places)
                sources = self.selected = _select_text(step[1], given, names)
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

    def _explore_columns(self, estimator: Any, sources: _Sources, depth: int) -> _Sources | None:
        names = names_of(estimator)
        if names is None and len(self.places) == len(sources):
            names = list(self.places)
        outputs = get(estimator, "output_indices_")
        outputs = outputs if isinstance(outputs, Mapping) else {}
        ends = [part.stop for part in outputs.values() if isinstance(part, slice)]
        passed: list[int | None] = [None] * min(max(ends, default=0), self.column_visits)
        for entry in pairs(get(estimator, "transformers_")):
            name, part, columns = (*entry, None)[:3]
            places = _places(columns, names, len(sources))
            if places is None:  # a callable, or what another version of scikit-learn stores
                private = get(estimator, "_transformer_to_input_indices")
                places = as_list(private.get(name)) if isinstance(private, Mapping) else None
            if places is None or (isinstance(part, str) and part == "drop"):
                continue
            result = self.visit(part, sources.pick(places), depth)
            output = outputs.get(name)
            if result is not None and isinstance(output, slice):
                width = len(range(*output.indices(len(passed))))
                if width == len(result):
                    passed[output] = result
        return _Sources(passed) if passed else None

    # what one estimator records

    def _note(
        self,
        source: int | None,
        values: Any,
        rank: int,
        *,
        categories: Array | None = None,
    ) -> None:
        """Note the values that a column had in training; a higher `rank` is a better example."""
        if source is None:
            return
        found, content_type, example = _describe_values(values)
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

    def _note_number(self, source: int | None, example: Any, rank: int) -> None:
        """Note a number of a column whose values may be fractions. Fast, for 100,000 columns."""
        if source is None or source < 0:
            return
        facts = self.facts.get(source)
        if facts is None:
            facts = self.facts[source] = _Facts()
        if facts.datatype is None:
            facts.datatype = "FP64"
        if facts.datatype == "FP64" and rank > facts.rank and not isinstance(example, bool):
            facts.example, facts.rank = example, rank

    def _note_text(self, vectorizer: Any, sources: _Sources | None) -> None:
        example = _TEXT_EXAMPLE
        vocabulary = get(vectorizer, "vocabulary_")
        if isinstance(vocabulary, Mapping) and vocabulary:
            example = _encodable(str(next(iter(vocabulary)))) or example
        if sources is None:
            self.whole = self.whole or Column("input-0", "BYTES", example=example)
        elif len(sources) == 1 or sources is self.selected:
            for source in sources:
                self._note(source, [example], 3)

    def _note_labels(self, estimator: Any) -> None:
        """Note that LabelEncoder and LabelBinarizer take one label per row."""
        classes = as_array(get(estimator, "classes_"), 1)
        is_encoder = get(estimator, "inverse_transform") is not None
        if classes is None or not is_encoder or get(estimator, "predict") is not None:
            return
        found, content_type, example = _describe_values(classes)
        if found is not None and not has_base(estimator, "MultiLabelBinarizer"):
            self.whole = Column("input-0", found, example=example, content_type=content_type)

    def _note_columns(self, estimator: Any, sources: _Sources, depth: int) -> None:
        categories = get(estimator, "categories_")
        if isinstance(categories, list | tuple) and len(categories) == len(sources):
            for source, values in zip(sources, categories, strict=True):
                self._note(source, values, 4)
                if source is not None and any(value is None for value in _ends(values)):
                    self._set_missing(source)
        statistics = as_array(get(estimator, "statistics_"), 1)
        if statistics is not None and len(statistics) == len(sources):
            self._note_statistics(estimator, statistics, sources)
        for source, example in zip(
            sources, _numeric_examples(estimator, len(sources)), strict=False
        ):
            self._note_number(source, example, 2)
        preprocessor = get(estimator, "_preprocessor")  # HistGradientBoosting's encoder
        if preprocessor is not None:
            self.visit(preprocessor, sources, depth)
        for place, values in _required_categories(estimator, preprocessor, sources):
            self._note(sources[place], values, 4, categories=values)

    def _note_statistics(self, imputer: Any, statistics: Array, sources: _Sources) -> None:
        """Note what an imputer puts for a missing value, which training has seen."""
        takes_none = get(imputer, "missing_values") is None and hasattr(imputer, "missing_values")
        for source, value in zip(sources, statistics.tolist(), strict=True):
            if isinstance(value, str):
                self.needs_objects = True
                self._note(source, [value], 1)
            elif isinstance(value, int | float) and math.isfinite(value):
                self._note_number(source, value, 1)
            if takes_none and source is not None:
                self._set_missing(source)

    def _set_missing(self, source: int) -> None:
        self.facts.setdefault(source if source >= 0 else ~source, _Facts()).missing = None


def _ends(values: Any) -> tuple[Any, ...]:
    """Return the last two categories: scikit-learn sorts None and NaN behind all others."""
    array = as_array(values, 1)
    return tuple(array[-2:]) if array is not None and array.dtype.kind == "O" else ()


def _describe_values(values: Any) -> tuple[str | None, str, Any]:
    """Return the datatype, the content type and an example of the values that a column had."""
    items = as_list(values)
    present = [item for item in items or () if not is_missing(item)]
    types = {type(item) for item in present}
    if not present:
        return None, "str", None
    if any(issubclass(each, str) for each in types):
        texts = (_encodable(item) for item in present if isinstance(item, str))
        return "BYTES", "str", next((text for text in texts if text is not None), _TEXT_EXAMPLE)
    first = present[0].item() if isinstance(present[0], np.generic) else present[0]
    if all(issubclass(each, bytes) for each in types):
        return "BYTES", "base64", base64.b64encode(first).decode("ascii")
    if all(issubclass(each, date | np.datetime64) for each in types):
        moment = present[0].astype("datetime64[us]").item() if first is not present[0] else first
        return "BYTES", "datetime", moment.isoformat()
    if all(issubclass(each, bool | np.bool_) for each in types):
        return "BOOL", "str", first
    if all(issubclass(each, int | np.integer | bool | np.bool_) for each in types):
        # a missing value among whole numbers can only be sent as FP64
        is_exact = len(present) == len(items or ()) and -(2**63) <= first < 2**63
        return ("INT64" if is_exact else "FP64"), "str", first
    if all(issubclass(each, int | float | np.number) for each in types):
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
        row = as_array(get(estimator, name), 1)
        if row is not None and _is_usable(row, count):
            return [float(value) for value in row]
    for name in _LEARNED_ROWS:
        rows = as_array(get(estimator, name), 2)
        if rows is not None and len(rows) and _is_usable(rows[0], count):
            return [float(value) for value in rows[0]]
    splines = get(estimator, "bsplines_")
    if isinstance(splines, list) and len(splines) == count:
        return [float(each.t[each.k]) for each in splines]  # the first knot of the data
    edges = get(estimator, "bin_edges_")
    if isinstance(edges, np.ndarray | list) and len(edges) == count:
        return [float(each[0]) for each in edges]
    return []


def _is_usable(row: Array, count: int) -> bool:
    return row.shape == (count,) and row.dtype.kind in "iuf" and bool(np.isfinite(row).all())


def _places(columns: Any, names: list[str] | None, count: int) -> list[int] | None:
    """Return the positions that a ColumnTransformer's entry selects; None if it is not known."""
    if isinstance(columns, str):
        return [names.index(columns)] if names and columns in names else None
    if isinstance(columns, slice):
        return _slice_places(columns, names, count)
    items = [columns] if is_whole(columns) else as_list(columns)
    if items is None:
        return None
    if all(isinstance(item, bool | np.bool_) for item in items) and len(items) == count:
        return [place for place, item in enumerate(items) if item]
    if all(isinstance(item, str) for item in items):
        known = {name: place for place, name in enumerate(names or ())}
        found = [known.get(item) for item in items]
        return None if None in found else [place for place in found if place is not None]
    try:
        return [range(count)[operator.index(item)] for item in items]
    except (IndexError, TypeError):
        return None


def _slice_places(columns: slice, names: list[str] | None, count: int) -> list[int] | None:
    start, stop = columns.start, columns.stop
    if isinstance(start, str) or isinstance(stop, str):
        if not names or {each for each in (start, stop) if each is not None} - set(names):
            return None
        start = None if start is None else names.index(start)
        stop = None if stop is None else names.index(stop) + 1  # pandas includes the end
    return list(range(count)[slice(start, stop, columns.step)])


class _Marker:
    """Placeholder for the values of columns; its attributes, items and results are itself."""

    def __init__(self, places: frozenset[int]) -> None:
        self.places = places

    def __getattr__(self, name: str) -> _Marker:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, _: Any) -> _Marker:
        return self

    def __call__(self, *_: Any, **__: Any) -> _Marker:
        return self

    def __iter__(self) -> Iterator[_Marker]:
        yield self

    def __add__(self, other: Any) -> _Marker:
        return _Marker(self.places | other.places) if isinstance(other, _Marker) else self

    __radd__ = __add__


class _MarkedFrame:
    """Placeholder for a DataFrame; its columns are markers."""

    def __init__(self, names: Sequence[str]) -> None:
        self._markers = {name: _Marker(frozenset([i])) for i, name in enumerate(names)}
        self.loc = self.iloc = self
        self.columns = list(names)

    def __getattr__(self, name: str) -> _Marker:
        if name.startswith("_") or name not in self._markers:
            raise AttributeError(name)
        return self._markers[name]

    def __getitem__(self, key: Any) -> _Marker:
        key = key[-1] if isinstance(key, tuple) else key  # as in .loc[:, key]
        keys = key if isinstance(key, list) else [key]
        found = [
            list(self._markers.values())[each] if is_whole(each) else self._markers[each]
            for each in keys
        ]
        return _Marker(frozenset().union(*(marker.places for marker in found)))


class _OpenFrame:
    """Stands for a DataFrame of unknown columns; notes the names that are selected."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.loc = self

    def __getitem__(self, key: Any) -> _Marker:
        key = key[-1] if isinstance(key, tuple) else key  # as in .loc[:, key]
        keys = key if isinstance(key, list) else [key]
        if not all(isinstance(each, str) for each in keys):
            raise KeyError(key)
        self.names.update(dict.fromkeys(keys))
        return _Marker(frozenset())


def _selected_names(estimator: Any) -> list[str] | None:
    """Return the columns that a user's own selectors take, if nothing else reads the input.

    Such a selector records no names. Only running it can tell: it is called with a stand-in for
    a DataFrame, and must return columns of it. None if another estimator reads the input.
    """
    frame, waiting = _OpenFrame(), [estimator]
    for _ in range(MAX_DEPTH):
        if not waiting:
            return list(frame.names) or None
        each = waiting.pop(0)
        first = [step[1] for step in pairs(get(each, "steps")) if not is_passthrough(step[1])]
        parts = first[:1] or [part[1] for part in pairs(get(each, "transformer_list"))]
        parts = parts or [child for child, _ in children(each)]
        if not parts and not _is_selector(each, frame):
            return None
        waiting += [part for part in parts if part != "drop"]
    return None


def _is_selector(step: Any, frame: _OpenFrame) -> bool:
    if not is_function_transformer(step) and is_from(step, "sklearn"):
        return False
    try:
        return isinstance(_transform(step, frame), _Marker)
    except BaseException:  # noqa: BLE001 - a user's code may raise anything
        return False


def _transform(step: Any, rows: Any) -> Any:
    if is_function_transformer(step):
        return step.func(rows, **(get(step, "kw_args") or {}))
    return step.transform(rows)


def _starts_with_vectorizer(step: Any) -> bool:
    for _ in range(MAX_DEPTH):
        if get(step, "build_analyzer") is not None:
            return True
        inner = [each[1] for each in pairs(get(step, "steps")) if not is_passthrough(each[1])]
        if not inner:
            return False
        step = inner[0]
    return False


def _select_text(step: Any, sources: _Sources, names: Sequence[str]) -> _Sources | None:
    """Return the columns that a function, or a user's class, hands to a text vectorizer.

    The function must run to show which, so it is called with a placeholder for a DataFrame.
    """
    if len(names) != len(sources):
        return None
    frame = _MarkedFrame(names)
    result = _transform(step, frame)
    items = result.ravel().tolist() if isinstance(result, np.ndarray) else [result]
    items = result if isinstance(result, list) else items
    places = {place for each in items if isinstance(each, _Marker) for place in each.places}
    return sources.pick(sorted(places)).changed() if places else None


def _find_passed_columns(estimator: Any, sources: _Sources | None) -> _Sources | None:
    """Return the columns that a transformer without parts passes to the next step."""
    if sources is None:
        return None
    if get(estimator, "fit_resample") is not None and get(estimator, "transform") is None:
        return sources  # imbalanced-learn's samplers do nothing in a prediction
    statistics = as_array(get(estimator, "statistics_"), 1)
    if statistics is not None and get(estimator, "strategy") is not None:
        return _find_columns_of_imputer(estimator, statistics, sources)
    support = get(estimator, "get_support")
    if callable(support):
        mask = as_array(support(), 1)
        if mask is None or len(mask) != len(sources):
            return None
        return _Sources(source for source, selected in zip(sources, mask, strict=True) if selected)
    if is_function_transformer(estimator):
        return sources if get(estimator, "func") is None else sources.changed()
    return None if is_from(estimator, "sklearn") else sources.changed()


def _find_columns_of_imputer(imputer: Any, statistics: Array, sources: _Sources) -> _Sources | None:
    if len(statistics) != len(sources):
        return None
    retains_all = get(imputer, "keep_empty_features") or get(imputer, "strategy") == "constant"
    retained = [
        source
        for source, value in zip(sources, statistics.tolist(), strict=True)
        if retains_all or not is_missing(value)
    ]
    added = as_list(get(get(imputer, "indicator_"), "features_")) or []
    return _Sources((*retained, *[None] * len(added)))


def _may_pass_documents(step: Any) -> bool:
    """Return whether a step in front of a vectorizer may hand on strings, one per row."""
    if is_passthrough(step):
        return True
    if not is_function_transformer(step) and is_from(step, "sklearn"):
        return False
    try:
        _transform(step, [_TEXT_EXAMPLE])
    except AttributeError as error:
        return not isinstance(error.obj, list)  # .loc, .columns, a column's name
    except TypeError as error:
        return not str(error).startswith("list indices must be")
    except BaseException:  # noqa: BLE001 - a user's code may raise anything
        return True
    return True


def _required_categories(
    estimator: Any, preprocessor: Any, sources: _Sources
) -> Iterator[tuple[int, Array]]:
    """Yield the columns that must come as pandas `category`, with their categories."""
    if preprocessor is not None:
        if get(estimator, "categorical_features") == "from_dtype":
            yield from _histogram_categories(estimator, preprocessor)
        return
    booster = get(estimator, "booster_")
    lists = get(booster, "pandas_categorical")
    if isinstance(lists, list) and lists:
        params = get(booster, "params")
        places = params.get("categorical_column") if isinstance(params, Mapping) else None
        if isinstance(places, list) and len(places) == len(lists):
            for place, values in zip(places, lists, strict=True):
                yield place, _category_array(values)
    elif is_from(estimator, "xgboost"):
        yield from _xgboost_categories(estimator, len(sources))


def _histogram_categories(estimator: Any, preprocessor: Any) -> Iterator[tuple[int, Array]]:
    mask = as_array(get(estimator, "is_categorical_"), 1)
    encoders = get(preprocessor, "named_transformers_")
    categories = get(encoders["encoder"] if encoders is not None else None, "categories_")
    if mask is not None and isinstance(categories, list):
        for place, values in zip(np.flatnonzero(mask).tolist(), categories, strict=True):
            yield place, _category_array(value for value in values if not is_missing(value))


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
            values = [raw[start:end].decode() for start, end in pairwise(ends)]
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
        listed = _limit_columns(schema.columns)
        if len(listed) == len(schema.columns) or {"FP64"} != _datatypes(schema.columns):
            return tuple(map(_input_tensor, schema.columns if list_all else listed))
    datatypes = _datatypes(schema.positions)
    if "BYTES" in datatypes and (len(datatypes) > 1 or schema.needs_objects):
        return tuple(_input_tensor(column) for column in _limit_columns(schema.positions))
    datatype = datatypes.pop() if len(datatypes) == 1 else "FP64"
    parameters = {"content_type": "np"}
    return (TensorMetadata("input-0", datatype, (-1, schema.features or -1), parameters),)


def needs_dataframe(schema: InputSchema, tensors: Sequence[TensorMetadata]) -> bool:
    """Return whether a request with these inputs has to be decoded as a DataFrame."""
    return len(tensors) > 1 or (schema.has_names and len(schema.columns) == len(tensors))


def _datatypes(columns: Sequence[Column]) -> set[str]:
    return {column.datatype for column in columns}


def _limit_columns(columns: Sequence[Column]) -> Sequence[Column]:
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
