"""The scikit-learn runtime: choose an estimator's methods, call them, describe it.

Source of the behaviour: mlserver_sklearn 1.7.1.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from mlserverless import codec, prediction, wire
from mlserverless.errors import BadRequest, PredictionError, one_line, quote
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
# Also the errors of code that cannot run with any data.
_EXPLAINED: Final = (*_REFUSALS, ImportError, NameError, OSError)
_NO_ARGUMENTS: Final[Mapping[str, Any]] = MappingProxyType({})
# PatchExtractor returns several patches for each image.
_ROW_CHANGING_ESTIMATORS: Final = ("PatchExtractor",)
_SENTENCE_LIMIT: Final = 1000  # characters of an estimator's own words


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
            self._transform_output, self._is_container_unclear = prediction.find_transform_output(
                estimator
            )
        else:
            self._transform_output = None if declared == "default" else declared
            self._is_container_unclear = False

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
            return self._call_with_container(self._transform_output, name, data, arguments)
        except _EXPLAINED as error:
            fault = prediction.describe_fault(error)
            if (
                fault is None
                and self._is_container_unclear
                and self._needs_pandas(name, data, arguments)
            ):
                fault = (
                    "its steps need DataFrames of each other; "
                    'set parameters.extra.transform_output to "pandas"'
                )
            if fault is not None:
                raise self._record_fault(fault) from error
            if not isinstance(error, _REFUSALS):
                raise
            why = self._why(error, data)
            raise BadRequest(f"the model cannot take this data: {why}") from error
        except BaseException as error:
            is_by_request = arguments or codec.count_rows(data) == 0
            if is_by_request and isinstance(error, RuntimeError | StopIteration):
                # two keyword arguments that exclude one another; a vectorizer's first of no rows
                why = self._why(error, data) if arguments else "it has no rows"
                raise BadRequest(f"the model cannot take this data: {why}") from error
            # neither what stops a process nor what ends a generator is a request's business
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                raise
            raise RuntimeError().with_traceback(error.__traceback__) from None

    def _call_with_container(
        self, container: str, name: str, data: Any, arguments: Mapping[str, Any]
    ) -> Any:
        """Call a method while scikit-learn's transformers return `container`, in this thread."""
        from sklearn import config_context  # noqa: PLC0415 - INIT must not import it

        if not prediction.is_installed(container):
            raise self._record_fault(
                f"parameters.extra.transform_output is {container}, which is not installed here"
            )
        with config_context(transform_output=container):
            return getattr(self.estimator, name)(data, **arguments)

    def _needs_pandas(self, name: str, data: Any, arguments: Mapping[str, Any]) -> bool:
        """Return whether a call that failed succeeds if transformers return DataFrames."""
        if not hasattr(data, "columns"):  # an array for a model of DataFrames is the client's error
            return False
        try:
            self._call_with_container("pandas", name, data, arguments)
        except Exception:  # noqa: BLE001 - an estimator may raise anything
            return False
        return True

    def _record_fault(self, reason: str) -> PredictionError:
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
        """Return a result whose rows do not match the request, in the right shape if it is valid.

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
        raise self._record_fault(problem)

    # ── what it says of itself ──────────────────────────────────────────────────────────

    @cached_property
    def schema(self) -> InputSchema:
        """What the estimator takes, read from its attributes at the first use."""
        from mlserverless.metadata import describe_inputs  # noqa: PLC0415 - arrays need none

        return describe_inputs(self.estimator)

    @cached_property
    def unused_columns(self) -> frozenset[str]:
        """The columns of the training data that the estimator drops at its input."""
        names = [column.name for column in self.schema.columns]
        return prediction.find_unused_columns(self.estimator, names)

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
