"""The scikit-learn runtime: choose an estimator's methods, call them, describe it.

Source of the behaviour: mlserver_sklearn 1.7.1.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from mlserverless import codec, wire
from mlserverless.errors import BadRequest, one_line, quote
from mlserverless.protocol import (
    InferenceRequest,
    InferenceResponse,
    RequestOutput,
    TensorMetadata,
)
from mlserverless.settings import ModelSettings

if TYPE_CHECKING:
    from mlserverless.examples import ExampleFinder
    from mlserverless.metadata import InputSchema

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
        """Return a request that this model has just answered; None if none was found in time.

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
