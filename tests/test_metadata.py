"""Metadata and docs of every estimator of scikit-learn, and of composed ones, by real requests."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from composed import (
    CATEGORIES,
    COMPOSED,
    FRAME,
    NONES,
    NUMBERS,
    ROWS,
    TABLE,
    YES_NO,
    ColumnSelector,
    boosted,
)
from conftest import put_model
from doors import Door, http_api, through
from mlserverless import estimators, examples, main, metadata, outputs, runtime, wire
from mlserverless.metadata import InputSchema, describe_inputs, input_tensors
from mlserverless.outputs import output_tensors
from mlserverless.runtime import METHODS
from mlserverless.settings import ModelSettings, Settings
from test_imports import fitted

pytestmark = pytest.mark.filterwarnings("ignore")  # scikit-learn's own, of tiny data


def open_handler(root: Path) -> Door:
    return through(main.Door(Settings(model_repository_root=str(root))), http_api)


def folder_name(name: str) -> str:
    return name.replace(" ", "-")


def example_on_the_page(handler: Door, name: str) -> Any:
    """The request that the page's form holds, and the one in the OpenAPI document."""
    page = handler("GET", f"/v2/models/{name}/docs")
    assert 200 == page.status, page.body
    document = handler("GET", f"/v2/models/{name}/docs/dataplane.json").json
    operation = document["paths"][f"/v2/models/{name}/infer"]["post"]
    example = operation["requestBody"]["content"]["application/json"].get("example")
    form = re.search(r"<textarea[^>]*>(.*)</textarea>", page.body.decode(), re.DOTALL)
    assert (example is None) == (form is None)
    if form is not None:
        text = form[1].replace("&quot;", '"').replace("&#x27;", "'").replace("&amp;", "&")
        assert example == json.loads(text)
    return example


def with_rows(example: Any, rows: int) -> Any:
    """The example with its first row several times."""
    inputs = [
        {**tensor, "shape": [rows, *tensor["shape"][1:]], "data": tensor["data"] * rows}
        for tensor in example["inputs"]
    ]
    return {**example, "inputs": inputs}


def mismatch(promised: Any, real: Any) -> bool:
    """Whether a tensor of a response is not what the metadata promised."""
    lengths = zip(promised["shape"], real["shape"], strict=False)
    return (
        promised["datatype"] != real["datatype"]
        or len(promised["shape"]) != len(real["shape"])
        or any(length not in (-1, actual) for length, actual in lengths)
    )


def check(handler: Door, name: str) -> list[Any]:
    """What of a model's metadata and docs is not as a real response has it."""
    found = handler("GET", f"/v2/models/{name}")
    assert 200 == found.status, (name, found.body)
    promised = found.json
    example = example_on_the_page(handler, name)
    if example is None:
        return ["no example"]
    assert [each["name"] for each in promised["inputs"]] == [
        each["name"] for each in example["inputs"]
    ]
    faults: list[Any] = []
    for tensor, sent in zip(promised["inputs"], example["inputs"], strict=True):
        if len(sent["data"]) != math.prod(sent["shape"]) or None in sent["data"]:
            faults.append(("values", sent))
        if (tensor["datatype"] == "BYTES") != all(isinstance(each, str) for each in sent["data"]):
            faults.append(("strings", sent))
    response = handler("POST", f"/v2/models/{name}/infer", json.dumps(example).encode())
    assert 200 == response.status, (name, response.body)
    for output in promised["outputs"]:
        request = {**with_rows(example, 3), "outputs": [{"name": output["name"]}]}
        response = handler("POST", f"/v2/models/{name}/infer", json.dumps(request).encode())
        if response.status != 200:
            faults.append((output["name"], response.status))
            continue
        faults += [(output, each) for each in response.json["outputs"] if mismatch(output, each)]
        classes = output.get("parameters", {}).get("classes")
        width = output["shape"][-1]
        if classes is not None and len(output["shape"]) == 2 and width > 1:
            assert width == len(classes), (name, output)
    return faults


