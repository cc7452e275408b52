"""Loading an artifact: digests, formats, missing dependencies, versions; and what is refused."""

from __future__ import annotations

import bz2
import functools
import hashlib
import io
import logging
import lzma
import math
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pytest
import sklearn
from joblib.compressor import BinaryGzipFile, BinaryZlibFile
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from skops import io as skops

from conftest import ROOT
from mlserverless import loading, pickled_code, runtime
from mlserverless.errors import ModelLoadError
from mlserverless.repository import Artefact
from mlserverless.settings import ModelSettings, Settings

X = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
CLASSIFIER = LogisticRegression().fit(X, [0, 1, 1])


# ── loading ─────────────────────────────────────────────────────────────────────────────


def load(raw: bytes, server: Settings | None = None, **extra: str) -> runtime.Model:
    settings = ModelSettings(name="m", location="/", extra=extra)
    return loading.load(Artefact("model.joblib", io.BytesIO(raw)), settings, server or Settings())


def dumped(value: Any) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(value, buffer)
    return buffer.getvalue()


class _Call:
    """A pickle that calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _raise(stop: type[BaseException]) -> None:
    raise stop


class Raising:
    """Raises when it is unpickled."""

    def __init__(self, stop: type[BaseException]) -> None:
        self.stop = stop

    def __reduce__(self) -> Any:
        return _raise, (self.stop,)


class Sealed:
    """Has fit, and a property `predict` that raises."""

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
    with pytest.raises(
        ModelLoadError, match=r"the artifact does not match parameters\.extra\.sha256"
    ):
        load(raw, sha256="0" * 64)
    assert not mark.exists()
    with pytest.raises(ModelLoadError, match="is not a scikit-learn estimator"):
        load(raw, sha256=hashlib.sha256(raw).hexdigest())
    assert mark.exists()


def test_a_server_may_refuse_models_without_a_digest() -> None:
    raw, strict = dumped(CLASSIFIER), Settings(require_sha256=True)
    with pytest.raises(ModelLoadError, match=r"parameters\.extra\.sha256 is missing"):
        load(raw, strict)
    assert load(raw, strict, sha256=hashlib.sha256(raw).hexdigest().upper()).methods


@pytest.mark.parametrize(
    "stop", [KeyboardInterrupt, GeneratorExit, SystemExit, StopIteration, RecursionError]
)
def test_an_exception_from_a_pickle_is_a_model_load_error(stop: type[BaseException]) -> None:
    with pytest.raises(ModelLoadError, match=rf"cannot be unpickled \({stop.__name__}\)"):
        load(pickle.dumps(Raising(stop)))


def test_the_bytes_with_the_digest_are_unpickled_even_if_the_file_changes(tmp_path: Path) -> None:
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
    artifact = Artefact("model.joblib", Rewritten(path))
    assert loading.load(artifact, settings, Settings()).methods
    assert path.read_bytes() == hostile
    assert not mark.exists()


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "the artifact is empty"),
        (b"garbage", "cannot be unpickled"),
        (dumped(CLASSIFIER)[:-20], "is incomplete"),
        (b"cgone.module\nThing\n.", "needs the Python module gone, which is not installed: add"),
        (
            b"csklearn\nGone\n.",
            r"needs sklearn\.Gone, which the installed version of sklearn does not",
        ),
        (b"csys\nexit\n(tR.", "cannot be unpickled .SystemExit."),
        (dumped({"not": "a model"}), "is not a scikit-learn estimator"),
        (b"cbuiltins\nKeyboardInterrupt\n(tR.", "is not a scikit-learn estimator"),
        (dumped(LogisticRegression), "is not a scikit-learn estimator"),
        (dumped(SimpleNamespace(fit=3)), "is not a scikit-learn estimator"),
        (b"cimportlib\nimport_module\n(Vsklearn.svm._libsvm\ntR.", "is not a scikit-learn"),
        (dumped(Sealed()), "estimator's methods cannot be read .RuntimeError."),
    ],
)
def test_an_artifact_that_is_not_a_model_does_not_load(raw: bytes, sentence: str) -> None:
    with pytest.raises(ModelLoadError, match=sentence):
        load(raw)


# ── skops ───────────────────────────────────────────────────────────────────────────────


class Own(LogisticRegression):
    """A team's own estimator, which skops cannot know."""


def read(raw: bytes, trusted: list[str] | None = None) -> runtime.Model:
    extra = {} if trusted is None else {"trusted": trusted}
    settings = ModelSettings(name="m", location="/", extra=extra)
    return loading.load(Artefact("model.skops", io.BytesIO(raw)), settings, Settings())


def test_a_skops_file_predicts_as_its_pickle_does() -> None:
    pipeline = make_pipeline(StandardScaler(), CLASSIFIER).fit(X, [0, 1, 1])
    answers = [
        model.estimator.predict_proba(X).tolist()
        for model in (read(skops.dumps(pipeline)), load(dumped(pipeline)))
    ]
    assert answers[0] == answers[1]


