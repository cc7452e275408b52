"""The scikit-learn runtime: which methods answer, what a model says of itself, what loads."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import BaseEstimator
from sklearn.cluster import DBSCAN
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from skops import io as skops

from mlserverless import runtime
from mlserverless.errors import BadRequest, ModelLoadError
from mlserverless.protocol import InferenceRequest, RequestInput, RequestOutput, TensorMetadata
from mlserverless.repository import Artefact
from mlserverless.settings import ModelSettings, Settings

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


# ── loading ─────────────────────────────────────────────────────────────────────────────


def load(raw: bytes, server: Settings | None = None, **extra: str) -> runtime.Model:
    settings = ModelSettings(name="m", location="/", extra=extra)
    return runtime.load(Artefact("model.joblib", io.BytesIO(raw)), settings, server or Settings())


def dumped(value: Any) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(value, buffer)
    return buffer.getvalue()


def _raise(stop: type[BaseException]) -> None:
    raise stop


class Raising:
    """Raises when it is unpickled."""

    def __init__(self, stop: type[BaseException]) -> None:
        self.stop = stop

    def __reduce__(self) -> Any:
        return _raise, (self.stop,)


class Sealed:
    """Fits, and lets nobody see how it predicts."""

    def fit(self) -> None: ...

    @property
    def predict(self) -> Any:
        raise RuntimeError


class Hostile:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_digest_that_does_not_match_executes_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    raw = pickle.dumps(Hostile(mark))
    with pytest.raises(ModelLoadError, match="does not have the sha256"):
        load(raw, sha256="0" * 64)
    assert not mark.exists()
    with pytest.raises(ModelLoadError, match="holds no scikit-learn estimator"):
        load(raw, sha256=hashlib.sha256(raw).hexdigest())
    assert mark.exists()


def test_a_server_may_refuse_models_without_a_digest() -> None:
    raw, strict = dumped(CLASSIFIER), Settings(require_sha256=True)
    with pytest.raises(ModelLoadError, match=r"no parameters\.extra.sha256"):
        load(raw, strict)
    assert load(raw, strict, sha256=hashlib.sha256(raw).hexdigest().upper()).methods


@pytest.mark.parametrize(
    "stop", [KeyboardInterrupt, GeneratorExit, SystemExit, StopIteration, RecursionError]
)
def test_nothing_that_a_pickle_raises_gets_further(stop: type[BaseException]) -> None:
    with pytest.raises(ModelLoadError, match=rf"cannot be unpickled \({stop.__name__}\)"):
        load(pickle.dumps(Raising(stop)))


def test_what_is_unpickled_has_the_digest_whoever_writes_meanwhile(tmp_path: Path) -> None:
    """A file may be rewritten in place after it has been looked through."""
    mark, path = tmp_path / "mark", tmp_path / "model.joblib"
    raw, hostile = dumped(CLASSIFIER), pickle.dumps(Hostile(mark))

    class Rewritten(io.FileIO):
        def read(self, size: int | None = -1, /) -> Any:
            found = super().read(size)
            path.write_bytes(hostile)
            return found

        def seek(self, *where: int) -> int:
            path.write_bytes(hostile)
            return super().seek(*where)

    path.write_bytes(raw)
    extra = {"sha256": hashlib.sha256(raw).hexdigest()}
    settings = ModelSettings(name="m", location="/", extra=extra)
    artefact = Artefact("model.joblib", Rewritten(path))
    assert runtime.load(artefact, settings, Settings()).methods
    assert path.read_bytes() == hostile
    assert not mark.exists()


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "cannot be unpickled"),
        (b"garbage", "cannot be unpickled"),
        (dumped(CLASSIFIER)[:-20], "cannot be unpickled"),
        (b"cgone.module\nThing\n.", "needs gone, which is not installed here"),
        (b"csklearn\nGone\n.", "needs Gone, which is not installed here"),
        (b"csys\nexit\n(tR.", "cannot be unpickled .SystemExit."),
        (dumped({"not": "a model"}), "holds no scikit-learn estimator"),
        (b"cbuiltins\nKeyboardInterrupt\n(tR.", "holds no scikit-learn estimator"),
        (dumped(LogisticRegression), "holds no scikit-learn estimator"),
        (dumped(SimpleNamespace(fit=3)), "holds no scikit-learn estimator"),
        (b"cimportlib\nimport_module\n(Vsklearn.svm._libsvm\ntR.", "holds no scikit-learn"),
        (dumped(Sealed()), "estimator cannot be looked into .RuntimeError."),
    ],
)
def test_what_is_no_model_does_not_load(raw: bytes, sentence: str) -> None:
    with pytest.raises(ModelLoadError, match=sentence):
        load(raw)


# ── skops ───────────────────────────────────────────────────────────────────────────────


class Own(LogisticRegression):
    """A team's own estimator, which skops cannot know."""


