"""Train the models that the recording was made with, small and the same every time.

python tests/conformance/models.py FOLDER
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn import datasets
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, OneClassSVM

IMPLEMENTATION = "mlserver_sklearn.SKLearnModel"
TRANSFORM = {"predict_fn": "transform"}


class Shelf:
    """The repository's folder; `put` adds one model to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(
        self,
        folder: str,
        estimator: Any,
        version: str | None = "v1",
        *,
        file: str = "model.joblib",
        declared: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> None:
        """Save an estimator and its settings; None leaves a parameter out."""
        place = self.root / folder
        place.mkdir(parents=True, exist_ok=True)
        if file.endswith(".pkl"):
            (place / file).write_bytes(pickle.dumps(estimator))
        else:
            joblib.dump(estimator, place / file)
        parameters = {"uri": f"./{file}", "version": version, **parameters}
        settings = {
            "name": place.name,
            "implementation": IMPLEMENTATION,
            "parameters": {key: value for key, value in parameters.items() if value is not None},
            **(declared or {}),
        }
        (place / "model-settings.json").write_text(json.dumps(settings, indent=2))


def tensor(name: str, datatype: str, *shape: int, codec: str | None = None) -> dict[str, Any]:
    """One declared input or output."""
    declared: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [-1, *shape]}
    return declared | ({"parameters": {"content_type": codec}} if codec else {})


def classifiers(shelf: Shelf) -> None:
    """The documented digits, and iris with every sort of label and setting."""
    digits = datasets.load_digits()
    half = len(digits.images) // 2
    rows = digits.images.reshape((len(digits.images), -1))
    svc = SVC(gamma=0.001).fit(rows[:half], digits.target[:half])
    shelf.put("mnist-svm", svc, "v0.1.0", file="mnist-svm.joblib")

    iris = datasets.load_iris()
    x, y = iris.data, iris.target

    def fitted(labels: Any, **settings: Any) -> Any:
        return LogisticRegression(max_iter=1000, **settings).fit(x, labels)

    plain = fitted(y, random_state=0)
    shelf.put("iris-logreg", plain)
    shelf.put("iris-noversion", plain, None)
    shelf.put("iris-pkl", plain, None, file="model.pkl", uri=None)
    shelf.put("iris-proba-default", plain, extra={"predict_fn": "predict_proba"})
    shelf.put("iris-decision", plain, extra={"predict_fn": "decision_function"})
    shelf.put(
        "iris-metadata",
        plain,
        declared={
            "platform": "sklearn",
            "versions": ["sklearn/1.9.1"],
            "inputs": [tensor("x", "FP64", 4, codec="np")],
            "outputs": [tensor("predict", "INT64", codec="np"), tensor("predict_proba", "FP64", 3)],
        },
    )
    names = fitted(iris.target_names[y])
    shelf.put("iris-str", names)
    shelf.put("iris-obj", fitted(iris.target_names[y].astype(object)))
    shelf.put("iris-bool", fitted(y == 0))
    shelf.put("iris-float", fitted(y.astype(np.float32)))
    shelf.put("iris-int8", fitted(y.astype(np.int8)))
    declared = {"outputs": [tensor("predict", "BYTES", codec="str")]}
    shelf.put("iris-str-meta", names, declared=declared)
    forest = RandomForestClassifier(n_estimators=5, max_depth=3, random_state=0)
    shelf.put("iris-rf", forest.fit(x, y))
    several = MultiOutputClassifier(LogisticRegression(max_iter=1000))
    shelf.put("multi-classifier", several.fit(x, np.c_[y, y == 0]))
    for version in ("1", "2", "10"):
        model = fitted(y, C=float(version))
        shelf.put(f"versioned/{version}", model, version, declared={"name": "versioned"})

    shelf.put("kmeans", KMeans(n_clusters=3, n_init=1, random_state=0).fit(x))
    shelf.put("isoforest", IsolationForest(n_estimators=10, random_state=0).fit(x))
    shelf.put("oneclass", OneClassSVM(gamma=0.1).fit(x))
    shelf.put("dbscan", DBSCAN(eps=0.5).fit(x))  # has no predict
    pca = PCA(n_components=2, random_state=0)
    shelf.put("scale-pca", Pipeline([("scale", StandardScaler()), ("pca", pca)]).fit(x))


