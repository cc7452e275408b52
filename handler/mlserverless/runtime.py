"""The scikit-learn runtime: load an estimator, choose its methods, call them, describe it.

Source of the behaviour: mlserver_sklearn 1.7.1. joblib and scikit-learn are imported by
the first load; scikit-learn by the pickle itself.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import re
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from types import MappingProxyType, ModuleType
from typing import Any, BinaryIO, Final

from mlserverless import codec, metadata, prediction, wire
from mlserverless.errors import BadRequest, ModelLoadError, PredictionError, one_line, quote
from mlserverless.imports import import_sklearn
from mlserverless.metadata import InputSchema
from mlserverless.protocol import (
    InferenceRequest,
    InferenceResponse,
    RequestOutput,
    TensorMetadata,
)
from mlserverless.repository import Artefact
from mlserverless.settings import ModelSettings, Settings

log = logging.getLogger(__name__)

METHODS: Final = (
    "predict",
    "predict_proba",
    "predict_log_proba",
    "decision_function",
    "transform",
    "score_samples",
)
# What an estimator raises when it is the data of this request that it cannot take.
_REFUSALS: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
# With those that say that the estimator's code cannot run, whatever the data is.
_EXPLAINED: Final = (*_REFUSALS, ImportError, NameError, OSError)
_NO_ARGUMENTS: Final[Mapping[str, Any]] = MappingProxyType({})
# PatchExtractor returns several patches for each image.
_ROW_CHANGING_ESTIMATORS: Final = ("PatchExtractor",)
_SENTENCE_LIMIT: Final = 1000  # characters of an estimator's own words
_VERSION: Final = "_sklearn_version"  # where an estimator's state keeps it
# the same in the bytes of a pickle: the key, how it is remembered, a string and its length
_SPELLED: Final = re.compile(
    rb"_sklearn_version(?:\x94|q.|r.{4})?(?:\x8c.|X.{4})(\d+\.\d+(?:\.\d+)?(?:\.?(?:a|b|rc|dev|post)\d+)?)",
    re.DOTALL,
)
_CHUNK: Final = 1 << 20  # bytes of an artefact at a time
_OVERLAP: Final = 64  # bytes of a chunk that what is looked for may begin in
_QUOTED: Final = re.compile(r"'([\w.<>]+)'")
_NAMED: Final = 20  # untrusted types that an error lists


class Model:
    """One estimator in memory, with the settings that it was loaded by.

    `fault` is the message of the last PredictionError; None once a prediction has succeeded.
    """

    def __init__(self, estimator: Any, settings: ModelSettings, body_limit: int) -> None:
        self.estimator = estimator
        self.settings = settings
        self.body_limit = body_limit
        names: tuple[str, ...] = METHODS
        own = settings.predict_fn
        if own is not None and own not in METHODS and not own.startswith("_"):
            names = (*METHODS, own)
        # asked once: scikit-learn answers hasattr by running checks
        self.methods = tuple(name for name in names if callable(getattr(estimator, name, None)))
        self.fault: str | None = None
        changes_rows = type(estimator).__name__ in _ROW_CHANGING_ESTIMATORS
        self._row_methods = () if changes_rows else METHODS
        self._method_kwargs = settings.method_kwargs
        declared = settings.transform_output
        if declared is None:
            self._transform_output, self._unclear = prediction.find_transform_output(estimator)
        else:
            self._transform_output = None if declared == "default" else declared
            self._unclear = False

    def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Predict for one request.

        Raises BadRequest for what the client can correct, PredictionError for a fault of the
        model, which `fault` then holds.
        """
        requested = self._asked(request)
        data = codec.decode(request, self.settings, self.body_limit, self)
        rows = codec.count_rows(data)
        results = []
        for output in requested:
            if output.parameters:
                value = self._call_with_parameters(output, data)
            else:
                value = self._call(output.name, data)
            if not (rows is None or codec.has_rows(value, rows)):
                value = self._fit_rows(output.name, value, request, rows)
            results.append((output, value))
        if self.fault is not None:
            self.fault = None
        return InferenceResponse(
            model_name=self.settings.name,
            model_version=self.settings.version,
            id=str(uuid.uuid4()) if request.id is None else request.id,
            outputs=codec.encode(results, request, self.settings),
        )

    def _asked(self, request: InferenceRequest) -> Sequence[RequestOutput]:
        if not request.outputs:
            return (RequestOutput(self._default()),)
        for output in request.outputs:
            self._offered(output.name)
        return request.outputs

    def _default(self) -> str:
        own = self.settings.predict_fn
        if own is not None:
            return self._offered(own)
        if "predict" not in self.methods and "transform" in self.methods:
            return "transform"
        return self._offered("predict")

    def _offered(self, name: str) -> str:
        if name in self.methods:
            return name
        offer = ", ".join(self.methods) or "no output at all"
        raise BadRequest(f"output {quote(name)} is not to be had; this model offers {offer}")

    def _call_with_parameters(self, output: RequestOutput, data: Any) -> Any:
        """Call the method of an output that has parameters: keyword arguments, classification."""
        name, count = output.name, None
        if output.parameters.get(prediction.CLASSIFICATION) is not None:
            count = prediction.read_count(output)
            name = prediction.choose_scores(name, self.methods)
        arguments = _NO_ARGUMENTS
        if name in self._method_kwargs:
            allowed = self._method_kwargs[name]
            arguments = prediction.read_keyword_arguments(output, allowed)
        value = self._call(name, data, arguments)
        if count is not None:
            return prediction.classify(name, value, self.estimator, count)
        return value

    def _call(self, name: str, data: Any, arguments: Mapping[str, Any] = _NO_ARGUMENTS) -> Any:
        try:
            if self._transform_output is None:
                return getattr(self.estimator, name)(data, **arguments)
            return self._call_in(self._transform_output, name, data, arguments)
        except _EXPLAINED as error:
            fault = prediction.describe_fault(error)
            if fault is None and self._unclear and self._needs_pandas(name, data, arguments):
                fault = (
                    "its steps need DataFrames of each other; "
                    'set parameters.extra.transform_output to "pandas"'
                )
            if fault is not None:
                raise self._failed(fault) from error
            if not isinstance(error, _REFUSALS):
                raise
            why = self._why(error, data)
            raise BadRequest(f"the model cannot take this data: {why}") from error
        except BaseException as error:
            # neither what stops a process nor what ends a generator is a request's business
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                raise
            raise RuntimeError().with_traceback(error.__traceback__) from None

    def _call_in(self, container: str, name: str, data: Any, arguments: Mapping[str, Any]) -> Any:
        """Call a method while scikit-learn's transformers return `container`, in this thread."""
        from sklearn import config_context  # noqa: PLC0415 - INIT must not import it

        if not prediction.is_installed(container):
            raise self._failed(
                f"parameters.extra.transform_output is {container}, which is not installed here"
            )
        with config_context(transform_output=container):
            return getattr(self.estimator, name)(data, **arguments)

    def _needs_pandas(self, name: str, data: Any, arguments: Mapping[str, Any]) -> bool:
        """Return whether a call that failed succeeds if transformers return DataFrames."""
        if not hasattr(data, "columns"):  # an array for a model of DataFrames is the client's error
            return False
        try:
            self._call_in("pandas", name, data, arguments)
        except Exception:  # noqa: BLE001 - an estimator may raise anything
            return False
        return True

    def _failed(self, reason: str) -> PredictionError:
        """Note a fault of the model and return the error to raise."""
        self.fault = f"Model {quote(self.settings.name)} cannot predict: {reason}"
        return PredictionError(self.fault)

    def _why(self, error: Exception, data: Any) -> str:
        """Return why the estimator refused `data`, in its own message unless ours says more."""
        own = one_line(error)[:_SENTENCE_LIMIT] or type(error).__name__
        shape = getattr(data, "shape", None)
        if shape is not None and len(shape) < 2 and own.startswith("Expected 2D array"):
            width = getattr(self.estimator, "n_features_in_", "columns")
            return f"its shape is {list(shape)}; this model takes [rows, {width}]"
        # text vectorizers call str's methods on what they take for documents
        if isinstance(error, AttributeError) and shape and self.schema.takes_documents:
            own += '; this model takes a list of strings: set content_type to "str"'
        return own

    def _fit_rows(self, name: str, value: Any, request: InferenceRequest, rows: int) -> Any:
        """Return a result that has not one row for each of `rows`, if that is right.

        Raises PredictionError or BadRequest otherwise.
        """
        if name not in self._row_methods:  # the operator's own predict_fn
            return value
        if rows == 1 and getattr(value, "ndim", 0) == 1:
            return value.reshape(1, -1)  # SparsePCA returns [k] and not [1, k] for one row
        problem = f"{name} does not return one row for each of the {rows} rows of the request"
        if any(tensor.datatype == "BYTES" for tensor in request.inputs):
            raise BadRequest(
                f"{problem}; for a model that takes a list of strings, "
                'send one input and set content_type to "str"'
            )
        raise self._failed(problem)

    # ── what it says of itself ──────────────────────────────────────────────────────────

    @cached_property
    def schema(self) -> InputSchema:
        """What the estimator takes, read from its attributes at the first use."""
        return metadata.describe_inputs(self.estimator)

    @cached_property
    def unused_columns(self) -> frozenset[str]:
        """The columns of the training data that the estimator drops at its input."""
        names = [column.name for column in self.schema.columns]
        return prediction.find_unused_columns(self.estimator, names)

    def example(self) -> dict[str, Any] | None:
        """Return a request that this model answers; None if none was found. Never raises."""
        known = {column.name: column.example for column in self.schema.columns}
        inputs = []
        for tensor in self.inputs():
            shape = [1 if length < 0 else length for length in tensor.shape]
            value = known.get(tensor.name, "text" if tensor.datatype == "BYTES" else 0)
            data = [value] * math.prod(shape)
            named = {"name": tensor.name, "shape": shape, "datatype": tensor.datatype}
            inputs.append({**named, "parameters": dict(tensor.parameters), "data": data})
        parameters = {}
        if self.settings.content_type is None and (len(inputs) > 1 or self.schema.has_names):
            parameters["content_type"] = "pd"
        example = {"parameters": parameters, "inputs": inputs}
        try:
            self.infer(wire.decode(wire.encode_json(example)))
        except Exception:  # noqa: BLE001 - an estimator may raise anything for a made-up row
            return None
        return example

    def inputs(self) -> tuple[TensorMetadata, ...]:
        """Return what it takes: as declared, else as the estimator remembers its training data."""
        if self.settings.inputs:
            return self.settings.inputs
        features = getattr(self.estimator, "n_features_in_", None)
        return metadata.input_tensors(self.schema, features)

    def outputs(self) -> tuple[TensorMetadata, ...]:
        """Return what may be requested: as declared, else one tensor per method."""
        return self.settings.outputs or metadata.output_tensors(self.estimator, self.methods)


