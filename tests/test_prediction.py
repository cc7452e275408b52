"""How an estimator is called: faults of the model, containers of its steps, rows, class scores."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, MiniBatchSparsePCA, SparsePCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.image import PatchExtractor
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import BayesianRidge, LinearRegression, LogisticRegression, Ridge
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier

from mlserverless import prediction, wire
from mlserverless.errors import BadRequest, PredictionError
from mlserverless.metadata import Column, InputSchema
from mlserverless.protocol import InferenceResponse, TensorMetadata
from mlserverless.runtime import Model
from mlserverless.settings import ModelSettings

X = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 1.0]])
LABELS = ["a", "b", "c", "c"]
FRAME = pd.DataFrame(X, columns=["age", "fare"])
TARGET = [0, 0, 1, 1]


def served(estimator: Any, **extra: Any) -> Model:
    return Model(estimator, ModelSettings(name="m", location="/", extra=extra), 10**6)


def tensor(data: Any, name: str = "x", datatype: str = "FP64") -> dict[str, Any]:
    return {"name": name, "shape": np.shape(data), "datatype": datatype, "data": data}


def infer(model: Model, *inputs: dict[str, Any], **request: Any) -> InferenceResponse:
    """Send a request as its JSON; `request` has its other keys."""
    message = {"inputs": inputs or [tensor(X.tolist())], **request}
    return model.infer(wire.decode(json.dumps(message).encode()))


def as_table(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the arguments of `infer` for a DataFrame of numbers."""
    inputs = [tensor(frame[name].tolist(), name) for name in frame.columns]
    return {"inputs": inputs, "parameters": {"content_type": "pd"}}


def output(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters}


def values(response: InferenceResponse) -> list[Any]:
    return [np.reshape(each.data, each.shape).tolist() for each in response.outputs]


# ── faults of the model ─────────────────────────────────────────────────────────────────


def without(estimator: Any, attribute: str) -> Any:
    """Return a fitted estimator as another version of its code would have left it."""
    del estimator.__dict__[attribute]
    return estimator


class Needing(BaseEstimator):
    """Raises, when it predicts, what code raises that lacks something."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def fit(self, *_: Any) -> Needing:
        return self

    def predict(self, _: Any) -> Any:
        raise self.error


class Undefined(BaseEstimator):
    """Uses a name, a module's attribute and a module that are not there."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self.call = call

    def fit(self, *_: Any) -> Undefined:
        return self

    def predict(self, rows: Any) -> Any:
        return self.call(rows)


def import_something(_: Any) -> Any:
    import no_such_module  # type: ignore[import-not-found] # noqa: F401


def import_name(_: Any) -> Any:
    from numpy import no_such  # type: ignore[attr-defined] # noqa: F401


def assign_too_late(_: Any) -> Any:
    result = later  # type: ignore[has-type, used-before-def] # noqa: F821
    later = 1  # noqa: F841
    return result


def forest_without_trees() -> Any:
    forest = RandomForestClassifier(2, random_state=0).fit(X, LABELS)
    del forest.estimators_[0].tree_
    return forest


def voting_without_coefficients() -> Any:
    voting = VotingClassifier([("a", LogisticRegression()), ("b", GaussianNB())], voting="soft")
    del voting.fit(X, LABELS).estimators_[0].coef_
    return voting