def test_untrusted_types_are_listed_and_never_created() -> None:
    raw = skops.dumps(Own().fit(X, [0, 1, 1]))
    with pytest.raises(
        ModelLoadError,
        match=r"^the \.skops file contains untrusted types: test_loading\.Own; add them to ",
    ):
        read(raw)
    assert read(raw, ["test_loading.Own"]).methods


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
    with pytest.raises(
        ModelLoadError, match=r"saved with scikit-learn 1\.2\.3, but this server runs"
    ):
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


def test_another_minor_version_is_refused_by_a_message_that_names_both() -> None:
    with pytest.raises(
        ModelLoadError,
        match=rf"saved with scikit-learn 1\.2\.3, but this server runs {sklearn.__version__}",
    ):
        load(saved_by("1.2.3"))


@pytest.mark.parametrize(
    ("version", "server"),
    [
        (".".join(sklearn.__version__.split(".")[:2]) + ".99", Settings()),
        ("1.2.3", Settings(allow_version_mismatch=True)),
    ],
)
def test_another_patch_version_or_an_allowed_mismatch_is_a_warning(
    version: str, server: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(saved_by(version), server).methods
    assert f"saved with scikit-learn {version}" in caplog.text


def test_an_artifact_that_breaks_for_its_version_is_refused_by_a_message_that_names_both() -> None:
    """A tree of another version breaks before scikit-learn itself warns."""
    raw = dumped(DecisionTreeClassifier().fit(X, [0, 1, 1]))
    here = sklearn.__version__.encode()
    broken = raw.replace(b"sklearn.tree._tree", b"sklearn.tree._gone")
    other = broken.replace(here, b"0" + here[1:])
    with pytest.raises(ModelLoadError, match=r"needs sklearn\.tree\._gone, which the installed"):
        load(broken)
    with pytest.raises(
        ModelLoadError, match=r"saved with scikit-learn 0\.[\d.]+, but this server runs"
    ):
        load(other)
    with pytest.raises(ModelLoadError, match=r"needs sklearn\.tree\._gone, which the installed"):
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


def test_the_version_in_a_compressed_artifact_that_breaks_is_found(tmp_path: Path) -> None:
    raw = dumped(DecisionTreeClassifier().fit(X, [0, 1, 1]))
    installed = sklearn.__version__.encode()
    broken = raw.replace(b"sklearn.tree._tree", b"sklearn.tree._gone")
    other = broken.replace(installed, b"0" + installed[1:])
    for compress in compressors(tmp_path).values():
        with pytest.raises(ModelLoadError, match=r"saved with scikit-learn 0\.[\d.]+, but"):
            load(compress(other))
        with pytest.raises(
            ModelLoadError, match=r"needs sklearn\.tree\._gone, which the installed"
        ):
            load(compress(broken))


def compressors(folder: Path) -> dict[str, Any]:
    """Return, by suffix, a function that compresses bytes as joblib.dump does for that suffix."""
    openers = {
        "z": BinaryZlibFile,
        "gz": BinaryGzipFile,
        "bz2": bz2.BZ2File,
        "xz": lzma.LZMAFile,
        "lzma": functools.partial(lzma.LZMAFile, format=lzma.FORMAT_ALONE),
    }

    def compress(opener: Any, raw: bytes) -> bytes:
        path = folder / "compressed"
        with opener(str(path), "wb") as file:
            file.write(raw)
        return path.read_bytes()

    return {suffix: functools.partial(compress, opener) for suffix, opener in openers.items()}


# ── formats and dependencies ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"\x04\x22\x4d\x18\x64\x40\xa7", "is compressed with lz4, which is not installed"),
        (b"PK\x03\x04\x14\0\0\0", r"is a zip archive instead of a pickle: .* \.skops"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\n<!DOCTYPE html><html></html>", "is an HTML or XML document"),
        (b'{"not": "a pickle"}', "is a JSON document"),
        (dumped(CLASSIFIER)[:100], "is incomplete: its end is missing"),
        (b"\x08\x07\x12\x07pytorch", "cannot be unpickled"),
    ],
)
def test_a_file_that_is_not_a_pickle_is_named_by_its_format(raw: bytes, message: str) -> None:
    with pytest.raises(ModelLoadError, match=f"^the artifact {message}"):
        load(raw)


