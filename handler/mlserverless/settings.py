"""What the owner decided: `MLSERVER_*` variables, `settings.json`, `model-settings.json`.

Names, types and precedence are MLServer's (a file wins over the environment, the
environment over the default); fields that mean nothing here are ignored, not refused.
Our own settings are `MLSERVERLESS_*`. This is the only room that reads the environment.
Source: https://mlserver.readthedocs.io/en/stable/reference/settings.html
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson

from mlserverless import __version__
from mlserverless.errors import MLServerlessError, SettingsError, quote
from mlserverless.protocol import DATATYPES, JSONObject, TensorMetadata

T = TypeVar("T")

Listing = Mapping[str, Any]  # of each object its stamp

SETTINGS_FILE: Final = "settings.json"
MODEL_SETTINGS_FILE: Final = "model-settings.json"
IMPLEMENTATION: Final = "mlserver_sklearn.SKLearnModel"
# the class by its package, and by the module that defines it
IMPLEMENTATIONS: Final = (IMPLEMENTATION, "mlserver_sklearn.sklearn.SKLearnModel")

CONTROL_MODES: Final = ("none", "explicit", "poll")
TRANSFORM_OUTPUTS: Final = ("default", "pandas", "polars")  # of sklearn.set_config
# Lambda's names of levels, as Python's logging has them
LEVELS: Final = dict.fromkeys(("DEBUG", "TRACE"), "DEBUG") | {
    "INFO": "INFO",
    **dict.fromkeys(("WARNING", "WARN"), "WARNING"),
    "ERROR": "ERROR",
    **dict.fromkeys(("CRITICAL", "FATAL"), "CRITICAL"),
}

_TRACE: Final = re.compile(r"Root=(1-[0-9a-f]{8}-[0-9a-f]{24})(?:;|$)")

_TRUE = frozenset({"true", "1", "yes", "on", "t", "y"})
_FALSE = frozenset({"false", "0", "no", "off", "f", "n"})


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"{name} must be a string")
    return value


def _optional_text(name: str, value: object) -> str | None:
    return None if value is None else _text(name, value)


def _truth(name: str, value: object) -> bool:
    word = str(value).lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise SettingsError(f"{name} must be true or false")


def _whole(name: str, value: object) -> int:
    if isinstance(value, int | str) and not isinstance(value, bool):
        try:
            number = int(value)
        except ValueError:
            pass
        else:
            if number >= 0:
                return number
    raise SettingsError(f"{name} must be a whole number")


def _mode(name: str, value: object) -> str:
    if value not in CONTROL_MODES:
        raise SettingsError(f"{name} must be one of {', '.join(CONTROL_MODES)}")
    return _text(name, value)


def _level(name: str, value: object) -> str:
    level = LEVELS.get(str(value).upper())
    if level is None:
        raise SettingsError(f"{name} must be one of {', '.join(LEVELS)}")
    return level


def _pattern(name: str, value: object) -> str:
    try:
        re.compile(pattern := _text(name, value))
    except re.error as error:
        raise SettingsError(f"{name} is not a regular expression: {error}") from error
    return pattern


def _cors(name: str, value: object) -> JSONObject | None:
    """Check MLServer's CORS settings; return those that are set, or None if CORS is off."""
    if isinstance(value, str):  # of the environment
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise SettingsError(f"{name} is not valid JSON: {error}") from error
    if value is None:
        return None
    return {
        field_name: CORS_FIELDS[field_name](f"{name}.{field_name}", field_value)
        for field_name, field_value in _mapping(name, value).items()
        if field_name in CORS_FIELDS and field_value is not None
    }


def _setting(default: Any, read: Callable[[str, object], Any], variable: str) -> Any:
    return field(default=default, metadata={"read": read, "variable": variable})