# What scikit-learn itself does not do, or what rows of numbers and strings cannot carry.
EXPECTED_FAULTS = {
    "FeatureHasher-0",  # takes dictionaries
    "PatchExtractor-0",  # takes images and returns other numbers of them
    "ClassifierChain-0",  # refuses probabilities of three labels once it is fitted
    "HashingVectorizer-0",  # three rows of 2^20 columns are more than Lambda carries
}


@pytest.fixture(scope="module")
def estimators_of_sklearn(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("sklearn")
    known = {}
    with threadpool_limits(1):  # BLAS threads wait for each other on a busy machine
        found = fitted()
    for name, (estimator, _) in found.items():
        if any(callable(getattr(estimator, method, None)) for method in METHODS):
            put_model(root, name, estimator)
            known[name] = estimator
    return known, open_handler(root)


def test_every_estimator_of_scikit_learn_is_as_its_metadata_and_its_docs_say(
    estimators_of_sklearn: Any,
) -> None:
    known, handler = estimators_of_sklearn
    assert len(known) > 180
    faults = {name: check(handler, name) for name in known}
    wrong = {name: each for name, each in faults.items() if each and name not in EXPECTED_FAULTS}
    assert {} == wrong
    assert all(faults[name] for name in EXPECTED_FAULTS)


def test_every_classifier_of_scikit_learn_lists_its_labels(estimators_of_sklearn: Any) -> None:
    known, handler = estimators_of_sklearn
    listed = 0
    for name, estimator in known.items():
        classes = getattr(estimator, "classes_", None)
        if not isinstance(classes, np.ndarray):
            continue
        for output in handler("GET", f"/v2/models/{name}").json["outputs"]:
            if output["name"] in ("predict_proba", "predict_log_proba", "decision_function"):
                assert classes.tolist() == output["parameters"]["classes"], name
                listed += 1
            else:
                assert "classes" not in output["parameters"]
    assert listed > 80


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Door:
    root = tmp_path_factory.mktemp("composed")
    with threadpool_limits(1):
        for name, (fit, _) in COMPOSED.items():
            put_model(root, folder_name(name), fit())
    return open_handler(root)


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composed_estimator_is_as_its_metadata_and_its_docs_say(
    composed: Door, name: str
) -> None:
    assert [] == check(composed, folder_name(name))
    inputs = composed("GET", f"/v2/models/{folder_name(name)}").json["inputs"]
    _, strings = COMPOSED[name]
    assert strings == {each["name"] for each in inputs if each["datatype"] == "BYTES"}
    for tensor in example_on_the_page(composed, folder_name(name))["inputs"]:
        if tensor["name"] in ("city", "grade"):
            assert set(tensor["data"]) <= {*FRAME[tensor["name"]], "oslo"}  # "oslo": a token


# ── inputs ──────────────────────────────────────────────────────────────────────────────


def columns_of(estimator: Any) -> dict[str, Any]:
    return {column.name: column for column in describe_inputs(estimator).columns}


def test_numeric_categories_keep_a_number_as_their_datatype() -> None:
    table = FRAME[["age", "visits", "member"]]
    columns = columns_of(OneHotEncoder().fit(table))
    assert ["FP64", "INT64", "BOOL"] == [column.datatype for column in columns.values()]
    assert [20.5, 1, False] == [column.example for column in columns.values()]


def test_the_missing_value_is_the_one_that_training_had() -> None:
    encoder = OneHotEncoder()
    assert columns_of(encoder.fit(NONES[["city"]]))["city"].missing is None
    gaps = FRAME[["city"]].astype(object)
    gaps.loc[0, "city"] = np.nan
    assert math.isnan(columns_of(encoder.fit(gaps))["city"].missing)
    imputer = SimpleImputer(strategy="most_frequent", missing_values=None)
    assert columns_of(imputer.fit(NONES[["city"]]))["city"].missing is None
    assert math.isnan(columns_of(boosted().fit(CATEGORIES, YES_NO))["city"].missing)


def test_categories_are_given_where_the_estimator_was_trained_on_the_category_dtype() -> None:
    columns = columns_of(boosted().fit(CATEGORIES, YES_NO))
    assert columns["age"].categories is None
    assert ["Bern", "Oslo", "Rome"] == columns["city"].categories.tolist()
    strings = columns_of(boosted(categorical_features=["city"]).fit(TABLE, YES_NO))
    assert strings["city"].categories is None


class Boosters:
    """What LightGBM and XGBoost store, under their own module names."""

    LightGBM = type("LGBMClassifier", (BaseEstimator,), {"__module__": "lightgbm.sklearn"})
    XGBoost = type("XGBClassifier", (BaseEstimator,), {"__module__": "xgboost.sklearn"})


def test_lightgbms_category_columns_have_the_categories_of_its_booster() -> None:
    model = Boosters.LightGBM()
    model.feature_names_in_ = np.array(["age", "city", "size"], object)
    params = {"categorical_column": [1, 2]}
    model.booster_ = SimpleNamespace(pandas_categorical=[["b", "a"], [2, 1]], params=params)
    columns = columns_of(model)
    assert ["FP64", "BYTES", "INT64"] == [each.datatype for each in columns.values()]
    assert ["b", "a"] == columns["city"].categories.tolist()
    assert ["b", 2] == [columns["city"].example, columns["size"].example]
    model.feature_names_in_ = ["Column_0", "Column_1"]
    assert not describe_inputs(model).has_names


@pytest.mark.parametrize("rounds", [1, metadata.MAX_XGBOOST_ROUNDS + 1])
def test_xgboosts_category_columns_have_the_categories_of_its_model(rounds: int) -> None:
    encoded = [
        {"offsets": [], "values": []},
        {"offsets": [0, 2, 3], "values": [195 - 256, 182 - 256, 97]},
        {"type": 15, "values": [2, 1]},
    ]
    saved = {"learner": {"gradient_booster": {"model": {"cats": {"enc": encoded}}}}}
    booster = SimpleNamespace(
        feature_types=["float", "c", "c"],
        num_boosted_rounds=lambda: rounds,
        save_raw=lambda _: bytearray(json.dumps(saved).encode()),
    )
    model = Boosters.XGBoost()
    model.get_booster = lambda: booster
    model.feature_names_in_ = np.array(["age", "city", "size"], object)
    columns = columns_of(model)
    if rounds > 1:  # too large to be serialized for its categories
        assert {"FP64"} == {each.datatype for each in columns.values()}
        return
    assert ["FP64", "BYTES", "INT64"] == [each.datatype for each in columns.values()]
    assert ["ö", "a"] == columns["city"].categories.tolist()
    booster.save_config = lambda: '{"learner": {"learner_model_param": {"num_target": "2"}}}'
    model._estimator_type = "regressor"  # noqa: SLF001 - scikit-learn before 1.6 has this name
    (tensor,) = output_tensors(model, ["predict"])
    assert ("FP32", (-1, 2)) == (tensor.datatype, tensor.shape)
    booster.feature_types = ["float"] * 3
    assert {"FP64"} == {each.datatype for each in columns_of(model).values()}


def test_bytes_and_dates_as_categories_have_the_content_type_that_decodes_them() -> None:
    encoder = OneHotEncoder().fit(np.array([[b"a"], [b"b"]], object))
    (column,) = describe_inputs(encoder).positions
    assert ("BYTES", "base64", "YQ==") == (column.datatype, column.content_type, column.example)
    moments = pd.DataFrame({"day": pd.to_datetime(["2026-01-02", "2026-03-04"])})
    (column,) = describe_inputs(OneHotEncoder().fit(moments)).columns
    assert ("datetime", "2026-01-02T00:00:00") == (column.content_type, column.example)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", None], ("BYTES", "a")),
        (["\ud800", "b"], ("BYTES", "b")),
        (["\ud800"], ("BYTES", "text")),
        ([None, float("nan")], (None, None)),
        ([True, False], ("BOOL", True)),
        ([3, None], ("FP64", 3)),
        ([2**70], ("FP64", 2**70)),
        ([float("inf")], ("FP64", 0)),
        ([np.datetime64("2026-01-02")], ("BYTES", "2026-01-02T00:00:00")),
        ([datetime(2026, 1, 2)], ("BYTES", "2026-01-02T00:00:00")),  # noqa: DTZ001 - as pandas
        ([Decimal(1)], (None, None)),
        ([1, 2.5], ("FP64", 1)),
        ([1, "a"], ("BYTES", "a")),
    ],
)
def test_the_values_of_a_column_decide_its_datatype_and_its_example(
    values: list[Any], expected: tuple[Any, Any]
) -> None:
    array = np.empty(len(values), object)
    array[:] = values
    column = SimpleNamespace(feature_names_in_=["x"], categories_=[array])
    (described,) = describe_inputs(column).columns
    datatype, example = expected
    assert (datatype or "FP64", example or 0) == (described.datatype, described.example)