# ── loading ─────────────────────────────────────────────────────────────────────────────


def load(artefact: Artefact, settings: ModelSettings, server: Settings) -> Model:
    """Unpickle a model once its digest is checked. Raises ModelLoadError with the reason.

    A `.skops` file is never unpickled: what it may make is what skops or the owner trusts.
    """
    with artefact.file as file, _versions() as saved_by:
        checked = _checked(file, settings.sha256, server.require_sha256)
        try:
            if artefact.name.endswith(".skops"):
                estimator = _read_skops(checked, settings.trusted)
            else:
                estimator = _unpickle(checked)
        except ModelLoadError:  # another version says more than what it broke
            _check_versions(saved_by | _spelled_versions(checked), server.allow_version_mismatch)
            raise
        _check_versions(saved_by, server.allow_version_mismatch)
    try:
        is_one = callable(getattr(estimator, "fit", None))
        if is_one and not isinstance(estimator, type | ModuleType):
            return Model(estimator, settings, server.max_body_bytes)
    except Exception as error:
        why = type(error).__name__
        raise ModelLoadError(f"its artefact's estimator cannot be looked into ({why})") from error
    raise ModelLoadError("its artefact holds no scikit-learn estimator")


def _checked(file: BinaryIO, expected: str | None, required: bool) -> BinaryIO:
    """What may be unpickled: with a digest, the very bytes that have it, whoever writes later."""
    if expected is None:
        if required:
            raise ModelLoadError("it has no parameters.extra.sha256, which this server requires")
        return file
    raw = file.read()
    if hashlib.sha256(raw).hexdigest() != expected.lower():
        raise ModelLoadError("its artefact does not have the sha256 that its settings promise")
    return io.BytesIO(raw)


