"""What scikit-learn's import leaves out comes when it is asked for; nothing else changes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import pickle
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import scipy.spatial.distance
import scipy.special
import scipy.stats
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris, make_blobs
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    BaggingClassifier,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RandomizedSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, LocalOutlierFactor
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators
from sklearn.utils._test_common.instance_generator import _construct_instances
from sklearn.utils.estimator_checks import _enforce_estimator_tags_X, _enforce_estimator_tags_y

from compare import differences
from conftest import ROOT, put_model
from mlserverless import imports
from mlserverless.runtime import METHODS

ASK = ROOT / "tests" / "ask_each.py"


LOADING = "import json, sys\nfrom mlserverless.imports import import_sklearn\nimport_sklearn()\n"


def fresh(code: str, start: str = LOADING) -> Any:
    """What a fresh interpreter prints as JSON, after the import that a load begins with."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", start + code],
        env={"PYTHONPATH": str(ROOT / "handler")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


STANDS_IN_FOR_A_CLASS = """
import scipy.interpolate as i, sklearn.preprocessing._polynomial as p
is_one = isinstance(i.BSpline([0, 1], [1], 0), p.BSpline)
kinds = [isinstance(p.BSpline, type), issubclass(i.BSpline, p.BSpline)]
print(json.dumps([is_one, *kinds, p.BSpline.__name__]))
"""
UNPICKLED = r"""
import pickle
print(json.dumps(type(pickle.loads(b"cscipy.special\nexpit\n.")).__name__))
"""
IS_A_TABLE = """
import numpy as np, pandas as pd
from sklearn.utils.validation import _get_feature_names as names
table = names(pd.DataFrame({"a": [1]})).tolist()
print(json.dumps([table, names(np.ones((1, 1))), names([[1]])]))
"""
AT_ONCE = """
import scipy
from concurrent.futures import ThreadPoolExecutor
asks = [
    lambda: scipy.special.expit(0),
    lambda: scipy.stats.norm.cdf(0),
    lambda: scipy.optimize.minimize_scalar(lambda x: (x - 0.5) ** 2).x,
] * 4
with ThreadPoolExecutor(12) as pool:
    found = list(pool.map(lambda ask: round(float(ask()), 6), asks))
print(json.dumps(sorted(set(found))))
"""


def modules_of(digits: Path, code: str) -> list[str]:
    """What is imported after some code in a process that has imported the handler."""
    event = ROOT / "events" / "http-api-infer.json"
    start = (
        "import json, os, sys\n"
        f"os.environ['MLSERVER_MODEL_REPOSITORY_ROOT'] = {str(digits.parent)!r}\n"
        "from mlserverless.main import handler\n"
        f"def ask(): return handler(json.load(open({str(event)!r}, 'rb')), None)\n"
    )
    found: list[str] = fresh(code + "\nprint(json.dumps(sorted(sys.modules)))", start)
    return found


def test_init_imports_no_more_than_its_budget(digits: Path) -> None:
    """A module more is a millisecond more, for everybody, at every cold start."""
    names = modules_of(digits, "")
    assert 420 >= len(names), names
    heavy = {"numpy", "scipy", "sklearn", "joblib", "pandas", "boto3", "narwhals", "uvicorn"}
    assert set() == heavy & {name.partition(".")[0] for name in names}


def test_the_first_digits_answer_imports_no_more_than_its_budget(digits: Path) -> None:
    names = modules_of(digits, "assert '\"data\":[8]' in ask()['body']")
    assert 1020 >= len(names), len(names)
    late = ("scipy.special.", "scipy.stats.", "scipy.optimize.", "narwhals.", "numpy.f2py.")
    assert [] == [name for name in names if name.startswith(late) and name not in imports.LATE]
    assert "pandas" not in names


def test_every_name_that_is_stood_in_for_exists() -> None:
    """Another release may move one; then it would fail late, in production."""
    for module, names in imports.LATE.items():
        real = importlib.import_module(module)
        assert [] == [name for name in names if not hasattr(real, name)], module


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import scipy.stats; print(float(scipy.stats.norm.cdf(0)))", 0.5),
        ("import scipy; print(float(scipy.stats.norm.cdf(0)))", 0.5),
        ("from scipy import stats; print(float(stats.mode([1, 1, 2]).mode))", 1.0),
        ("from scipy.stats import rankdata; print(rankdata([3, 1]).tolist())", [2.0, 1.0]),
        ("from scipy.stats import chi2; print(float(chi2.cdf(0, 1)))", 0.0),
        ("from scipy.stats import chi2; print(float(chi2(1).cdf(0)))", 0.0),
        ("from scipy.stats.mstats import mquantiles; print(mquantiles([1]).tolist())", [1.0] * 3),
        ("import scipy.stats.distributions as d; print(float(d.norm.cdf(0)))", 0.5),
        ("import pandas; print(len(pandas.DataFrame({'a': [1]})))", 1),
        ("import scipy.stats as s, scipy; s.norm; print(json.dumps(scipy.stats is s))", False),
        ("from scipy.stats._stats_py import mode; print(float(mode([1, 1]).mode))", 1.0),
        ("from scipy.special import *; print(float(expit(0)))", 0.5),
        ("from scipy.special import expit as e; print(json.dumps(type(e).__name__))", "ufunc"),
        ("from scipy.spatial import distance as d; print(float(d.euclidean([0], [1])))", 1.0),
        ("from scipy.linalg import LinAlgError as e; print(json.dumps(e.__name__))", "LinAlgError"),
        (
            "import scipy.linalg as l; print(json.dumps(l.cython_blas.__name__))",
            "scipy.linalg.cython_blas",
        ),
        ("import narwhals; print(json.dumps(narwhals.__version__ > ''))", True),
        ("import numpy as np; print(json.dumps(np.ma.isMaskedArray(np.ma.array([1]))))", True),
        ("import numpy as np; np.testing.assert_equal(1, 1); print(1)", 1),
        (STANDS_IN_FOR_A_CLASS, [True, True, True, "BSpline"]),
        (UNPICKLED, "ufunc"),
        (IS_A_TABLE, [["a"], None, None]),
        (AT_ONCE, [0.5]),
    ],
)
def test_what_is_asked_of_them_is_the_real_thing(code: str, expected: object) -> None:
    assert expected == fresh(code)