class OldColumns(BaseEstimator):
    """A column transformer as another version may leave it."""

    def __init__(self, columns: Any, **attributes: Any) -> None:
        self.feature_names_in_ = np.array(["age", "city"], object)
        self.n_features_in_ = 2
        encoder = SimpleNamespace(categories_=[np.array(["a"], object)])
        self.transformers_ = [("c", encoder, columns), ("d", "drop", [0])]
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    "columns",
    [
        "city", ["city"], 1, [1], -1, np.array([1]), [False, True], np.array([False, True]),
        slice(1, None), slice("city", None), slice("city", "city"), pd.Index(["city"]),
        pd.Series([False, True]), np.array(["city"]),
    ],
)  # fmt: skip
def test_columns_are_found_however_they_were_given(columns: Any) -> None:
    found = columns_of(OldColumns(columns))
    assert ["FP64", "BYTES"] == [column.datatype for column in found.values()]


@pytest.mark.parametrize("columns", [len, {"city"}, "town", ["town"], slice("town", None), 7, [9]])
def test_columns_of_an_unknown_form_are_numbers_or_read_from_the_attribute_that_fit_left(
    columns: Any,
) -> None:
    found = columns_of(OldColumns(columns))
    assert ["FP64", "FP64"] == [column.datatype for column in found.values()]
    found = columns_of(OldColumns(columns, _transformer_to_input_indices={"c": [1]}))
    assert ["FP64", "BYTES"] == [column.datatype for column in found.values()]