BROKEN: list[tuple[Any, str]] = [
    (LogisticRegression(), "its LogisticRegression is not fitted; call fit before you save"),
    (make_pipeline(StandardScaler(), LogisticRegression()), "its Pipeline is not fitted"),
    (GridSearchCV(Ridge(), {"alpha": [1]}), "its GridSearchCV is not fitted"),
    (CalibratedClassifierCV(), "its CalibratedClassifierCV is not fitted"),
    (
        make_pipeline(FunctionTransformer(), FrozenEstimator(LinearRegression())),
        "its Pipeline is not fitted",
    ),
    (without(LogisticRegression().fit(X, LABELS), "coef_"), "LogisticRegression has no .* coef_"),
    (
        without(KNeighborsClassifier(1).fit(X, LABELS), "_y"),
        "has no attribute _y",
    ),
    (without(GaussianNB().fit(X, LABELS), "var_"), "its GaussianNB has no attribute var_"),
    (forest_without_trees(), "its DecisionTreeClassifier has no attribute tree_"),
    (voting_without_coefficients(), "its LogisticRegression has no attribute coef_"),
    (Needing(sklearn.exceptions.NotFittedError("row 3.5")), "it is not fitted"),
    (Needing(ImportError("Missing optional dependency 'tabulate'.")), "it needs tabulate, which"),
    (Needing(ImportError("/opt/x: gone")), "it needs a module, which"),
    (
        Needing(OSError("/opt/lib/libgomp.so.1: cannot open shared object file: No such file")),
        r"it needs the library libgomp\.so\.1, which is not installed here",
    ),
    (Undefined(import_something), "it needs no_such_module, which is not installed here"),
    (Undefined(import_name), "the module numpy has no attribute no_such"),
    (Undefined(lambda _: undefined), "its code uses the name undefined, which is not"),  # type: ignore[name-defined] # noqa: F821
    (Undefined(assign_too_late), "its code uses a name that is not defined"),
    (Undefined(lambda _: np.no_such), "the module numpy has no attribute no_such"),  # type: ignore[attr-defined]
    (Undefined(lambda _: Ridge.no_such), "the class Ridge has no attribute no_such"),
    (
        Undefined(lambda _: np.random.default_rng(0).no_such),  # type: ignore[attr-defined]
        "its Generator has no attribute no_such",
    ),
]


@pytest.mark.parametrize(("estimator", "reason"), BROKEN)
def test_good_data_and_a_broken_model_is_the_models_fault(estimator: Any, reason: str) -> None:
    model = served(estimator)
    with pytest.raises(PredictionError, match=f"^Model m cannot predict: .*{reason}") as caught:
        infer(model)
    assert 500 == caught.value.status
    assert model.fault == str(caught.value)
    assert not any(text in str(caught.value) for text in ("3.5", "/opt"))


def fitted_estimators() -> list[Any]:
    return [
        LogisticRegression().fit(X, LABELS),
        make_pipeline(StandardScaler(), SVC()).fit(X, LABELS),
        GridSearchCV(DecisionTreeClassifier(), {"max_depth": [1]}, cv=2).fit(X, TARGET),
        CalibratedClassifierCV(GaussianNB(), cv=2).fit(X, TARGET),
        RandomForestClassifier(2).fit(X, LABELS),
        KMeans(2, n_init=1).fit(X),
        make_pipeline(PCA(1), LinearRegression()).fit(X, TARGET),
        VotingClassifier([("a", GaussianNB()), ("b", LogisticRegression())]).fit(X, LABELS),
        KNeighborsClassifier(1).fit(X, LABELS),
        BayesianRidge().fit(X, TARGET),
    ]