def fitted() -> dict[str, tuple[Any, Any]]:
    """Every estimator that can be fitted on small data, with the data."""
    points, labels = make_blobs(n_samples=40, centers=3, n_features=4, random_state=0)
    points -= points.min()
    found = {}
    for name, kind in all_estimators():
        instances: list[Any] = []
        with contextlib.suppress(SkipTest):  # it says that it has no example of this kind
            instances += _construct_instances(kind)
        for number, estimator in enumerate(instances):
            rows = _enforce_estimator_tags_X(estimator, points)
            target = _enforce_estimator_tags_y(estimator, labels)
            try:
                found[f"{name}-{number}"] = estimator.fit(rows, target), rows
            except (ValueError, TypeError, AttributeError, ImportError):
                continue
    return found


def plain(value: Any) -> Any:
    """A direct answer as a client finds it: dense, flat lists of JSON's values."""
    if issparse(value):
        value = value.toarray()
    if isinstance(value, list):
        return [plain(each) for each in value]
    flat = np.asarray(value).ravel().tolist()
    return [None if isinstance(each, float) and not np.isfinite(each) else each for each in flat]


@pytest.mark.filterwarnings("ignore")  # scikit-learn's own, of tiny data
def test_every_estimator_of_scikit_learn_answers_as_it_does_when_called_directly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected: dict[str, dict[str, Any]] = {}
    questions = {}
    for name, (estimator, rows) in fitted().items():
        answers = {}
        for method in METHODS:
            if not callable(getattr(estimator, method, None)):
                continue
            ask = functools.partial(getattr(estimator, method), np.asarray(rows, np.float64))
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                first, *others = [plain(ask()) for _ in range(5)]
                if others == [first] * 4:  # some draw lots
                    answers[method] = first
        if not answers:
            continue
        with contextlib.suppress(AttributeError, TypeError, pickle.PicklingError):
            put_model(tmp_path, name, estimator)
        if not (tmp_path / name / "model.joblib").exists():
            continue  # what joblib cannot save, nobody can serve
        data = np.asarray(rows, np.float64)
        tensor = {"name": "x", "shape": data.shape, "datatype": "FP64", "data": data.tolist()}
        questions[name] = {"inputs": [tensor], "outputs": [{"name": each} for each in answers]}
        expected[name] = answers
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    found = call_each_model(tmp_path)
    with capsys.disabled():
        sys.stdout.write(f"\n  {len(expected)} estimators of scikit-learn asked\n")
    assert len(expected) > 150
    for name, answers in expected.items():
        assert "outputs" in found[name], (name, found[name])
        got: dict[str, list[Any]] = {}
        for output in found[name]["outputs"]:
            got.setdefault(output["name"].rstrip("_0123456789"), []).append(output["data"])
        for method, values in answers.items():
            nested = bool(values) and isinstance(values[0], list)
            flat = list(chain.from_iterable(values)) if nested else values
            answer = list(chain.from_iterable(got[method]))
            # the last bits are the processor's, by where an array lies in memory
            assert [] == differences(flat, answer, f"{name}.{method}")