def test_a_function_that_changes_columns_keeps_those_of_its_names() -> None:
    def widen(frame: Any) -> Any:
        return frame.assign(young=frame["age"] < 23)[["young", "city", "age"]]

    columns = make_column_transformer((OneHotEncoder(), ["city", "young"]), remainder="drop")
    pipeline = make_pipeline(FunctionTransformer(widen), columns).fit(TABLE)
    datatypes = [column.datatype for column in describe_inputs(pipeline).columns]
    assert ["FP64", "FP64", "BYTES"] == datatypes


def test_an_imputer_passes_its_columns_on_without_those_that_were_empty() -> None:
    table = pd.DataFrame({"empty": [np.nan] * 4, "city": ["a", "b", None, "a"]}, dtype=object)
    imputer = SimpleImputer(strategy="most_frequent", add_indicator=True)
    pipeline = make_pipeline(imputer, OneHotEncoder()).fit(table)
    columns = columns_of(pipeline)
    assert ["FP64", "BYTES"] == [column.datatype for column in columns.values()]
    assert "a" == columns["city"].example


def test_samplers_are_skipped() -> None:
    class Sampler(BaseEstimator):
        def fit_resample(self) -> None: ...

    encoder = OneHotEncoder().fit(FRAME[["city"]])
    steps = [("sample", Sampler()), ("encode", encoder)]
    wrapped = SimpleNamespace(feature_names_in_=["city"], steps=steps)
    assert "BYTES" == describe_inputs(wrapped).columns[0].datatype