def _unpickle(file: Any) -> Any:
    import joblib  # noqa: PLC0415 - the import that a cold start is made of

    try:
        return joblib.load(file)
    except (ImportError, AttributeError) as error:
        raise _not_installed(error) from error
    except MemoryError:
        raise
    except BaseException as error:
        raise ModelLoadError(
            f"its artefact cannot be unpickled ({type(error).__name__})"
        ) from error


def _not_installed(error: Exception) -> ModelLoadError:
    # of the sentence only what is missing: the rest may be a path of this server
    named = getattr(error, "name", None) or (_QUOTED.findall(str(error)) or ["something"])[0]
    return ModelLoadError(f"its artefact needs {quote(named)}, which is not installed here")


def _read_skops(file: Any, trusted: Sequence[str]) -> Any:
    from skops import io as skops  # noqa: PLC0415 - most models are pickles

    try:
        raw = file.read()
        strange = [name for name in skops.get_untrusted_types(data=raw) if name not in trusted]
        if not strange:
            return skops.loads(raw, trusted=list(trusted))
    except MemoryError:
        raise
    except BaseException as error:
        raise ModelLoadError(
            f"its artefact cannot be read as skops ({type(error).__name__})"
        ) from error
    names = ", ".join(map(quote, strange[:_NAMED])) + (", …" if strange[_NAMED:] else "")
    raise ModelLoadError(f"its artefact has types that parameters.extra.trusted does not: {names}")