def read(raw: bytes, trusted: list[str] | None = None) -> runtime.Model:
    extra = {} if trusted is None else {"trusted": trusted}
    settings = ModelSettings(name="m", location="/", extra=extra)
    return runtime.load(Artefact("model.skops", io.BytesIO(raw)), settings, Settings())


def test_a_skops_file_answers_as_its_pickle_does() -> None:
    pipeline = make_pipeline(StandardScaler(), CLASSIFIER).fit(X, [0, 1, 1])
    answers = [
        ask(model, "predict_proba").outputs[0].data.tolist()
        for model in (read(skops.dumps(pipeline)), load(dumped(pipeline)))
    ]
    assert answers[0] == answers[1]


def test_types_that_nobody_trusts_are_listed_and_never_made() -> None:
    raw = skops.dumps(Own().fit(X, [0, 1, 1]))
    with pytest.raises(
        ModelLoadError, match=r"^its artefact has types that .* does not: test_runtime\.Own$"
    ):
        read(raw)
    assert read(raw, ["test_runtime.Own"]).methods


def test_a_pickle_that_is_called_skops_is_not_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(ModelLoadError, match=r"cannot be read as skops \(BadZipFile\)"):
        read(pickle.dumps(Hostile(mark)))
    assert not mark.exists()


def test_a_skops_file_of_another_minor_version_is_refused() -> None:
    raw = skops.dumps(CLASSIFIER)
    schema = zipfile.ZipFile(io.BytesIO(raw)).read("schema.json")
    old = schema.replace(sklearn.__version__.encode(), b"1.2.3")
    assert old != schema
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as found, zipfile.ZipFile(buffer, "w") as other:
        for name in found.namelist():
            other.writestr(name, old if name == "schema.json" else found.read(name))
    with pytest.raises(ModelLoadError, match=r"saved by scikit-learn 1\.2\.3, this server has"):
        read(buffer.getvalue())


# ── versions ────────────────────────────────────────────────────────────────────────────


def saved_by(version: str) -> bytes:
    """The classifier as another scikit-learn would have saved it."""

    class Old(LogisticRegression):
        def __getstate__(self) -> Any:
            return {**super().__getstate__(), "_sklearn_version": version}

        def __reduce__(self) -> Any:
            return LogisticRegression, (), self.__getstate__()

    return dumped(Old().fit(X, [0, 1, 1]))


def test_another_minor_version_is_refused_by_a_sentence_that_names_both() -> None:
    with pytest.raises(
        ModelLoadError,
        match=rf"saved by scikit-learn 1\.2\.3, this server has {sklearn.__version__}",
    ):
        load(saved_by("1.2.3"))


@pytest.mark.parametrize(
    ("version", "server"),
    [
        (".".join(sklearn.__version__.split(".")[:2]) + ".99", Settings()),
        ("1.2.3", Settings(allow_version_mismatch=True)),
    ],
)
def test_a_patch_version_or_an_owner_who_allows_it_gets_a_warning(
    version: str, server: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(saved_by(version), server).methods
    assert f"saved by scikit-learn {version}" in caplog.text


def test_what_breaks_for_its_version_is_refused_by_a_sentence_that_names_both() -> None:
    """A tree of another version breaks before scikit-learn itself would say a word."""
    raw = dumped(DecisionTreeClassifier().fit(X, [0, 1, 1]))
    here = sklearn.__version__.encode()
    broken = raw.replace(b"sklearn.tree._tree", b"sklearn.tree._gone")
    other = broken.replace(here, b"0" + here[1:])
    with pytest.raises(ModelLoadError, match=r"needs sklearn\.tree\._gone, which is not installed"):
        load(broken)
    with pytest.raises(ModelLoadError, match=r"saved by scikit-learn 0\.[\d.]+, this server has"):
        load(other)
    with pytest.raises(ModelLoadError, match=r"needs sklearn\.tree\._gone, which is not installed"):
        load(other, Settings(allow_version_mismatch=True))


def test_a_version_is_noticed_whatever_other_threads_do_with_warnings() -> None:
    """Python's warnings are the process's: predictions elsewhere silence them for a while."""
    old, good, stop = saved_by("1.2.3"), dumped(CLASSIFIER), threading.Event()

    def silence() -> None:
        while not stop.is_set():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                time.sleep(0)

    def refused(raw: bytes) -> bool:
        try:
            load(raw)
        except ModelLoadError:
            return True
        return False

    before = warnings.showwarning, list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        pool.submit(silence)
        found = list(pool.map(refused, [old, good] * 100))
        stop.set()
    assert [True, False] * 100 == found
    assert before == (warnings.showwarning, list(warnings.filters))