@pytest.mark.parametrize("estimator", fitted_estimators(), ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(
    "data",
    [
        tensor([[1.0, 2.0, 3.0]]),
        tensor([1.0, 2.0]),
        tensor([["inf", 1.0]]),
        tensor([["a", "b"]], datatype="BYTES"),
        tensor([[[1.0]]]),
    ],
    ids=["columns", "vector", "infinite", "text", "cube"],
)
def test_bad_data_and_a_good_model_is_the_clients_error(estimator: Any, data: Any) -> None:
    model = served(estimator)
    with pytest.raises(BadRequest, match="the model cannot take this data: ") as caught:
        infer(model, data)
    assert 400 == caught.value.status
    assert model.fault is None


@pytest.mark.parametrize(
    "call",
    [
        lambda rows: rows.lower(),
        lambda rows: rows.tolist().lower(),
        lambda rows: rows[0][0].lower(),
        lambda rows: pd.DataFrame(rows).no_such,
        lambda rows: scipy.sparse.csr_matrix(rows).no_such,
        lambda _: None.lower(),  # type: ignore[attr-defined]
    ],
)
def test_an_attribute_that_the_data_lacks_is_the_clients_error(call: Any) -> None:
    with pytest.raises(BadRequest, match="has no attribute"):
        infer(served(Undefined(call)))


def test_another_failure_of_the_system_is_not_a_fault_of_the_model() -> None:
    model = served(Needing(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        infer(model)
    assert model.fault is None


def test_a_model_is_at_fault_until_a_prediction_succeeds() -> None:
    model = served(LogisticRegression().fit(X, LABELS))
    coefficients = model.estimator.__dict__.pop("coef_")
    with pytest.raises(PredictionError):
        infer(model)
    with pytest.raises(BadRequest):
        infer(model, tensor([[1.0]]))
    assert model.fault is not None
    model.estimator.coef_ = coefficients
    infer(model)
    assert model.fault is None


# ── transform_output ────────────────────────────────────────────────────────────────────


def by_name() -> ColumnTransformer:
    return ColumnTransformer([("age", "passthrough", ["age"])], verbose_feature_names_out=False)


class Returning(TransformerMixin, BaseEstimator):
    """A team's own transformer, which may return a DataFrame or an array."""

    def __init__(self, *, frame: bool) -> None:
        self.frame = frame

    def fit(self, *_: Any) -> Returning:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def transform(self, rows: Any) -> Any:
        return rows if self.frame else np.asarray(rows)

    def get_feature_names_out(self, _: Any = None) -> Any:
        return np.array(["age", "fare"], object)


def oldest(frame: Any) -> Any:
    return frame[["age"]]


def composed() -> list[Any]:
    scaled = make_pipeline(StandardScaler(), by_name(), LogisticRegression())
    inner = make_pipeline(StandardScaler(), FunctionTransformer(oldest))
    return [
        scaled,
        GridSearchCV(scaled, {"logisticregression__C": [1]}, cv=2),
        make_pipeline(make_pipeline(FunctionTransformer(), StandardScaler()), by_name(), Ridge()),
        make_pipeline(ColumnTransformer([("in", inner, ["age", "fare"])]), Ridge()),
        VotingClassifier([("in", scaled), ("nb", GaussianNB())]),
        CalibratedClassifierCV(scaled, cv=2),
        make_pipeline("passthrough", FrozenEstimator(StandardScaler()), by_name(), Ridge()),
    ]


@pytest.mark.parametrize("estimator", composed(), ids=range(len(composed())))
def test_steps_that_returned_dataframes_in_training_do_so_when_served(estimator: Any) -> None:
    with sklearn.config_context(transform_output="pandas"):
        if estimator.__class__.__name__ == "Pipeline" and estimator.steps[0][1] == "passthrough":
            estimator.steps[1][1].estimator.fit(FRAME)
        estimator.fit(FRAME, TARGET)
        direct = estimator.predict(FRAME)
    model = served(estimator)
    request = as_table(FRAME)
    assert (
        direct.reshape(-1, 1).tolist() == values(infer(model, *request.pop("inputs"), **request))[0]
    )
    assert "default" == sklearn.get_config()["transform_output"]


def test_a_models_container_reaches_no_other_thread() -> None:
    """One model predicts under the setting while another thread reads the configuration."""
    entered, release = threading.Event(), threading.Event()

    def wait(frame: Any) -> Any:
        entered.set()
        assert release.wait(10)
        return frame[["age"]]

    with sklearn.config_context(transform_output="pandas"):
        release.set()
        pipeline = make_pipeline(StandardScaler(), FunctionTransformer(wait), Ridge())
        pipeline.fit(FRAME, TARGET)
    release.clear()
    entered.clear()
    request = as_table(FRAME)
    thread = threading.Thread(
        target=lambda: infer(served(pipeline), *request["inputs"], parameters=request["parameters"])
    )
    thread.start()
    assert entered.wait(10)
    assert "default" == sklearn.get_config()["transform_output"]
    release.set()
    thread.join()


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(), LogisticRegression()).set_output(transform="pandas"),
        make_pipeline(FunctionTransformer(), by_name(), LogisticRegression()),
        make_pipeline(Returning(frame=True), by_name(), LogisticRegression()),
        make_pipeline(by_name(), LogisticRegression()),
        LogisticRegression(),
    ],
    ids=range(6),
)
def test_a_model_trained_under_the_default_keeps_it(estimator: Any) -> None:
    estimator.fit(FRAME, TARGET)
    container, _ = prediction.find_transform_output(estimator)
    assert container is None
    request = as_table(FRAME)
    found = values(infer(served(estimator), *request["inputs"], parameters=request["parameters"]))
    assert estimator.predict(FRAME).reshape(-1, 1).tolist() == found[0]


def own_transformer_under_pandas() -> Any:
    with sklearn.config_context(transform_output="pandas"):
        own = make_pipeline(Returning(frame=False), FunctionTransformer(oldest), Ridge())
        return own.fit(FRAME, TARGET)


