"""The scikit-learn runtime: which methods answer, what a model says of itself, what loads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.cluster import DBSCAN
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlserverless import runtime
from mlserverless.errors import BadRequest
from mlserverless.protocol import InferenceRequest, RequestInput, RequestOutput, TensorMetadata
from mlserverless.settings import ModelSettings

X = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
CLASSIFIER = LogisticRegression().fit(X, [0, 1, 1])


def served(estimator: Any, **settings: Any) -> runtime.Model:
    return runtime.Model(estimator, ModelSettings(name="m", location="/", **settings), 10**6)


def ask(model: runtime.Model, *names: str, data: Any = None, id: str | None = None) -> Any:  # noqa: A002 - the protocol's word
    rows = X.tolist() if data is None else data
    tensor = RequestInput("x", np.shape(rows), "FP64", rows)
    outputs = tuple(RequestOutput(name) for name in names)
    return model.infer(InferenceRequest(id, {}, (tensor,), outputs))


def names(answer: Any) -> list[str]:
    return [output.name for output in answer.outputs]


# ── outputs ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("estimator", "extra", "expected"),
    [
        (CLASSIFIER, {}, "predict"),
        (CLASSIFIER, {"predict_fn": "predict_proba"}, "predict_proba"),
        (StandardScaler().fit(X), {}, "transform"),
    ],
)
def test_where_nothing_is_asked_the_owner_decides_else_predict_else_transform(
    estimator: Any, extra: dict[str, str], expected: str
) -> None:
    assert [expected] == names(ask(served(estimator, extra=extra)))


def test_outputs_come_in_the_order_asked_and_twice_if_asked_twice() -> None:
    asked = ["decision_function", "predict", "predict_log_proba", "predict"]
    assert asked == names(ask(served(CLASSIFIER), *asked))


@pytest.mark.parametrize(
    "name", ["__class__", "__reduce__", "fit", "coef_", "get_params", "transform"]
)
def test_never_an_attribute_that_is_not_offered(name: str) -> None:
    with pytest.raises(
        BadRequest, match=f"output {name} is not to be had; this model offers predict, "
    ):
        ask(served(CLASSIFIER), name)


def test_the_owners_own_method_may_be_asked_but_no_private_one() -> None:
    own = served(CLASSIFIER, extra={"predict_fn": "get_params"})
    assert "get_params" in own.methods
    hidden = served(CLASSIFIER, extra={"predict_fn": "__sklearn_tags__"})
    with pytest.raises(BadRequest, match="__sklearn_tags__ is not to be had"):
        ask(hidden)


def test_an_estimator_without_any_method_says_so() -> None:
    with pytest.raises(BadRequest, match="this model offers no output at all"):
        ask(served(DBSCAN().fit(X)))


def test_an_id_is_kept_even_an_empty_one_and_made_where_there_is_none() -> None:
    model = served(CLASSIFIER)
    assert ["7", ""] == [ask(model, id=each).id for each in ("7", "")]
    assert 36 == len(ask(model).id)


def test_what_the_estimator_refuses_is_the_clients_error_with_its_sentence() -> None:
    with pytest.raises(BadRequest, match="the model cannot take this data: X has 1 features"):
        ask(served(CLASSIFIER), data=[[1.0]])


def test_an_error_of_the_estimators_own_is_not_the_clients() -> None:
    class Broken(BaseEstimator):
        def predict(self, _: Any) -> Any:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        ask(served(Broken()))


# ── what it says of itself ──────────────────────────────────────────────────────────────


def said(tensors: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(each.name, each.datatype, each.shape) for each in tensors]


def test_a_model_of_arrays_says_how_many_features_it_takes() -> None:
    model = served(CLASSIFIER)
    assert [("input-0", "FP64", (-1, 2))] == said(model.inputs())
    assert [
        ("predict", "INT64", (-1, 1)),
        ("predict_proba", "FP64", (-1, 2)),
        ("predict_log_proba", "FP64", (-1, 2)),
        ("decision_function", "FP64", (-1, 1)),
    ] == said(model.outputs())


def test_a_model_of_tables_says_its_columns_and_which_are_text() -> None:
    table = pd.DataFrame({"age": [1.0, 2.0], "sex": ["m", "f"]})
    columns = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["sex"]))
    pipeline = make_pipeline(columns, LogisticRegression()).fit(table, ["no", "yes"])
    model = served(pipeline)
    assert [("age", "FP64", (-1, 1)), ("sex", "BYTES", (-1, 1))] == said(model.inputs())
    assert ("predict", "BYTES", (-1, 1)) == said(model.outputs())[0]
    encoder = OneHotEncoder().fit(table)
    assert ["FP64", "BYTES"] == [each.datatype for each in served(encoder).inputs()]


def test_a_model_of_documents_takes_text() -> None:
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["good", "bad"], [0, 1])
    assert [("input-0", "BYTES", (-1, 1))] == said(served(pipeline).inputs())


def test_a_classifier_of_several_targets_predicts_a_column_each() -> None:
    several = MultiOutputClassifier(LogisticRegression()).fit(X, [[0, 1], [1, 0], [1, 1]])
    assert [("predict", "INT64", (-1, 2)), ("predict_proba", "FP64", (2, -1, 2))] == said(
        served(several).outputs()
    )


def test_a_regressor_predicts_doubles() -> None:
    assert [("predict", "FP64", (-1, 1))] == said(
        served(LinearRegression().fit(X, [1, 2, 3])).outputs()
    )


def test_what_the_owner_declared_wins() -> None:
    own = (TensorMetadata("mine", "INT8", (-1,)),)
    model = served(CLASSIFIER, inputs=own, outputs=own)
    assert (own, own) == (model.inputs(), model.outputs())