class Hostile:
    """Raises at every attribute, or gives itself."""

    def __init__(self, stop: type[BaseException] | None) -> None:
        object.__setattr__(self, "stop", stop)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        stop = object.__getattribute__(self, "stop")
        if stop is not None:
            raise stop
        return self


def cyclic() -> Any:
    one, other = Pipeline([("x", None)]), FeatureUnion([("y", None)])
    one.steps = [("x", other), ("z", one)]
    other.transformer_list = [("y", one), ("w", other)]
    return one


def deep() -> Any:
    pipeline = Pipeline([("last", OneHotEncoder())])
    for _ in range(1_000):
        pipeline = Pipeline([("inner", pipeline)])
    return pipeline


def wide() -> Any:
    many = SimpleNamespace(estimators_=[SimpleNamespace(estimators_=[object()] * 500)] * 500)
    return SimpleNamespace(feature_names_in_=["a"] * 50, estimators_=[many] * 500)


def diamond() -> Any:
    estimator = SimpleNamespace(n_features_in_=1)
    for _ in range(50):
        estimator = SimpleNamespace(n_features_in_=1, estimators_=[estimator, estimator])
    return estimator


ODD: dict[str, Callable[[], Any]] = {
    "raises": lambda: Hostile(RuntimeError),
    "ends the process": lambda: Hostile(SystemExit),
    "interrupts": lambda: Hostile(KeyboardInterrupt),
    "is all its attributes": lambda: Hostile(None),
    "none": lambda: None,
    "number": lambda: 7,
    "class": lambda: LogisticRegression,
    "unfitted": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "unfitted columns": lambda: ColumnTransformer([("a", OneHotEncoder(), [0])]),
    "cyclic": cyclic,
    "deep": deep,
    "wide": wide,
    "diamond": diamond,
    "negative count": lambda: SimpleNamespace(n_features_in_=-4),
    "count of another type": lambda: SimpleNamespace(n_features_in_="4"),
    "count beyond memory": lambda: SimpleNamespace(n_features_in_=2**30, categories_=[]),
    "names of another type": lambda: SimpleNamespace(feature_names_in_=7),
    "numbers as names": lambda: SimpleNamespace(feature_names_in_=[1, 2]),
    "categories of another type": lambda: SimpleNamespace(n_features_in_=1, categories_=[7]),
    "steps of another type": lambda: SimpleNamespace(n_features_in_=1, steps=[1, ("a",), "ab"]),
    "chain": lambda: SimpleNamespace(
        n_features_in_=1, estimators_=[SimpleNamespace(n_features_in_=10**8)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_any_object_is_described_in_bounded_time_and_nothing_is_raised(name: str) -> None:
    estimator = ODD[name]()
    start = time.perf_counter()
    schema = describe_inputs(estimator)
    inputs = input_tensors(schema)
    described = output_tensors(estimator, METHODS)
    assert time.perf_counter() - start < metadata.MAX_SECONDS + 2
    assert inputs
    assert list(METHODS) == [tensor.name for tensor in described]
    assert wire.encode_json([[each.name, each.shape, dict(each.parameters)] for each in described])


@pytest.mark.parametrize(("named", "count"), [(True, 100_000), (False, 100_000), (False, 2**20)])
def test_many_columns_are_one_tensor(named: bool, count: int) -> None:
    estimator = LinearRegression()
    estimator.coef_, estimator.intercept_, estimator.n_features_in_ = np.zeros(count), 0.0, count
    if named:
        estimator.feature_names_in_ = np.array([f"x{i}" for i in range(count)], object)
    start = time.perf_counter()
    schema = describe_inputs(estimator)
    assert [("input-0", "FP64", (-1, count))] == [
        (each.name, each.datatype, each.shape) for each in input_tensors(schema)
    ]
    assert time.perf_counter() - start < 3
    assert named == schema.has_names
    assert (count if named else 0) == len(schema.columns)


def test_columns_of_strings_beyond_the_limit_are_listed_as_far_as_it_goes() -> None:
    names = [f"x{i}" for i in range(metadata.MAX_LISTED_COLUMNS + 5)]
    categories = [np.array(["a"], object)] * len(names)
    schema = describe_inputs(SimpleNamespace(feature_names_in_=names, categories_=categories))
    assert len(names) == len(schema.columns)
    assert metadata.MAX_LISTED_COLUMNS == len(input_tensors(schema))
    assert len(names) == len(input_tensors(schema, list_all=True))
    long = ["x" * metadata.MAX_LISTED_NAME_CHARACTERS, "y", "z"]
    schema = describe_inputs(SimpleNamespace(feature_names_in_=long, categories_=categories[:3]))
    assert 1 == len(input_tensors(schema))


def test_a_name_that_json_cannot_carry_is_replaced_in_the_metadata() -> None:
    schema = describe_inputs(SimpleNamespace(feature_names_in_=["\ud800a"]))
    assert "\ud800a" == schema.columns[0].name
    assert "?a" == input_tensors(schema)[0].name


# ── outputs ─────────────────────────────────────────────────────────────────────────────


def labels_of(labels: Any) -> Any:
    array = np.empty(len(labels), object)
    array[:] = labels
    estimator = SimpleNamespace(classes_=array)
    (tensor,) = output_tensors(estimator, ["predict_proba"])
    assert wire.encode_json(dict(tensor.parameters))
    return tensor.parameters.get("classes")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["no", "yes"], ["no", "yes"]),
        ([1, 2.5, True], [1, 2.5, True]),
        ([np.int8(1), np.float32(0.5), np.str_("a")], [1, 0.5, "a"]),
        ([b"a", b"\xff"], ["a", "\\xff"]),
        ([None, float("nan"), float("inf")], ["None", "nan", "inf"]),
        ([Decimal("1.5"), 2**70, "\ud800"], ["1.5", str(2**70), "?"]),
        ([datetime(2026, 1, 2)], ["2026-01-02T00:00:00"]),  # noqa: DTZ001 - as numpy
        (["x"] * (outputs.MAX_LABELS + 1), None),
        (["x" * outputs.MAX_LABEL_CHARACTERS, "y"], None),
    ],
)
def test_labels_are_json_values_or_strings_or_left_out(labels: Any, expected: Any) -> None:
    assert expected == labels_of(labels)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (np.array(["2026-01-02"], "M8[D]"), ("BYTES", "datetime")),
        (np.array([b"a"]), ("BYTES", "np")),
        (np.array([True, False], object), ("BOOL", "np")),
        (np.array([1, 2], object), ("INT64", "np")),
        (np.array([1, 2.5], object), ("FP64", "np")),
        (np.array([1, "a"], object), ("BYTES", "np")),
        (np.array([1, 2], np.uint8), ("UINT8", "np")),
        (["a", "b"], ("BYTES", "np")),
    ],
)
def test_predict_has_the_datatype_of_its_labels(classes: Any, expected: tuple[str, str]) -> None:
    (tensor,) = output_tensors(SimpleNamespace(classes_=classes), ["predict"])
    assert expected == (tensor.datatype, tensor.parameters["content_type"])