def test_where_it_is_unclear_the_error_names_the_setting_that_serves_it() -> None:
    estimator, request = own_transformer_under_pandas(), as_table(FRAME)
    inputs, parameters = request["inputs"], request["parameters"]
    with pytest.raises(
        PredictionError, match=r"set parameters\.extra\.transform_output to .pandas"
    ):
        infer(served(estimator), *inputs, parameters=parameters)
    with sklearn.config_context(transform_output="pandas"):
        direct = estimator.predict(FRAME).reshape(-1, 1).tolist()
    declared = served(estimator, transform_output="pandas")
    assert [direct] == values(infer(declared, *inputs, parameters=parameters))
    with pytest.raises(BadRequest):  # an array, where the training data was a DataFrame
        infer(served(estimator))
    text = tensor(["a"] * 4, "age", "BYTES")
    with pytest.raises(BadRequest):  # neither container helps against wrong data
        infer(served(estimator), text, inputs[1], parameters=parameters)


class Differences(TransformerMixin, BaseEstimator):
    """A user's transformer of DataFrames that records nothing of its training data."""

    def fit(self, _rows: Any, _: Any = None) -> Differences:
        return self

    def transform(self, rows: Any) -> Any:
        return rows[rows.columns[::-1]]


def test_a_transformer_that_records_nothing_of_its_dataframes_is_unclear_too() -> None:
    with sklearn.config_context(transform_output="pandas"):
        union = FeatureUnion([("scaler", StandardScaler())])
        estimator = make_pipeline(union, Differences(), Ridge()).fit(FRAME, TARGET)
    request = as_table(FRAME)
    with pytest.raises(PredictionError, match=r"set parameters\.extra\.transform_output"):
        infer(served(estimator), *request["inputs"], parameters=request["parameters"])