@pytest.mark.parametrize("suffix", ["z", "gz", "bz2", "xz", "lzma"])
def test_an_incomplete_compressed_artifact_says_so(suffix: str, tmp_path: Path) -> None:
    raw = compressors(tmp_path)[suffix](dumped(CLASSIFIER))
    with pytest.raises(ModelLoadError, match=r"is incomplete|cannot be unpickled"):
        load(raw[: len(raw) // 2])


LIBRARY_ERROR = "libgomp.so.1: cannot open shared object file: No such file or directory"


def _raise_error(error: type[Exception], message: str) -> None:
    raise error(message)


@pytest.mark.parametrize("error", [OSError, ImportError])
def test_a_missing_shared_library_is_named(error: type[Exception]) -> None:
    with pytest.raises(ModelLoadError, match=r"needs the shared library libgomp\.so\.1, which"):
        load(pickle.dumps(_Call(_raise_error, error, LIBRARY_ERROR)))


def test_another_os_error_does_not_show_its_message() -> None:
    with pytest.raises(
        ModelLoadError, match=r"^the artifact cannot be unpickled \(FileNotFoundError\)$"
    ):
        load(b"cbuiltins\nopen\n(V/a/folder/of/the/server\ntR.")


@pytest.mark.parametrize("error", [AttributeError, ImportError])
def test_an_error_without_a_name_shows_none_of_its_message(error: type[Exception]) -> None:
    call = _Call(_raise_error, error, "/a/folder/of/the/server")
    with pytest.raises(
        ModelLoadError, match=rf"^the artifact cannot be unpickled .{error.__name__}.$"
    ) as raised:
        load(pickle.dumps(call))
    assert "folder" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            AttributeError("'SimpleImputer' object has no attribute '_fit_dtype'"),
            "cannot be unpickled: its SimpleImputer has no attribute _fit_dtype; install the",
        ),
        (
            ImportError("cannot import name 'old' from 'scipy.stats' (/a/folder)"),
            r"needs scipy\.stats\.old, which the installed version of scipy does not have",
        ),
        (ModuleNotFoundError("", name="sklearn.externals"), r"needs sklearn\.externals, which the"),
        (ModuleNotFoundError("", name="xgboost.core"), r"needs the Python module xgboost\.core"),
    ],
)
def test_a_library_of_another_version_is_distinguished_from_a_missing_one(
    error: Exception, message: str
) -> None:
    with pytest.raises(ModelLoadError, match=f"^the artifact {message}"):
        load(pickle.dumps(_Call(_raise_this, error.__class__, str(error), vars_of(error))))


def vars_of(error: Exception) -> str | None:
    return error.name if isinstance(error, ImportError) else None


def _raise_this(error: Any, words: str, name: str | None) -> None:
    raise error(words, name=name) if name else error(words)


# ── scripts and other Pythons ───────────────────────────────────────────────────────────


SCRIPT = """
import joblib, sys
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
def double(X):
    return 2 * X
class Clip(StandardScaler):
    pass
def main():
    pass
step = {"function": FunctionTransformer(double), "class": Clip(), "name": FunctionTransformer(main)}
joblib.dump(make_pipeline(step[sys.argv[1]]).fit([[1.0]]), sys.argv[2])
"""


@pytest.mark.parametrize(
    ("kind", "name"), [("function", "double"), ("class", "Clip"), ("name", "main")]
)
def test_an_object_of_a_script_is_refused_with_what_to_do(
    kind: str, name: str, tmp_path: Path
) -> None:
    script, path = tmp_path / "train.py", tmp_path / "model.joblib"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, script, kind, path], check=True)
    with pytest.raises(
        ModelLoadError,
        match=rf"^the artifact needs {name}, which was defined in the script or notebook",
    ):
        load(path.read_bytes())


def test_an_object_of_a_script_inside_a_wrapper_is_refused_alike() -> None:
    from joblib.externals.loky.cloudpickle_wrapper import _reconstruct_wrapper

    inner = b"c__main__\nno_such_name\n."
    raw = pickle.dumps(_Call(_reconstruct_wrapper, inner, False))
    with pytest.raises(ModelLoadError, match="needs no_such_name, which was defined in the script"):
        load(raw)


PICKLES = ROOT / "tests" / "pickles"
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.mark.parametrize(
    ("version", "named"),
    [
        ("3.8", "3.10 or older"),
        ("3.9", "3.10 or older"),
        ("3.10", "3.10 or older"),
        ("3.11", "3.11"),
        ("3.12", "3.12"),
        ("3.13", "3.13"),
    ],
)
def test_functions_that_cloudpickle_saved_under_another_python_are_refused(
    version: str, named: str
) -> None:
    raw = (PICKLES / f"cloudpickle-python{version}.bin").read_bytes()
    if version == RUNNING:
        assert [[0.0, 1.0]] == load(raw).estimator.transform([[0.0, math.expm1(1.0)]])
        return
    # a short function may be the same in 3.11 and 3.12: both are named then
    message = f"cloudpickle saved under .*Python {named}.*, but this server runs Python {RUNNING}: "
    with pytest.raises(ModelLoadError, match=message):
        load(raw)


def test_python_versions_are_distinguished_by_their_opcodes() -> None:
    """The running interpreter's entry of the table is what its `opcode` module says."""
    resume, caches = pickled_code.INSTRUCTION_SETS[RUNNING]
    assert {n: count for n, count in pickled_code.count_cache_entries().items() if count} == dict(
        caches
    )
    code = pickled_code.has_instruction_set.__code__.co_code
    assert pickled_code.has_instruction_set(code, resume, caches)


def test_functions_that_cloudpickle_saved_under_this_python_load() -> None:
    offset = 2.0
    pipeline = make_pipeline(FunctionTransformer(lambda values: values + offset), StandardScaler())
    raw = cloudpickle.dumps(pipeline.fit(X))
    assert np.array_equal(pipeline.transform(X), load(raw).estimator.transform(X))
    assert cloudpickle.loads(cloudpickle.dumps(lambda: offset))() == offset