def test_labels_of_many_targets_are_left_out_where_they_are_too_many() -> None:
    many = np.arange(outputs.MAX_LABELS)
    (tensor,) = output_tensors(SimpleNamespace(classes_=[many, many]), ["predict_proba"])
    assert "classes" not in tensor.parameters
    (tensor,) = output_tensors(SimpleNamespace(classes_=[many[:2], 7]), ["predict_proba"])
    assert "classes" not in tensor.parameters
    pairs = SVC(decision_function_shape="ovo")
    pairs.classes_ = np.arange(outputs.MAX_LABELS)
    (tensor,) = output_tensors(pairs, ["decision_function"])
    assert "classes" not in tensor.parameters


@pytest.mark.parametrize(
    ("name", "estimator", "expected"),
    [
        ("apply", "RandomForestClassifier-0", ("INT64", (-1, 5))),
        ("apply", "DecisionTreeClassifier-0", ("INT64", (-1, 1))),
        ("apply", "GradientBoostingClassifier-0", ("FP64", (-1, -1))),
        ("inverse_transform", "PCA-0", ("FP64", (-1, 4))),
        ("predict_joint_log_proba", "GaussianNB-0", ("FP64", (-1, 3))),
        ("kneighbors", "NearestNeighbors-0", ("FP64", (-1, -1))),
    ],
)
def test_methods_of_the_operators_choice_are_described_as_far_as_they_are_known(
    estimators_of_sklearn: Any, name: str, estimator: str, expected: Any
) -> None:
    known, _ = estimators_of_sklearn
    (tensor,) = output_tensors(known.get(estimator, KernelDensity()), [name])
    assert expected == (tensor.datatype, tensor.shape)