def test_the_default_may_be_declared_too() -> None:
    with sklearn.config_context(transform_output="pandas"):
        pipeline = make_pipeline(StandardScaler(), StandardScaler()).fit(FRAME)
    request = as_table(FRAME)
    inputs, parameters = request["inputs"], request["parameters"]
    found = [
        [each.name for each in infer(model, *inputs, parameters=parameters).outputs]
        for model in (served(pipeline), served(pipeline, transform_output="default"))
    ]
    assert [["age", "fare"], ["transform"]] == found


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_a_container_that_is_not_installed_is_named_with_its_setting(
    container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = served(StandardScaler().fit(X), transform_output=container)
    monkeypatch.setitem(sys.modules, container, None)
    message = rf"parameters\.extra\.transform_output is {container}, which is not installed here"
    with pytest.raises(PredictionError, match=message):
        infer(model)


def test_without_pandas_a_model_of_dataframes_still_takes_arrays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with sklearn.config_context(transform_output="pandas"):
        pipeline = make_pipeline(StandardScaler(), Ridge()).fit(FRAME, TARGET)
    assert ("pandas", False) == prediction.find_transform_output(pipeline)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert (None, False) == prediction.find_transform_output(pipeline)


def test_an_estimator_that_cannot_be_examined_is_unclear() -> None:
    class Hostile(BaseEstimator):
        @property
        def steps(self) -> Any:
            raise RuntimeError

    assert (None, True) == prediction.find_transform_output(Hostile())
    assert frozenset() == prediction.find_unused_columns(Hostile(), ["a"])


# ── keyword arguments and tuples ────────────────────────────────────────────────────────

PROCESS = GaussianProcessRegressor().fit(X, [0.0, 1.0, 2.0, 3.0])
RETURN_STD = {"predict": ["return_std", "return_cov"]}


def test_an_allowed_keyword_argument_reaches_the_method_and_a_tuple_is_an_output_each() -> None:
    model = served(PROCESS, method_kwargs=RETURN_STD)
    response = infer(model, outputs=[output("predict", return_std=True, other=1)])
    mean, deviation = PROCESS.predict(X, return_std=True)
    assert ["predict_0", "predict_1"] == [each.name for each in response.outputs]
    assert [mean.reshape(-1, 1).tolist(), deviation.reshape(-1, 1).tolist()] == values(response)
    covariance = infer(model, outputs=[output("predict", return_cov=True)]).outputs[1]
    assert ("predict_1", (4, 4)) == (covariance.name, covariance.shape)


def test_what_the_settings_do_not_allow_is_ignored() -> None:
    for model in (
        served(PROCESS),
        served(PROCESS, method_kwargs={"predict_proba": ["return_std"]}),
    ):
        response = infer(model, outputs=[output("predict", return_std=True)])
        assert ["predict"] == [each.name for each in response.outputs]


def test_keyword_arguments_that_exclude_one_another_are_the_clients_error() -> None:
    model = served(PROCESS, method_kwargs=RETURN_STD)
    with pytest.raises(BadRequest, match="At most one of return_std or return_cov"):
        infer(model, outputs=[output("predict", return_std=True, return_cov=True)])
    assert model.fault is None


class Quantiles(BaseEstimator):
    """Returns a column for each quantile, as quantile forests do."""

    def fit(self, _rows: Any) -> Quantiles:
        return self

    def predict(self, rows: Any, quantiles: Any = 0.5) -> Any:
        return np.outer(rows[:, 0], quantiles)


def test_a_keyword_argument_may_be_a_list() -> None:
    model = served(Quantiles(), method_kwargs={"predict": ["quantiles"]})
    response = infer(model, outputs=[output("predict", quantiles=[0.25, 0.5])])
    assert [np.outer(X[:, 0], [0.25, 0.5]).tolist()] == values(response)


@pytest.mark.parametrize("value", [None, [None], [[True]], {"a": 1}])
def test_a_keyword_argument_is_a_boolean_a_number_a_string_or_a_list_of_these(value: Any) -> None:
    model = served(PROCESS, method_kwargs=RETURN_STD)
    with pytest.raises(BadRequest, match="parameter return_std of output predict must be a bool"):
        infer(model, outputs=[output("predict", return_std=value)])


def test_a_tuple_keeps_the_datatype_of_each_element() -> None:
    model = served(NearestNeighbors(n_neighbors=2).fit(X), predict_fn="kneighbors")
    response = infer(model)
    assert [("kneighbors_0", "FP64", (4, 2)), ("kneighbors_1", "INT64", (4, 2))] == [
        (each.name, each.datatype, each.shape) for each in response.outputs
    ]


def test_a_request_without_rows_is_the_clients_error_whatever_a_vectorizer_raises() -> None:
    model = served(HashingVectorizer(n_features=4).fit(["a"]))
    with pytest.raises(BadRequest, match="cannot take this data: it has no rows"):
        infer(model, {"name": "x", "shape": [0], "datatype": "BYTES", "data": []})


# ── rows ────────────────────────────────────────────────────────────────────────────────


def summed(rows: Any) -> Any:
    return rows[:1]


@pytest.mark.parametrize(
    "call",
    [
        summed,
        lambda _: 1.0,
        lambda _: [1.0],
        lambda _: "one",
        lambda rows: (rows, rows[:1]),
        lambda rows: [rows[:1]],
        lambda rows: scipy.sparse.csr_matrix(rows[:1]),
        lambda rows: pd.DataFrame(rows[:1]),
    ],
)
def test_a_result_without_a_row_for_each_row_is_the_models_fault(call: Any) -> None:
    message = "predict does not return one row for each of the 4 rows of the request"
    with pytest.raises(PredictionError, match=message):
        infer(served(Undefined(call)))


@pytest.mark.parametrize(
    "call",
    [
        lambda rows: rows,
        lambda rows: rows[:, 0].tolist(),
        lambda rows: (1.0, rows, rows[:, 0]),
        lambda rows: [rows, rows],
        lambda rows: [rows[:, :1], rows],
        lambda rows: np.stack([rows, rows, rows]),
        list,
        scipy.sparse.csr_matrix,
        pd.DataFrame,
    ],
)
def test_a_result_with_a_row_for_each_row_is_served(call: Any) -> None:
    assert infer(served(Undefined(call))).outputs


def test_a_scalar_is_the_result_of_one_row() -> None:
    assert [[1.0]] == values(infer(served(Undefined(lambda _: 1.0)), tensor([[1.0]])))
    assert [[1.0]] == values(
        infer(served(Undefined(lambda _: 1.0)), {**tensor([1.0]), "shape": []})
    )


@pytest.mark.parametrize("estimator", [SparsePCA(2), MiniBatchSparsePCA(2)])
def test_the_only_row_of_a_request_has_the_shape_that_it_has_beside_others(estimator: Any) -> None:
    model = served(estimator.fit(np.eye(4)))
    together = values(infer(model, tensor(np.eye(4)[:3].tolist())))[0]
    alone = values(infer(model, tensor(np.eye(4)[:1].tolist())))[0]
    np.testing.assert_allclose(together[:1], alone)


def test_the_operators_own_method_and_patches_may_change_the_rows() -> None:
    own = Undefined(summed)
    own.first = own.predict
    assert 1 == infer(served(own, predict_fn="first")).outputs[0].shape[0]
    images = np.zeros((2, 4, 4)).tolist()
    patches = infer(
        served(PatchExtractor(patch_size=(2, 2)).fit(np.zeros((2, 4, 4)))), tensor(images)
    )
    assert patches.outputs[0].shape[0] > 2


DOCUMENTS = ["good day", "bad day", "good"]
TEXT = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(DOCUMENTS, ["p", "n", "p"])


@pytest.mark.parametrize("rows", [1, 2])
def test_a_table_for_a_model_of_documents_is_refused_with_the_content_type(rows: int) -> None:
    column = tensor(DOCUMENTS[:rows], "text", "BYTES")
    with pytest.raises(BadRequest, match='set content_type to "str"'):
        infer(served(TEXT), column, parameters={"content_type": "pd"})


def test_a_text_model_that_counts_columns_is_refused_with_the_content_type() -> None:
    model = served(Undefined(lambda frame: np.array(list(frame))))
    column = tensor(DOCUMENTS, "text", "BYTES")
    with pytest.raises(BadRequest, match="does not return one row for each of the 3 rows"):
        infer(model, column, parameters={"content_type": "pd"})


@pytest.mark.parametrize("shape", [[3], [3, 1], [1, 3], [-1, 1]])
def test_strings_for_a_model_of_documents_are_a_list_unless_the_request_says_np(
    shape: list[int],
) -> None:
    column = {**tensor(DOCUMENTS, "text", "BYTES"), "shape": shape}
    expected = [[each] for each in TEXT.predict(DOCUMENTS)]
    assert [expected] == values(infer(served(TEXT), column))
    assert [expected] == values(infer(served(TEXT), column, parameters={"content_type": "base64"}))
    if len(shape) == 2:
        with pytest.raises(BadRequest, match=r"takes a list of strings: set content_type to .str"):
            infer(served(TEXT), column, parameters={"content_type": "np"})


def test_strings_for_a_model_of_columns_stay_an_array() -> None:
    encoder = OneHotEncoder(sparse_output=False).fit(np.array([["a"], ["b"]]))
    column = tensor([["a"], ["b"]], "text", "BYTES")
    assert [[[1.0, 0.0], [0.0, 1.0]]] == values(infer(served(encoder), column))


# ── classification ──────────────────────────────────────────────────────────────────────


def classified(estimator: Any, name: str, count: Any, rows: Any = X) -> Any:
    requested = output(name, classification=count)
    (found,) = infer(served(estimator), tensor(rows.tolist()), outputs=[requested]).outputs
    assert (name, "BYTES") == (found.name, found.datatype)
    return np.reshape(np.array(found.data, object), found.shape).tolist()


def expected_classes(scores: Any, labels: Any, count: int) -> list[list[str]]:
    return [
        [
            f"{row[index]!r}:{index}:{labels[index]}"
            for index in sorted(range(len(row)), key=lambda each: -row[each])[:count]
        ]
        for row in scores.tolist()
    ]


THREE = LogisticRegression().fit(X, LABELS)


@pytest.mark.parametrize("name", ["predict_proba", "decision_function", "predict_log_proba"])
@pytest.mark.parametrize("count", [1, 2, 3, 10**18])
def test_the_highest_scores_of_each_row_come_first(name: str, count: int) -> None:
    scores = getattr(THREE, name)(X)
    expected = expected_classes(scores, ["a", "b", "c"], min(count, 3))
    assert expected == classified(THREE, name, count)


def test_predict_is_ranked_by_probabilities_else_by_the_decision_function() -> None:
    assert classified(THREE, "predict_proba", 2) == classified(THREE, "predict", 2)
    machine = SVC().fit(X, LABELS)
    scores = machine.decision_function(X)
    assert expected_classes(scores, ["a", "b", "c"], 2) == classified(machine, "predict", 2)


def test_a_decision_function_of_two_classes_scores_both() -> None:
    machine = LinearSVC().fit(X, [False, False, True, True])
    scores = machine.decision_function(X)
    both = np.stack([-scores, scores], axis=1)
    assert expected_classes(both, [False, True], 2) == classified(machine, "predict", 2)


def test_equal_scores_keep_the_order_of_the_classes_and_no_row_has_no_result() -> None:
    tied = DummyClassifier(strategy="prior").fit([[0.0], [0.0]], ["a", "b"])
    assert [["0.5:0:a", "0.5:1:b"]] == classified(tied, "predict", 2, np.array([[0.0]]))


def test_labels_are_left_out_where_there_are_none() -> None:
    mixture = GaussianMixture(2, random_state=0).fit(X)
    assert all(
        [f"{max(row)!r}:{row.index(max(row))}"] == found
        for row, found in zip(
            mixture.predict_proba(X).tolist(), classified(mixture, "predict", 1), strict=True
        )
    )


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2", [1]])
def test_a_count_that_is_not_a_positive_integer_is_refused(count: Any) -> None:
    with pytest.raises(BadRequest, match="classification of output predict must be a positive int"):
        classified(THREE, "predict", count)


@pytest.mark.parametrize(
    ("estimator", "name", "sentence"),
    [
        (LinearRegression().fit(X, TARGET), "predict", "neither predict_proba nor decision_funct"),
        (PCA(1).fit(X), "transform", "not for output transform"),
        (OneClassSVM().fit(X), "predict", "does not return one score per class"),
        (SVC(decision_function_shape="ovo").fit(X, LABELS), "predict", "scores pairs of classes"),
        (
            make_pipeline(StandardScaler(), SVC(decision_function_shape="ovo")).fit(X, LABELS),
            "decision_function",
            "scores pairs of classes",
        ),
        (
            MultiOutputClassifier(GaussianNB()).fit(X, [[0, 1], [1, 0], [1, 1], [0, 0]]),
            "predict",
            "one target",
        ),
    ],
)
def test_a_model_without_a_score_per_class_is_refused(
    estimator: Any, name: str, sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        classified(estimator, name, 1)


def test_classes_may_be_sent_as_binary_text() -> None:
    requested = output("predict", classification=1, binary_data=True)
    (found,) = infer(served(THREE), tensor([[0.0, 1.0]]), outputs=[requested]).outputs
    text = classified(THREE, "predict", 1, X[:1])[0][0].encode()
    assert len(text).to_bytes(4, "little") + text == found.data


def test_classification_null_is_none() -> None:
    (found,) = infer(served(THREE), outputs=[output("predict", classification=None)]).outputs
    assert LABELS == found.data


# ── categories ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("has_categories", [True, False])
def test_a_model_of_categories_predicts_as_it_does_for_a_categorical_column(
    has_categories: bool,
) -> None:
    sizes = pd.Categorical(["big", "small", "huge", "small"] * 10)
    frame = pd.DataFrame({"size": sizes, "count": range(40)})
    estimator = HistGradientBoostingClassifier(
        categorical_features="from_dtype", min_samples_leaf=2, max_iter=3
    ).fit(frame, sizes == "small")
    known = sizes.categories.to_numpy() if has_categories else None
    columns = (Column("size", "BYTES", categories=known), Column("count", "INT64"))
    model = served(estimator)
    model.schema = InputSchema(columns, has_names=True)
    rows = [("small", 3), (None, 3), ("tiny", 3), ("big", 3)]
    requested = {"outputs": [output("predict_proba")], "parameters": {"content_type": "pd"}}

    def probabilities(*rows: Any) -> Any:
        inputs = [
            tensor([row[1] for row in rows], "count", "INT64"),
            tensor([row[0] for row in rows], "size", "BYTES"),
        ]
        return values(infer(model, *inputs, **requested))[0]

    alone = [found for row in rows for found in probabilities(row)]
    codes = [sizes.categories.tolist().index(name) if name in sizes else -1 for name, _ in rows]
    direct = pd.DataFrame(
        {"size": pd.Categorical.from_codes(codes, dtype=sizes.dtype), "count": [3] * 4}
    )
    np.testing.assert_allclose(estimator.predict_proba(direct), alone, rtol=1e-12)
    np.testing.assert_allclose(alone, probabilities(*rows), rtol=1e-12)


# ── columns ─────────────────────────────────────────────────────────────────────────────


def reversed_columns(frame: pd.DataFrame) -> dict[str, Any]:
    return as_table(frame[frame.columns[::-1]])


@pytest.mark.parametrize(
    "estimator",
    [
        Ridge(),
        make_pipeline(StandardScaler(), Ridge()),
        GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [1]}, cv=2),
        make_pipeline(
            ColumnTransformer([("a", StandardScaler(), [0])], remainder="passthrough"), Ridge()
        ),
        make_pipeline(FeatureUnion([("a", StandardScaler()), ("b", PCA(1))]), Ridge()),
    ],
    ids=range(5),
)
def test_columns_in_any_order_are_the_same_row(estimator: Any) -> None:
    estimator = clone(estimator).fit(FRAME, [1.0, 5.0, 2.0, 9.0])
    model = served(estimator)
    request = reversed_columns(FRAME)
    found = values(infer(model, *request["inputs"], parameters=request["parameters"]))
    np.testing.assert_allclose(estimator.predict(FRAME), np.ravel(found), rtol=1e-12)