_loading = threading.local()  # `saved_by`: the versions that this thread's estimators come from


@contextmanager
def _versions() -> Iterator[set[str]]:
    """The versions of scikit-learn that saved what is unpickled within the block."""
    try:
        _note_versions()
    except ImportError as error:
        raise _not_installed(error) from error
    _loading.saved_by = found = set[str]()
    try:
        yield found
    finally:
        del _loading.saved_by


@cache
def _note_versions() -> None:
    """Have each estimator note its version where it would warn of another one than this.

    Warnings are the process's: what any other thread does with them decides who hears of one.
    """
    import_sklearn()
    from sklearn.base import BaseEstimator  # noqa: PLC0415 - as joblib above

    original = BaseEstimator.__setstate__

    def noted(estimator: Any, state: Any) -> None:
        saved_by = getattr(_loading, "saved_by", None)
        if saved_by is not None and type(estimator).__module__.startswith("sklearn."):
            saved_by.add(str(state.get(_VERSION, "pre-0.18")))
            state[_VERSION] = sys.modules["sklearn"].__version__
        original(estimator, state)

    BaseEstimator.__setstate__ = noted


def _spelled_versions(file: BinaryIO) -> set[str]:
    """The versions that a pickle spells out, wherever it breaks, unless it is compressed."""
    file.seek(0)
    found, before = set[str](), b""
    while chunk := file.read(_CHUNK):
        found.update(match[1].decode() for match in _SPELLED.finditer(before + chunk))
        before = chunk[-_OVERLAP:]
    return found


def _check_versions(saved_by: Iterable[str], allow_mismatch: bool) -> None:
    """Another minor version refuses, another patch is only said."""
    here = sys.modules["sklearn"].__version__
    for version in sorted(saved_by):
        sentence = (
            f"its artefact was saved by scikit-learn {quote(version)}, this server has {here}"
        )
        if not allow_mismatch and version.split(".")[:2] != here.split(".")[:2]:
            raise ModelLoadError(sentence)
        if version != here:
            log.warning(sentence)