def test_declared_inputs_and_outputs_win_wholly(tmp_path: Path) -> None:
    declared = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "predict", "datatype": "FP32", "shape": [-1]}],
    }
    put_model(tmp_path, "m", LogisticRegression().fit(TABLE[["age"]], YES_NO), **declared)
    found = open_handler(tmp_path)("GET", "/v2/models/m").json
    assert declared == {"inputs": found["inputs"], "outputs": found["outputs"]}


# ── examples ────────────────────────────────────────────────────────────────────────────


def model_of(estimator: Any, **settings: Any) -> runtime.Model:
    return runtime.Model(estimator, ModelSettings(name="m", location="/", **settings), 10**7)


class Picky(BaseEstimator):
    """Accepts only what `accepts` lets through; `ends` is raised otherwise."""

    def __init__(self, accepts: Any, ends: type[BaseException] = ValueError) -> None:
        self.accepts = accepts
        self.ends = ends
        self.n_features_in_ = 2

    def predict(self, rows: Any) -> Any:
        """Return zeros."""
        if not self.accepts(rows):
            raise self.ends
        return np.zeros(len(rows))


@pytest.mark.parametrize(
    "accepts",
    [
        lambda rows: (rows == 0).all(),
        lambda rows: (rows == 1).all() and len(rows) == 1,
        lambda rows: (rows == 0).all() and len(rows) > 1,
        lambda rows: (rows == 1).all() and len(rows) > 1,
        lambda rows: (rows == 0.5).all(),
    ],
)
def test_other_values_are_tried_where_the_first_ones_are_refused(accepts: Any) -> None:
    model = model_of(Picky(accepts))
    example = model.example()
    assert example is not None
    assert accepts(np.reshape(example["inputs"][0]["data"], example["inputs"][0]["shape"]))
    assert example == model.example()


@pytest.mark.parametrize("ends", [ValueError, RuntimeError, SystemExit, KeyboardInterrupt])
def test_an_example_is_none_whatever_the_estimator_raises(ends: type[BaseException]) -> None:
    assert model_of(Picky(lambda _: False, ends)).example() is None