@dataclass(frozen=True, slots=True)
class Settings:
    """The server's own settings; each field knows its environment variable."""

    model_repository_root: str = _setting(".", _text, "MLSERVER_MODEL_REPOSITORY_ROOT")
    load_models_at_startup: bool = _setting(False, _truth, "MLSERVER_LOAD_MODELS_AT_STARTUP")
    server_name: str = _setting("mlserverless", _text, "MLSERVER_SERVER_NAME")
    server_version: str = _setting(__version__, _text, "MLSERVER_SERVER_VERSION")
    host: str = _setting("127.0.0.1", _text, "MLSERVER_HOST")
    http_port: int = _setting(8080, _whole, "MLSERVER_HTTP_PORT")
    root_path: str = _setting("", _text, "MLSERVER_ROOT_PATH")
    debug: bool = _setting(False, _truth, "MLSERVER_DEBUG")
    gzip_enabled: bool = _setting(True, _truth, "MLSERVER_GZIP_ENABLED")
    cors_settings: Mapping[str, Any] | None = _setting(None, _cors, "MLSERVER_CORS_SETTINGS")
    model_control_mode: str = _setting("none", _mode, "MLSERVERLESS_MODEL_CONTROL_MODE")
    poll_seconds: int = _setting(30, _whole, "MLSERVERLESS_POLL_SECONDS")
    require_sha256: bool = _setting(False, _truth, "MLSERVERLESS_REQUIRE_SHA256")
    allow_version_mismatch: bool = _setting(
        False, _truth, "MLSERVERLESS_ALLOW_SKLEARN_VERSION_MISMATCH"
    )
    max_body_bytes: int = _setting(16 * 1024 * 1024, _whole, "MLSERVERLESS_MAX_BODY_BYTES")
    max_model_bytes: int = _setting(0, _whole, "MLSERVERLESS_MAX_MODEL_BYTES")
    cache_folder: str = _setting("", _text, "MLSERVERLESS_CACHE_FOLDER")
    fail_snapshot_on_error: bool = _setting(False, _truth, "MLSERVERLESS_FAIL_SNAPSHOT_ON_ERROR")
    log_level: str = _setting("INFO", _level, "MLSERVERLESS_LOG_LEVEL")

    @classmethod
    def load(
        cls,
        folder: str | None = None,
        environment: Mapping[str, str] | None = None,
        **defaults: object,
    ) -> Settings:
        """Read the environment, then `settings.json` of `folder` if it is there.

        `defaults` are a door's own: what holds where nobody said anything. Raises
        SettingsError with one sentence that names the field.
        """
        environment = os.environ if environment is None else environment
        declared = read_settings_file(folder)
        values: dict[str, Any] = dict(defaults)
        for each in dataclasses.fields(cls):
            variable = each.metadata["variable"]
            if each.name in declared:
                values[each.name] = each.metadata["read"](
                    f"{SETTINGS_FILE}: {each.name}", declared[each.name]
                )
            elif variable in environment:
                values[each.name] = each.metadata["read"](variable, environment[variable])
        return cls(**values)


def read_settings_file(folder: str | None) -> JSONObject:
    """Return what settings.json of a folder declares, {} without one.

    Raises SettingsError if it cannot be read or is not a JSON object.
    """
    if folder is None:
        return {}
    try:
        with open(os.path.join(folder, SETTINGS_FILE), "rb") as file:
            return parse_json_object(SETTINGS_FILE, file.read())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingsError(f"{SETTINGS_FILE} cannot be read: {error.strerror}") from error


def parse_json_object(name: str, raw: bytes) -> JSONObject:
    """Parse the JSON object of the file `name`; raise SettingsError if it is not one."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise SettingsError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{name} must be a JSON object")
    return value


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One `model-settings.json`, as MLServer reads it.

    `location` is where the file lies: a folder's path or an S3 prefix. `problem` says why
    the model cannot be served at all, in words for its owner; None when it can be tried.
    `listing` is what lay beside the file when it was read, where the repository knows.
    `folder` is the path of the file's folder, relative to the repository's root and empty for
    the root itself.
    """

    name: str
    location: str
    version: str | None = None
    platform: str = ""
    versions: tuple[str, ...] = ()
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()
    uri: str | None = None
    content_type: str | None = None
    extra: JSONObject = field(default_factory=dict)
    problem: str | None = None
    folder: str = field(default="", compare=False)
    listing: Listing = field(default_factory=dict, compare=False, repr=False)

    @property
    def predict_fn(self) -> str | None:
        """The method that answers when no output is asked for, if the owner named one."""
        return self.extra.get("predict_fn")

    @property
    def sha256(self) -> str | None:
        """The digest that the artefact's bytes must have, if the owner gave one."""
        return self.extra.get("sha256")

    @property
    def trusted(self) -> tuple[str, ...]:
        """The types that a skops artefact may hold besides those that skops itself trusts."""
        return tuple(self.extra.get("trusted") or ())

    @property
    def method_kwargs(self) -> Mapping[str, Sequence[str]]:
        """The keyword arguments of each method that an output's parameters may set."""
        declared = self.extra.get("method_kwargs") or {}
        return {method: tuple(names or ()) for method, names in declared.items()}

    @property
    def transform_output(self) -> str | None:
        """The container that scikit-learn's transformers returned in training, if declared."""
        return self.extra.get("transform_output")

    @classmethod
    def parse(
        cls,
        raw: bytes,
        *,
        location: str,
        folder_name: str,
        environment: Mapping[str, str] | None = None,
    ) -> ModelSettings:
        """Read one file. A broken one gives settings with a `problem`, never an error."""
        environment = os.environ if environment is None else environment
        name = folder_name
        try:
            declared = parse_json_object(MODEL_SETTINGS_FILE, raw)
            reader = _ModelReader(declared, environment)
            name = reader.read("name", _optional_text) or folder_name
            return reader.settings(name, location)
        except MLServerlessError as error:
            return cls(name=name, location=location, problem=str(error))

    @classmethod
    def from_environment(
        cls, location: str, environment: Mapping[str, str] | None = None
    ) -> ModelSettings | None:
        """The model that `MLSERVER_MODEL_*` variables describe alone, as MLServer has it."""
        environment = os.environ if environment is None else environment
        name = environment.get("MLSERVER_MODEL_NAME")
        if name is None or "MLSERVER_MODEL_IMPLEMENTATION" not in environment:
            return None
        return cls.parse(b"{}", location=location, folder_name=name, environment=environment)