def regressors(shelf: Shelf) -> None:
    """One target, several, a column, and one that takes missing values."""
    diabetes = datasets.load_diabetes()
    shelf.put("diabetes-ridge", Ridge(alpha=1.0).fit(diabetes.data, diabetes.target))
    x = np.arange(20, dtype=float).reshape(10, 2)
    y = np.c_[x.sum(1), x[:, 0] - x[:, 1], x[:, 0] * 2]
    shelf.put("multi-regressor", LinearRegression().fit(x, y))
    shelf.put("regressor-col", LinearRegression().fit(x, y[:, :1]))
    gaps = x.copy()
    gaps[0, 0] = np.nan
    boosted = HistGradientBoostingRegressor(max_iter=5, min_samples_leaf=1, random_state=0)
    shelf.put("hist-gbr", boosted.fit(np.vstack([gaps] * 5), np.tile(y[:, 0], 5)))


def tables(shelf: Shelf) -> None:
    """Pipelines over data frames with numbers and text."""
    frame = pd.DataFrame(
        {
            "age": [22.0, 38.0, 26.0, 35.0, 54.0, 2.0, 27.0, 14.0],
            "fare": [7.25, 71.28, 7.92, 53.1, 51.86, 21.07, 11.13, 30.07],
            "sex": ["male", "female", "female", "female", "male", "male", "female", "female"],
        }
    )
    survived = np.array([0, 1, 1, 1, 0, 0, 1, 1])

    def columns() -> ColumnTransformer:
        text = OneHotEncoder(handle_unknown="ignore")
        return ColumnTransformer(
            [("num", StandardScaler(), ["age", "fare"]), ("cat", text, ["sex"])]
        )

    pipeline = Pipeline([("pre", columns()), ("clf", LogisticRegression())]).fit(frame, survived)
    shelf.put("titanic-pd", pipeline)
    inputs = [tensor("age", "FP64"), tensor("fare", "FP64"), tensor("sex", "BYTES", codec="str")]
    shelf.put("titanic-meta", pipeline, declared={"inputs": inputs}, content_type="pd")
    shelf.put("titanic-preproc", columns().fit(frame), extra=TRANSFORM)
    onehot = OneHotEncoder(handle_unknown="ignore").fit(frame[["sex"]])
    shelf.put("onehot-sparse", onehot, extra=TRANSFORM)
    scaler = StandardScaler().set_output(transform="pandas")
    shelf.put("scaler-pandas-out", scaler.fit(frame[["age", "fare"]]), extra=TRANSFORM)


def texts_and_oddities(shelf: Shelf) -> None:
    """Text classifiers; a model that shows what it was given; one that raises at will."""
    documents = [
        "good great excellent", "bad awful poor", "great nice good",
        "poor terrible bad", "excellent nice", "awful terrible",
    ]  # fmt: skip

    def fitted(labels: list[Any]) -> Any:
        return make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(documents, labels)

    shelf.put("text-clf", fitted([1, 0] * 3))
    shelf.put("text-clf-meta", fitted(["pos", "neg"] * 3), content_type="str")
    shelf.put("echo", FunctionTransformer(), extra=TRANSFORM)
    shelf.put("cholesky", FunctionTransformer(np.linalg.cholesky), extra=TRANSFORM)


def train(root: Path) -> Path:
    """Every model of the recording, under `root`."""
    shelf = Shelf(root)
    for shelve in (classifiers, regressors, tables, texts_and_oddities):
        shelve(shelf)
    return root


if __name__ == "__main__":
    train(Path(sys.argv[1]))
