"""What a model returns: the datatype, shape and labels of each output, read from the estimator.

Imported when the metadata is requested, since a prediction needs none of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, Final

import numpy as np
import orjson

from mlserverless import codec
from mlserverless.estimators import (
    MAX_DEPTH,
    Array,
    as_array,
    as_list,
    count_of,
    find,
    fitted_child,
    get,
    has_base,
    is_from,
    is_function_transformer,
    is_passthrough,
    is_whole,
    pairs,
)
from mlserverless.protocol import TensorMetadata

MAX_LABELS: Final = 10_000  # class labels of one output
MAX_LABEL_CHARACTERS: Final = 200_000  # of all these labels
MAX_COUNTED_FEATURES: Final = 10_000  # up to which get_feature_names_out is called

_KNOWN_PACKAGES: Final = ("sklearn", "lightgbm", "xgboost")  # whose classifiers have classes_


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
        first = classes[0] if isinstance(classes, list) else classes
        several = isinstance(classes, list) or _is_multilabel(estimator)
        width = len(classes) if several else 1
        if has_base(_find_final_estimator(estimator), "ClassifierChain"):
            return "FP64", (-1, width), None
        return _label_datatype(first), (-1, width), None
    last = _find_final_estimator(estimator)
    if has_base(last, "SGDOneClassSVM"):
        return "INT32", (-1, 1), None
    labels = as_array(get(last, "labels_"), 1)
    if labels is not None and labels.dtype.kind in "iu":
        return codec.datatype(labels.dtype), (-1, 1), None
    if _is_regressor(last):
        datatype = "FP32" if is_from(last, "xgboost") else "FP64"
        return datatype, (-1, _target_count(last, 0)), None
    is_outlier_detector = get(last, "offset_") is not None and get(last, "fit_predict")
    is_mixture = has_base(last, "BaseMixture")
    if is_outlier_detector or is_mixture or has_base(last, "ClusterMixin"):
        return "INT64", (-1, 1), None
    return "FP64", (-1, -1), None


def _describe_probabilities(estimator: Any) -> Described:
    classes = _find_classes(estimator)
    if classes is None:
        mixture = get(_find_final_estimator(estimator), "weights_")
        components = as_array(mixture, 1)
        return "FP64", (-1, -1 if components is None else len(components)), None
    if not isinstance(classes, list):
        return _probability_datatype(estimator), (-1, len(classes)), _labels(classes)
    labels = _labels_per_target(classes)
    if has_base(_find_final_estimator(estimator), "ClassifierChain"):
        return "FP64", (-1, len(classes)), labels
    counts = {len(each) for each in classes}
    shape = (len(classes), -1, counts.pop()) if len(counts) == 1 else (-1, -1)
    return "FP64", shape, labels


def _probability_datatype(estimator: Any) -> str:
    return "FP32" if is_from(_find_final_estimator(estimator), "xgboost") else "FP64"


def _describe_decision(estimator: Any) -> Described:
    classes = _find_classes(estimator)
    if classes is None:
        return "FP64", (-1, 1), None
    if isinstance(classes, list):
        return "FP64", (-1, len(classes)), _labels_per_target(classes)
    last, count = _find_final_estimator(estimator), len(classes)
    labels = _labels(classes)
    if count == 2 and not _is_multilabel(estimator):
        return "FP64", (-1, 1), labels
    is_support_vector = has_base(last, "BaseSVC")
    if is_support_vector and count > 2 and get(last, "decision_function_shape") == "ovo":
        if labels is None or count * (count - 1) // 2 > MAX_LABELS:
            return "FP64", (-1, count * (count - 1) // 2), None
        pairs = [[one, other] for i, one in enumerate(labels) for other in labels[i + 1 :]]
        return "FP64", (-1, len(pairs)), pairs
    return "FP64", (-1, count), labels


def _describe_scores(_: Any) -> Described:
    return "FP64", (-1, 1), None


def _describe_transform(estimator: Any) -> Described:
    last = _last_transformer(estimator)
    flatten, inner = get(last, "flatten_transform"), get(last, "estimators_")
    if flatten is not None and isinstance(inner, list):  # of a VotingClassifier
        if get(last, "voting") == "hard":
            return "INT64", (-1, len(inner)), None
        count = len(last.classes_)
        return "FP64", (-1, len(inner) * count) if flatten else (len(inner), -1, count), None
    width = _transform_width(estimator, 0)
    return _transform_datatype(estimator, 0), (-1, -1 if width is None else width), None


def _describe_apply(estimator: Any) -> Described:
    last = _find_final_estimator(estimator)
    trees = get(last, "estimators_")
    if isinstance(trees, list):
        return "INT64", (-1, len(trees)), None
    return ("INT64", (-1, 1), None) if get(last, "tree_") is not None else _describe_unknown(last)


def _describe_inverse(estimator: Any) -> Described:
    return "FP64", (-1, find(estimator, count_of) or -1), None


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


def _find_final_estimator(estimator: Any) -> Any:
    """Return the estimator whose method is called in the end, through pipelines and searches."""
    for _ in range(MAX_DEPTH):
        steps = pairs(get(estimator, "steps"))
        inner = steps[-1][1] if steps else None
        for name in ("best_estimator_", "estimator_"):
            if inner is None and not has_base(estimator, "SelectFromModel"):
                inner = fitted_child(estimator, name)
        if inner is None and has_base(estimator, "FrozenEstimator"):
            inner = get(estimator, "estimator")
        if inner is None or is_passthrough(inner):
            break
        estimator = inner
    return estimator


def _find_classes(estimator: Any) -> Array | list[Array] | None:
    """Return the labels of a classifier, a list of them for several targets."""
    classes = get(estimator, "classes_")
    if classes is None:
        classes = get(_find_final_estimator(estimator), "classes_")
    if classes is None and not is_from(_find_final_estimator(estimator), *_KNOWN_PACKAGES):
        # a user's own class around a classifier
        classes = find(_find_final_estimator(estimator), lambda each: get(each, "classes_"))
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
    for each in (estimator, _find_final_estimator(estimator)):
        if get(each, "multilabel_") is True:
            return True
        for name in ("_label_binarizer", "label_binarizer_"):
            if str(get(get(each, name), "y_type_")).startswith("multilabel"):
                return True
    return False


def _label_datatype(classes: Array) -> str:
    """Return the datatype of these labels in a response."""
    if classes.dtype.kind == "M":
        return "BYTES:datetime"
    if classes.dtype.kind in "biuf":
        return codec.datatype(classes.dtype)
    if classes.dtype.kind == "O":
        types = set(map(type, classes.tolist()))
        if types == {bool}:
            return "BOOL"
        if types and types <= {int, float}:
            return "FP64" if float in types else "INT64"
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
    # never by __sklearn_tags__: a pipeline's takes exponential time in the depth of its nesting
    return get(estimator, "_estimator_type") == "regressor" or has_base(estimator, "RegressorMixin")


def _target_count(estimator: Any, depth: int) -> int:
    """Return how many values a regressor predicts per row; -1 if it is not known."""
    if depth > MAX_DEPTH:
        return -1
    estimator = _find_final_estimator(estimator)
    count = get(estimator, "n_outputs_")
    if is_whole(count):
        return int(count)
    if get(estimator, "_training_dim") == 1:  # of a TransformedTargetRegressor
        return 1
    for name in ("regressor_", "final_estimator_"):
        inner = get(estimator, name)
        if inner is not None:
            return _target_count(inner, depth + 1)
    if has_base(estimator, "MultiOutputRegressor", "RegressorChain"):
        return len(get(estimator, "estimators_"))
    if is_from(estimator, "xgboost"):
        learner = orjson.loads(estimator.get_booster().save_config())["learner"]
        return int(learner["learner_model_param"]["num_target"])
    learned = _targets_in_arrays(estimator)
    if learned is None:
        return 1 if is_from(estimator, "sklearn", "lightgbm") else -1
    return learned


def _targets_in_arrays(estimator: Any) -> int | None:
    """Return the number of targets by what a regressor has learned, if that has two dimensions."""
    coefficients = as_array(get(estimator, "coef_"), 2)
    if coefficients is not None:
        return len(coefficients)
    is_support_vector = get(estimator, "support_") is not None
    for name in ("_y", "y_train_") if is_support_vector else ("_y", "y_train_", "dual_coef_"):
        targets = as_array(get(estimator, name), 2)
        if targets is not None:
            return int(targets.shape[1])
    return None


def _last_transformer(estimator: Any) -> Any:
    for _ in range(MAX_DEPTH):
        steps = [step[1] for step in pairs(get(estimator, "steps"))]
        inner = next((step for step in reversed(steps) if not is_passthrough(step)), None)
        if inner is None:
            inner = get(estimator, "best_estimator_")
        if inner is None and has_base(estimator, "FrozenEstimator"):
            inner = get(estimator, "estimator")
        if inner is None:
            break
        estimator = inner
    return estimator


def _transform_width(estimator: Any, depth: int) -> int | None:
    """Return how many columns `transform` gives; None if it is not known without a costly call."""
    last = _last_transformer(estimator)
    parts = pairs(get(last, "transformer_list"))
    if depth > MAX_DEPTH:
        return None
    if has_base(last, "IsotonicRegression"):
        return 1
    if is_passthrough(last) or (is_function_transformer(last) and get(last, "func") is None):
        return count_of(last)
    if parts:
        widths = [
            count_of(last) if is_passthrough(part[1]) else _transform_width(part[1], depth + 1)
            for part in parts
            if part[1] != "drop"
        ]
        known = [width for width in widths if width is not None]
        return sum(known) if len(known) == len(widths) else None
    return _learned_width(last)


def _learned_width(last: Any) -> int | None:
    outputs = get(last, "output_indices_")
    if isinstance(outputs, Mapping):
        return max((int(part.stop) for part in outputs.values()), default=0)
    for name in ("vocabulary_", "feature_names_", "_n_features_outs"):
        found = get(last, name)
        if isinstance(found, Mapping | list):
            return sum(found) if name == "_n_features_outs" else len(found)
    if get(last, "alternate_sign") is not None:  # a hasher's parameter, not what it has learned
        return int(get(last, "n_features"))
    for name in ("n_output_features_", "n_features_out_", "_n_features_out"):
        count = get(last, name)
        if is_whole(count):
            return int(count)
    return _width_by_names(last)


def _width_by_names(estimator: Any) -> int | None:
    """Return the number of output names, if there cannot be very many."""
    if _is_label_encoder(estimator):
        is_one_column = get(estimator, "sparse_output") is None or len(estimator.classes_) == 2
        return 1 if is_one_column else len(estimator.classes_)
    count = count_of(estimator)
    if count is None and get(estimator, "stack_method_") is not None:
        count = len(estimator.estimators_)
    name_outputs = get(estimator, "get_feature_names_out")
    if count is None or count > MAX_COUNTED_FEATURES or not callable(name_outputs):
        return None
    try:
        return len(name_outputs())
    except BaseException:  # noqa: BLE001 - an estimator may raise anything
        return None


def _is_label_encoder(estimator: Any) -> bool:
    """Return whether the estimator is a LabelEncoder, LabelBinarizer or MultiLabelBinarizer."""
    return has_base(estimator, "LabelEncoder", "LabelBinarizer", "MultiLabelBinarizer")


def _transform_datatype(estimator: Any, depth: int) -> str:
    """Return the datatype of what `transform` gives for numbers as FP64 and strings as BYTES."""
    last = _last_transformer(estimator)
    if depth > MAX_DEPTH:
        return "FP64"
    parts = pairs(get(last, "transformer_list")) or pairs(get(last, "transformers_"))
    if parts:
        active = [part[1] for part in parts if not isinstance(part[1], str)]
        found = {_transform_datatype(part, depth + 1) for part in active}
        return found.pop() if len(found) == 1 and len(active) == len(parts) else "FP64"
    if has_base(last, "MissingIndicator"):
        return "BOOL"
    if _is_label_encoder(last):
        return "INT64"
    methods = as_list(get(last, "stack_method_"))
    if methods and set(methods) == {"predict"} and get(last, "classes_") is not None:
        return "FP64" if get(last, "passthrough") else "INT64"  # positions in classes_
    statistics = as_array(get(last, "statistics_"), 1)
    if statistics is not None and statistics.dtype.kind == "O":
        return "BYTES"
    dtype = get(last, "dtype")
    return codec.datatype(np.dtype(dtype)) if dtype is not None else "FP64"