class _ModelReader:
    """Fields of one file, each from the file, else its `MLSERVER_MODEL_*` variable."""

    def __init__(self, declared: JSONObject, environment: Mapping[str, str]) -> None:
        self.declared = declared
        self.environment = environment
        parameters = declared.get("parameters")
        if not isinstance(parameters, dict | None):
            raise SettingsError(f"{MODEL_SETTINGS_FILE}: parameters must be an object")
        self.parameters: JSONObject = parameters or {}

    def read(self, name: str, read: Callable[[str, object], T]) -> T:
        return self._from(self.declared, name, name, read)

    def parameter(self, name: str, read: Callable[[str, object], T]) -> T:
        return self._from(self.parameters, name, f"parameters.{name}", read)

    def _from(
        self, source: JSONObject, name: str, label: str, read: Callable[[str, object], T]
    ) -> T:
        if source.get(name) is not None:
            return read(f"{MODEL_SETTINGS_FILE}: {label}", source[name])
        variable = f"MLSERVER_MODEL_{name.upper()}"
        value: object = self.environment.get(variable)
        if isinstance(value, str) and read in (_tensors, _names, _mapping):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                raise SettingsError(f"{variable} is not valid JSON") from error
        return read(variable, value)

    def settings(self, name: str, location: str) -> ModelSettings:
        extra = self.parameter("extra", _mapping)
        for word in ("predict_fn", "sha256"):
            _optional_text(f"{MODEL_SETTINGS_FILE}: parameters.extra.{word}", extra.get(word))
        _names(f"{MODEL_SETTINGS_FILE}: parameters.extra.trusted", extra.get("trusted"))
        _check_prediction_settings(extra)
        implementation = self.read("implementation", _optional_text)
        problem = None
        if implementation is None:
            problem = (
                f"{MODEL_SETTINGS_FILE} names no implementation; this server runs {IMPLEMENTATION}"
            )
        elif implementation not in IMPLEMENTATIONS:
            problem = (
                f"implementation {quote(implementation)} is not served here, {IMPLEMENTATION} is"
            )
        return ModelSettings(
            name=name,
            location=location,
            version=self.parameter("version", _optional_text),
            platform=self.read("platform", _optional_text) or "",
            versions=self.read("versions", _names),
            inputs=self.read("inputs", _tensors),
            outputs=self.read("outputs", _tensors),
            uri=self.parameter("uri", _optional_text),
            content_type=self.parameter("content_type", _optional_text),
            extra=extra,
            problem=problem,
        )


def _check_prediction_settings(extra: JSONObject) -> None:
    """Raise SettingsError unless `method_kwargs` and `transform_output` have valid types."""
    label = f"{MODEL_SETTINGS_FILE}: parameters.extra.method_kwargs"
    for method, arguments in _mapping(label, extra.get("method_kwargs")).items():
        _names(f"{label}.{method}", arguments)
    container = extra.get("transform_output")
    if container is not None and container not in TRANSFORM_OUTPUTS:
        raise SettingsError(
            f"{MODEL_SETTINGS_FILE}: parameters.extra.transform_output must be one of "
            + ", ".join(TRANSFORM_OUTPUTS)
        )