def call_each_model(root: Path) -> dict[str, Any]:
    """The handler's response for each model of `root`, in Lambda's state: joblib is serial."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ASK), str(root)],
        env={"PYTHONPATH": str(ROOT / "handler"), "JOBLIB_MULTIPROCESSING": "0"},
        capture_output=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def models_that_want_processes() -> dict[str, Any]:
    """Estimators that call joblib with several workers when they predict."""
    rows, target = load_iris(return_X_y=True)
    logistic = LogisticRegression(max_iter=500)
    union = FeatureUnion([("a", StandardScaler()), ("b", PCA(2))], n_jobs=2)
    columns = ColumnTransformer([("a", StandardScaler(), [0, 1]), ("b", PCA(1), [2, 3])], n_jobs=2)
    models = {
        "bagging": BaggingClassifier(logistic, n_estimators=4, n_jobs=2, random_state=0),
        "columns": make_pipeline(columns, clone(logistic)),
        "forest": RandomForestClassifier(n_estimators=8, n_jobs=2, random_state=0),
        "isolation": IsolationForest(n_jobs=2, random_state=0),
        "lof": LocalOutlierFactor(novelty=True, n_jobs=2),
        "multi": OneVsRestClassifier(logistic, n_jobs=2),
        "neighbours": KNeighborsClassifier(n_jobs=2, algorithm="brute", metric="cosine"),
        "stacking": StackingClassifier([("l", logistic)], cv=2, n_jobs=2),
        "union": make_pipeline(union, clone(logistic)),
        "voting": VotingClassifier([("l", logistic)], voting="soft", n_jobs=2),
    }
    return {name: model.fit(rows, target) for name, model in models.items()}


@pytest.mark.filterwarnings("ignore")  # scikit-learn's own, of small data
def test_estimators_that_want_several_processes_respond_from_one(tmp_path: Path) -> None:
    assert_each_responds_as_it_predicts(tmp_path, models_that_want_processes())


def assert_each_responds_as_it_predicts(root: Path, models: dict[str, Any]) -> None:
    """Compare the handler's responses with the estimators' own predictions."""
    rows = load_iris().data[::10]
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP64", "data": rows.tolist()}
    expected = {}
    for name, model in models.items():
        put_model(root, name, model)
        expected[name] = model.predict(rows).tolist()
    requests = {name: {"inputs": [tensor]} for name in expected}
    (root / "questions.json").write_text(json.dumps(requests))
    responses = call_each_model(root)
    assert expected == {name: responses[name]["outputs"][0]["data"] for name in expected}


def models_that_hold_scipy() -> dict[str, Any]:
    """Models whose own parts are scipy's: functions, distributions, matrices, trees, operators."""
    rows, target = load_iris(return_X_y=True)
    holding = DummyClassifier()
    holding.kept = [
        scipy.sparse.csr_array(rows),
        np.ma.array([1, 2], mask=[False, True]),
        scipy.stats.norm(0, 1),
        scipy.special.logsumexp,
        scipy.linalg.LinAlgError,
        scipy.sparse.linalg.aslinearoperator(np.eye(2)),
        scipy.spatial.KDTree(rows),
    ]
    drawn = {"C": scipy.stats.uniform(0.1, 1)}
    search = RandomizedSearchCV(
        LogisticRegression(max_iter=500),
        drawn,
        n_iter=2,
        random_state=0,
    )
    inverse = {"VI": np.linalg.inv(np.cov(rows.T))}
    models = {
        "holding": holding,
        "search": search,
        "expit": make_pipeline(FunctionTransformer(scipy.special.expit), DecisionTreeClassifier()),
        "cosine": KNeighborsClassifier(metric=scipy.spatial.distance.cosine),
        "mahalanobis": KNeighborsClassifier(
            metric="mahalanobis", metric_params=inverse, algorithm="brute"
        ),
    }
    return {name: model.fit(rows, target) for name, model in models.items()}


@pytest.mark.filterwarnings("ignore")  # scikit-learn's own, of a short search
def test_what_a_model_holds_of_scipy_is_the_real_thing(tmp_path: Path) -> None:
    assert_each_responds_as_it_predicts(tmp_path, models_that_hold_scipy())