def test_a_null_is_none_where_an_array_of_objects_had_none_in_training() -> None:
    rows = np.array([["a", 1.0], ["b", 2.0], [None, 3.0], [None, 4.0]], object)
    encoder = ColumnTransformer(
        [("city", OneHotEncoder(handle_unknown="ignore"), [0])], remainder="passthrough"
    )
    estimator = make_pipeline(encoder, LogisticRegression()).fit(rows, TARGET)
    inputs = [tensor([None], "city", "BYTES"), tensor([3.0], "age")]
    response = infer(
        served(estimator),
        *inputs,
        parameters={"content_type": "pd"},
        outputs=[output("predict_proba")],
    )
    assert [estimator.predict_proba(rows[2:3]).tolist()] == values(response)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (["fare"], "the column age that the model was trained with must be in the request$"),
        (["Age", "fare"], "the column age .* the request has Age for age$"),
        ([" age", "fair"], "the columns age, fare .* the request has  age for age, fair for fare$"),
        (["x" * 5000, "fare"], "the column age .* must be in the request$"),
    ],
)
def test_a_missing_column_is_named_with_the_one_that_may_be_meant(
    sent: list[str], message: str
) -> None:
    model = served(make_pipeline(StandardScaler(), Ridge()).fit(FRAME, TARGET))
    inputs = [tensor([1.0], name) for name in sent]
    with pytest.raises(BadRequest, match=message):
        infer(model, *inputs, parameters={"content_type": "pd"})