def _mapping(name: str, value: object) -> JSONObject:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingsError(f"{name} must be an object")
    return value


def _names(name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise SettingsError(f"{name} must be a list of strings")
    return tuple(_text(name, each) for each in value)


def _tensors(name: str, value: object) -> tuple[TensorMetadata, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise SettingsError(f"{name} must be a list")
    return tuple(_tensor(name, each) for each in value)


def _tensor(name: str, value: object) -> TensorMetadata:
    if not isinstance(value, dict):
        raise SettingsError(f"{name} must be a list of objects")
    datatype, shape = value.get("datatype"), value.get("shape")
    if datatype not in DATATYPES:
        raise SettingsError(f"{name}: datatype must be one of {', '.join(DATATYPES)}")
    if not isinstance(shape, list) or not all(type(length) is int for length in shape):
        raise SettingsError(f"{name}: shape must be a list of whole numbers")
    parameters = _mapping(f"{name}.parameters", value.get("parameters"))
    _optional_text(f"{name}.parameters.content_type", parameters.get("content_type"))
    return TensorMetadata(
        name=_text(f"{name}.name", value.get("name")),
        datatype=datatype,
        shape=tuple(shape),
        parameters=parameters,
    )


CORS_FIELDS: Final[dict[str, Callable[[str, object], Any]]] = {
    "allow_origins": _names,
    "allow_origin_regex": _pattern,
    "allow_credentials": _truth,
    "allow_methods": _names,
    "allow_headers": _names,
    "expose_headers": _names,
    "max_age": _whole,
}


def name_of_function() -> str | None:
    """What Lambda calls this function; None elsewhere."""
    return os.environ.get("AWS_LAMBDA_FUNCTION_NAME")


def version_of_function() -> str | None:
    """Return the published version that this environment runs, or None outside of Lambda."""
    return os.environ.get("AWS_LAMBDA_FUNCTION_VERSION")


def level_of_function() -> str:
    """The application's log level, as the function's own configuration has it."""
    return LEVELS.get(os.environ.get("AWS_LAMBDA_LOG_LEVEL", ""), "INFO")


def temporary_folder() -> str:
    """Where files may be written that need not last; on Lambda the only such place."""
    return os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - a folder of our own is made in it


def trace_id() -> str | None:
    """X-Ray's id of the request that is being answered, set by Lambda's runtime for each.

    None for what is none: a client's header has a say in it.
    """
    found = _TRACE.match(os.environ.get("_X_AMZN_TRACE_ID", ""))
    return None if found is None else found[1]


def takes_snapshots() -> bool:
    """Whether Lambda will take a snapshot of this process when INIT is over (SnapStart)."""
    return os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start"


def seconds_of_init() -> float:
    """Return the seconds that loading models may wait for S3 in INIT; no bound outside Lambda.

    Lambda ends INIT after 10 s, with provisioned concurrency or SnapStart after 130 s. The rest of
    that time is for imports and unpickling. The first request loads the models that are missing.
    Source: https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html
    """
    initialization = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE")
    if initialization is None:
        return float("inf")
    return 6.0 if initialization == "on-demand" else 100.0


def limit_threads() -> None:
    """Limit BLAS and OpenMP to one thread for 1,769 MB of memory, and joblib to no processes.

    More threads than processors only wait for each other; they start while numpy is imported.
    Lambda has no semaphores (`/dev/shm` is missing): joblib would find out at its import, warn,
    and run in this process anyway. Variables that are set already are left alone. Call this
    before numpy and joblib are imported.
    """
    processors = max(1, (memory_of_function() or 0) // 1769)
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, str(processors))
    disable_worker_processes()


def disable_worker_processes() -> None:
    """Make joblib run its jobs in this process, also those of estimators with `n_jobs`.

    Each of its worker processes takes 100 MB and stays after the request. Must be called before
    joblib is imported. A value that the operator has set stays.
    """
    os.environ.setdefault("JOBLIB_MULTIPROCESSING", "0")


def memory_of_function() -> int | None:
    """Megabytes that Lambda gives this function; None elsewhere."""
    memory = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    return int(memory) if memory.isdecimal() else None


def without_plugins() -> None:
    """Keep pydantic, which checks nothing here, from looking for plugins everywhere."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
