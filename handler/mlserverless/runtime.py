"""The scikit-learn runtime: load an estimator, choose its methods, call them, describe it.

Source of the behaviour: mlserver_sklearn 1.7.1. joblib and scikit-learn are imported by
the first load; scikit-learn by the pickle itself.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
import uuid
import warnings
from collections.abc import Sequence
from typing import Any, Final

from mlserverless import codec, wire
from mlserverless.errors import BadRequest, MLServerlessError, ModelLoadError, one_line, quote
from mlserverless.imports import import_sklearn
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
_SENTENCE_LIMIT: Final = 1000  # characters of an estimator's own words
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

    # ── what it says of itself ──────────────────────────────────────────────────────────

    def example(self) -> dict[str, Any] | None:
        """A request that this model answers, or None where none was found by trying."""
        known = _known_values(self.estimator)
        inputs = []
        for tensor in self.inputs():
            shape = [1 if length < 0 else length for length in tensor.shape]
            value = known.get(tensor.name, "text" if tensor.datatype == "BYTES" else 0)
            data = [value] * math.prod(shape)
            named = {"name": tensor.name, "shape": shape, "datatype": tensor.datatype}
            inputs.append({**named, "parameters": dict(tensor.parameters), "data": data})
        parameters = {}
        if self.settings.content_type is None and (len(inputs) > 1 or inputs[0]["name"] in known):
            parameters["content_type"] = "pd"
        example = {"parameters": parameters, "inputs": inputs}
        try:
            self.infer(wire.decode(wire.encode_json(example)))
        except MLServerlessError:
            return None
        return example

    def inputs(self) -> tuple[TensorMetadata, ...]:
        """What it takes: as declared, else as the estimator remembers its training data."""
        if self.settings.inputs:
            return self.settings.inputs
        names = getattr(self.estimator, "feature_names_in_", None)
        if names is not None:
            known = _known_values(self.estimator)
            return tuple(
                _column(str(name), text=isinstance(known.get(name), str)) for name in names
            )
        features = getattr(self.estimator, "n_features_in_", None)
        if features is None and _takes_documents(self.estimator):
            return (_column("input-0", text=True),)
        return (TensorMetadata("input-0", "FP64", (-1, features or -1), {"content_type": "np"}),)

    def outputs(self) -> tuple[TensorMetadata, ...]:
        """What it may be asked for: as declared, else one tensor a method."""
        if self.settings.outputs:
            return self.settings.outputs
        classes = getattr(self.estimator, "classes_", None)
        return tuple(_output(name, classes) for name in self.methods)


def _column(name: str, text: bool) -> TensorMetadata:
    if text:
        return TensorMetadata(name, "BYTES", (-1, 1), {"content_type": "str"})
    return TensorMetadata(name, "FP64", (-1, 1))


def _output(name: str, classes: Any) -> TensorMetadata:
    several = isinstance(classes, list)  # a multi-output classifier has one list a target
    datatype, width = "FP64", -1
    if name == "predict":
        width = len(classes) if several else 1
        if classes is not None:
            dtype = (classes[0] if several else classes).dtype
            datatype = "BYTES" if dtype.kind in "USO" else codec.datatype(dtype)
    elif name in ("predict_proba", "predict_log_proba") and classes is not None and not several:
        width = len(classes)
    elif name == "score_samples":
        width = 1
    return TensorMetadata(name, datatype, (-1, width), {"content_type": "np"})


def _first_step(estimator: Any) -> Any:
    """What sees the raw input: an estimator, or the first step of a pipeline."""
    return estimator.steps[0][1] if getattr(estimator, "steps", None) else estimator


def _takes_documents(estimator: Any) -> bool:
    return hasattr(_first_step(estimator), "build_analyzer")


def _known_values(estimator: Any) -> dict[Any, Any]:
    """A value that was seen in training, for each column of categories."""
    step = _first_step(estimator)
    encoders = [(part, columns) for _, part, columns in getattr(step, "transformers_", ())]
    encoders.append((step, getattr(step, "feature_names_in_", ())))
    return {
        column: categories[0].item() if hasattr(categories[0], "item") else categories[0]
        for part, columns in encoders
        for column, categories in zip(columns, getattr(part, "categories_", ()), strict=False)
    }


# ── loading ─────────────────────────────────────────────────────────────────────────────


def load(artefact: Artefact, settings: ModelSettings, server: Settings) -> Model:
    """Unpickle a model once its digest is checked. Raises ModelLoadError with the reason.

    A `.skops` file is never unpickled: what it may make is what skops or the owner trusts.
    """
    with artefact.file as file:
        _check_digest(file, settings.sha256, server.require_sha256)
        file.seek(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if artefact.name.endswith(".skops"):
                estimator = _read_skops(file, settings.trusted)
            else:
                estimator = _unpickle(file)
    for warning in caught:
        _check_versions(warning.message, server.allow_version_mismatch)
    if isinstance(estimator, type) or not hasattr(estimator, "fit"):
        raise ModelLoadError("its artefact holds no scikit-learn estimator")
    return Model(estimator, settings, server.max_body_bytes)


def _check_digest(file: Any, expected: str | None, required: bool) -> None:
    if expected is None:
        if required:
            raise ModelLoadError("it has no parameters.extra.sha256, which this server requires")
        return
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        raise ModelLoadError("its artefact does not have the sha256 that its settings promise")


def _unpickle(file: Any) -> Any:
    import joblib  # noqa: PLC0415 - the import that a cold start is made of

    try:
        import_sklearn()
        return joblib.load(file)
    except (ImportError, AttributeError) as error:
        raise ModelLoadError(
            f"its artefact needs what is not installed here: {one_line(error)}"
        ) from error
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelLoadError(
            f"its artefact cannot be unpickled ({type(error).__name__})"
        ) from error


def _read_skops(file: Any, trusted: Sequence[str]) -> Any:
    import_sklearn()
    from skops import io as skops  # noqa: PLC0415 - most models are pickles

    try:
        raw = file.read()
        strange = [name for name in skops.get_untrusted_types(data=raw) if name not in trusted]
        if not strange:
            return skops.loads(raw, trusted=list(trusted))
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelLoadError(
            f"its artefact cannot be read as skops ({type(error).__name__})"
        ) from error
    names = ", ".join(map(quote, strange[:_NAMED])) + (", …" if strange[_NAMED:] else "")
    raise ModelLoadError(f"its artefact has types that parameters.extra.trusted does not: {names}")


def _check_versions(message: Any, allow_mismatch: bool) -> None:
    """scikit-learn's own warning of another version: minor refuses, patch is only said."""
    saved = getattr(message, "original_sklearn_version", None)
    if saved is None:
        return
    here = sys.modules["sklearn"].__version__
    sentence = f"its artefact was saved by scikit-learn {saved}, this server has {here}"
    if not allow_mismatch and str(saved).split(".")[:2] != here.split(".")[:2]:
        raise ModelLoadError(sentence)
    log.warning(sentence)