class Unreadable:
    """A result that ends the process when it is read."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise SystemExit


def test_an_example_is_none_whatever_the_result_raises() -> None:
    class Odd(BaseEstimator):
        def predict(self, _: Any) -> Any:
            return Unreadable()

    assert model_of(Odd()).example() is None
    assert model_of(BaseEstimator()).example() is None


def test_an_example_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(examples, "EXAMPLE_SECONDS", 0.05)
    release, calls = threading.Event(), []

    def wait(rows: Any) -> bool:
        calls.append(len(rows))
        return release.wait(10) and len(calls) > 1

    model = model_of(Picky(wait))
    start = time.perf_counter()
    assert model.example() is None
    assert model.example() is None  # the first attempt is still at work
    assert time.perf_counter() - start < 1
    assert [1] == calls
    release.set()
    while model.example() is None:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ([("x", "FP64", (-1, 2))], [[20.5, 7.25]]),
        ([("x", "INT32", (-1, 2))], [[21, 8]]),
        ([("x", "BOOL", (-1, 2))], [[True, True]]),
        ([("age", "FP64", (-1, 1)), ("fare", "FP32", (-1,))], [[20.5], [7.25]]),
    ],
)
def test_an_example_of_declared_inputs_has_their_shapes_and_datatypes(
    declared: Any, expected: Any
) -> None:
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in declared
    ]
    raw = {"implementation": "mlserver_sklearn.SKLearnModel", "inputs": inputs}
    settings = ModelSettings.parse(json.dumps(raw).encode(), location="/", folder_name="m")
    estimator = SVC().fit(NUMBERS, np.arange(ROWS) % 2)
    model = runtime.Model(estimator, settings, 10**7)
    example = model.example()
    assert example is not None
    assert expected == [each["data"] for each in example["inputs"]]


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [("base64", "dGV4dA=="), ("datetime", "2026-01-01T00:00:00"), ("str", "text")],
)
def test_an_example_of_declared_strings_can_be_decoded(content_type: str, expected: str) -> None:
    parameters = {"content_type": content_type}
    tensor = {"name": "x", "datatype": "BYTES", "shape": [-1], "parameters": parameters}
    declared = {"implementation": "mlserver_sklearn.SKLearnModel", "inputs": [tensor]}
    settings = ModelSettings.parse(json.dumps(declared).encode(), location="/", folder_name="m")
    example = runtime.Model(DummyClassifier().fit([[0]], [0]), settings, 10**7).example()
    assert example is not None
    assert [expected] == example["inputs"][0]["data"]


def test_an_example_of_more_values_than_the_limit_is_not_made() -> None:
    model = model_of(LinearRegression())
    model.estimator.n_features_in_ = examples.MAX_EXAMPLE_VALUES + 1
    assert model.example() is None


def test_a_page_leaves_out_an_example_that_it_cannot_carry(tmp_path: Path) -> None:
    estimator, count = LinearRegression(), 200_000
    estimator.coef_, estimator.intercept_, estimator.n_features_in_ = np.zeros(count), 0.0, count
    handler = open_handler(put_model(tmp_path, "m", estimator))
    assert example_on_the_page(handler, "m") is None
    assert b"input-0 FP64 [-1, 200000]" in handler("GET", "/v2/models/m/docs").body


def test_modules_of_metadata_import_neither_scikit_learn_nor_pandas() -> None:
    for module in (estimators, metadata, outputs, examples):
        source = Path(str(module.__file__)).read_text()
        assert not re.search(r"^\s*(?:import|from) (?:sklearn|pandas)", source, re.MULTILINE)


class Attributed(ColumnSelector):
    """Reads a column as an attribute."""

    def transform(self, rows: Any) -> Any:
        """Return the column."""
        return rows.text


class Divided(ColumnSelector):
    """Computes a column from others."""

    def transform(self, rows: Any) -> Any:
        """Return all columns and the new one."""
        return rows.assign(share=rows["age"] / rows["fare"])


class Numbered(ColumnSelector):
    """Selects a column by its position."""

    def transform(self, rows: Any) -> Any:
        """Return the column."""
        return rows[:, [0]]


def failing(_: Any) -> Any:
    raise KeyError


def test_a_users_transformer_that_cannot_be_followed_leaves_the_columns_unknown() -> None:
    pipeline = make_pipeline(Attributed(), CountVectorizer()).fit(FRAME[["age", "text"]])
    assert InputSchema() == describe_inputs(pipeline)
    assert InputSchema() == describe_inputs(make_pipeline(Divided(), StandardScaler()))
    assert InputSchema() == describe_inputs(make_pipeline(Numbered(), StandardScaler()))
    both = FeatureUnion([("text", ColumnSelector()), ("all", StandardScaler())])
    assert InputSchema() == describe_inputs(both)
    nested = ColumnSelector()
    for _ in range(100):
        nested = make_pipeline(nested)
    assert InputSchema() == describe_inputs(nested)
    text = make_pipeline(FunctionTransformer(failing), CountVectorizer().fit(["word"]))
    assert describe_inputs(text).takes_documents
