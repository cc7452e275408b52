"""The scikit-learn runtime: load an estimator, choose its methods, call them, describe it.

Source of the behaviour: mlserver_sklearn 1.7.1. joblib and scikit-learn are imported by
the first load; scikit-learn by the pickle itself.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from mlserverless import codec, wire
from mlserverless.errors import BadRequest, ModelLoadError, one_line, quote
from mlserverless.imports import import_sklearn
from mlserverless.protocol import (
    InferenceRequest,
    InferenceResponse,
    RequestOutput,
    TensorMetadata,
)
from mlserverless.repository import Artefact
from mlserverless.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from mlserverless.examples import ExampleFinder
    from mlserverless.metadata import InputSchema

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
    """One estimator in memory, with the settings that it was loaded by."""

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

    def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Answer one request. Raises BadRequest for what the client can mend."""
        asked = self._asked(request)
        data = codec.decode(request, self.settings, self.body_limit)
        results = [(output, self._call(output.name, data)) for output in asked]
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

    def _call(self, name: str, data: Any) -> Any:
        try:
            return getattr(self.estimator, name)(data)
        except _REFUSALS as error:
            sentence = one_line(error)[:_SENTENCE_LIMIT] or type(error).__name__
            raise BadRequest(f"the model cannot take this data: {sentence}") from error
        except BaseException as error:
            # neither what stops a process nor what ends a generator is a request's business
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                raise
            raise RuntimeError().with_traceback(error.__traceback__) from None

    # ── what it says of itself ──────────────────────────────────────────────────────────

    @cached_property
    def schema(self) -> InputSchema:
        """What the estimator takes, read from its attributes at the first use."""
        from mlserverless.metadata import describe_inputs  # noqa: PLC0415 - arrays need none

        return describe_inputs(self.estimator)

    def example(self) -> dict[str, Any] | None:
        """Return a request that this model has just accepted; None if none was found in time.

        Predicts with made-up rows on a thread of its own; see examples.EXAMPLE_SECONDS. Never
        raises, whatever the estimator raises.
        """
        return self._example_finder.find()

    @cached_property
    def _example_finder(self) -> ExampleFinder:
        from mlserverless.examples import ExampleFinder  # noqa: PLC0415 - predictions need none
        from mlserverless.metadata import input_tensors  # noqa: PLC0415 - as above

        tensors = self.settings.inputs or input_tensors(self.schema, list_all=True)
        has_default = self.settings.predict_fn or {"predict", "transform"} & set(self.methods)
        output = None if has_default or not self.methods else self.methods[0]
        content_type = self.settings.content_type
        return ExampleFinder(self.schema, tensors, content_type, output, self._attempt)

    def _attempt(self, example: dict[str, Any]) -> None:
        self.infer(wire.decode(wire.encode_json(example)))

    def inputs(self) -> tuple[TensorMetadata, ...]:
        """Return what it takes: as declared, else as the estimator remembers its training data."""
        from mlserverless.metadata import input_tensors  # noqa: PLC0415 - predictions need none

        return self.settings.inputs or input_tensors(self.schema)

    def outputs(self) -> tuple[TensorMetadata, ...]:
        """Return what may be requested: as declared, else one tensor per method."""
        from mlserverless.outputs import output_tensors  # noqa: PLC0415 - predictions need none

        return self.settings.outputs or output_tensors(self.estimator, self.methods)


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