def test_a_long_list_of_missing_columns_is_cut() -> None:
    wide = pd.DataFrame(np.eye(20), columns=[f"c{index}" for index in range(20)])
    model = served(Ridge().fit(wide, range(20)))
    with pytest.raises(BadRequest, match=r"the columns c0, .* c9, … that"):
        infer(model, tensor([1.0], "unlike"), parameters={"content_type": "pd"})


@pytest.mark.parametrize("columns", [["age"], [0], slice(0, 1), [True, False]])
def test_a_column_that_the_model_drops_may_be_left_out_and_others_not(columns: Any) -> None:
    encoder = ColumnTransformer([("a", StandardScaler(), columns), ("b", "drop", ["fare"])])
    pipeline = make_pipeline(encoder, Ridge()).fit(FRAME, TARGET)
    parameters = {"content_type": "pd"}
    model = served(pipeline)
    model.schema = InputSchema((Column("age"), Column("fare")), has_names=True)
    found = infer(model, tensor([1.0], "age"), parameters=parameters)
    assert [[[each] for each in pipeline.predict(FRAME[1:2])]] == values(found)
    with pytest.raises(BadRequest, match="the column age that"):
        infer(model, tensor([1.0], "fare"), parameters=parameters)


def test_a_column_that_training_did_not_have_is_the_estimators_decision() -> None:
    extra = FRAME.assign(more=1.0)[["more", "fare", "age"]]
    request = as_table(extra)
    inputs, parameters = request["inputs"], request["parameters"]
    chosen = make_pipeline(by_name(), Ridge()).fit(FRAME, TARGET)
    assert [[[each] for each in chosen.predict(FRAME).tolist()]] == values(
        infer(served(chosen), *inputs, parameters=parameters)
    )
    with pytest.raises(BadRequest, match="unseen at fit time"):
        infer(served(Ridge().fit(FRAME, TARGET)), *inputs, parameters=parameters)


def test_declared_inputs_change_nothing_about_the_order() -> None:
    declared = tuple(TensorMetadata(name, "FP64", (-1,)) for name in ("fare", "age"))
    ridge = Ridge().fit(FRAME, [1.0, 5.0, 2.0, 9.0])
    model = Model(ridge, ModelSettings(name="m", location="/", inputs=declared), 10**6)
    request = reversed_columns(FRAME)
    found = values(infer(model, *request["inputs"], parameters=request["parameters"]))
    assert [[[each] for each in ridge.predict(FRAME).tolist()]] == found


def test_no_warning_is_raised_for_columns_in_another_order() -> None:
    request = reversed_columns(FRAME)
    model = served(Ridge().fit(FRAME, TARGET))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer(model, *request["inputs"], parameters=request["parameters"])
