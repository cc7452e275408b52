"""Find what would keep a repository's models from being served, before it is deployed.

Each finding is one line: a level, what was found, and what to do about it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, Final, Literal, NamedTuple

from mlserverless.errors import MLServerlessError, SettingsError, quote
from mlserverless.package_size import measure_package_size
from mlserverless.protocol import JSONObject
from mlserverless.registry import ModelState, Registry
from mlserverless.repository import (
    Repository,
    S3Repository,
    describe_missing_artifact,
    locate_artifact,
    open_repository,
)
from mlserverless.settings import (
    CORS_FIELDS,
    MODEL_SETTINGS_FILE,
    SETTINGS_FILE,
    ModelSettings,
    Settings,
    parse_json_object,
    read_settings_file,
)

_S3: Final = "s3://"
# how people write S3 locations by mistake: S3://b, s3:/b, s3//b, s3:b, and the bucket's ARN
_S3_MISSPELLED_PATTERN: Final = re.compile(
    r"(?:s3(?::/*|//+)|arn:aws[\w-]*:s3:::)(?P<rest>.*)", re.IGNORECASE
)


class Finding(NamedTuple):
    """One line of the report. Only a problem makes the command fail."""

    level: Literal["ok", "warning", "problem"]
    message: str


# ── the root ────────────────────────────────────────────────────────────────────────────


def check_root(root: str) -> None:
    """Raise SettingsError if `root` is neither a folder nor a well-formed s3://bucket/prefix."""
    if root.startswith(_S3):
        bucket, _, prefix = root.removeprefix(_S3).partition("/")
        if not bucket:
            raise SettingsError(f"{quote(root)} names no bucket; write s3://bucket/prefix")
        if prefix.startswith("/"):
            correct = f"{_S3}{bucket}/{prefix.strip('/')}"
            raise SettingsError(
                f"the prefix of {quote(root)} starts with a slash; write {quote(correct)}"
            )
    elif not os.path.isdir(root):
        correct_s3 = correct_s3_location(root)
        if correct_s3 is not None:
            raise SettingsError(f"{quote(root)} is not a folder; for S3 write {quote(correct_s3)}")
        raise SettingsError(
            f"{quote(root)} is not a folder; name the folder that holds your models, "
            "or s3://bucket/prefix"
        )


def correct_s3_location(location: str) -> str | None:
    """Return s3://bucket/key for a misspelled form such as S3://bucket/key; None for others."""
    found = _S3_MISSPELLED_PATTERN.fullmatch(location)
    if found is None or location.startswith(_S3):
        return None
    return _S3 + found["rest"].lstrip("/")


def resolve_root(given: str | None, **defaults: Any) -> tuple[str, Settings]:
    """Return the repository's root and the settings for `start`, `doctor` and `profile`.

    `given` is the command's argument: a folder, an S3 location, or None for the working
    directory. settings.json of the folder may name another root, which is then used; a relative
    path is relative to that folder. MLServer ignores the field when a folder is given.
    Raises SettingsError if settings cannot be read or the root cannot exist.
    """
    if given is not None:
        check_root(given)
        if given.startswith(_S3):
            return given, replace(Settings.load(**defaults), model_repository_root=given)
    folder = "." if given is None else given
    settings = Settings.load(folder, **defaults)
    root = settings.model_repository_root
    if "model_repository_root" in read_settings_file(folder):
        if not root.startswith(_S3) and correct_s3_location(root) is None:
            root = os.path.normpath(os.path.join(folder, root))
            if root == os.path.normpath(folder):
                root = folder
        try:
            check_root(root)
        except SettingsError as error:
            raise SettingsError(f"{SETTINGS_FILE}: model_repository_root: {error}") from error
    elif given is not None:  # MLSERVER_MODEL_REPOSITORY_ROOT is only for a command without one
        root = given
    else:
        check_root(root)
    return root, replace(settings, model_repository_root=root)


# ── the report ──────────────────────────────────────────────────────────────────────────


def examine(root: str, settings: Settings, settings_folder: str | None = None) -> Iterator[Finding]:
    """Yield what is right and wrong with a repository, and with settings.json of a folder.

    Loads every model and calls it once with a generated request, so pickles are executed. Reads
    S3 with the credentials of this machine. Never raises MLServerlessError.
    """
    repository = open_repository(root)
    try:
        for level, message in find_unknown_keys(read_settings_file(settings_folder), SERVER_KEYS):
            yield Finding(level, f"{SETTINGS_FILE}: {message}")
        if isinstance(repository, S3Repository):
            yield _compare_regions(repository)
        else:
            yield from _find_oversize(root)
        models = repository.models()
        if not models:
            yield Finding("problem", describe_empty_root(root))
            return
        registry = Registry(repository, replace(settings, model_control_mode="none"))
        outcomes = {
            (state.name, state.version): _load_and_call(registry, state)
            for state in registry.index()
        }
        states = registry.index()
    except MLServerlessError as error:
        yield Finding("problem", add_hint(str(error)))
        return
    for state in states:
        yield from _describe(state, outcomes.get((state.name, state.version), _Outcome()))
        for model in models:
            if (model.name, model.version) == (state.name, state.version):
                yield from _find_unknown_model_settings(repository, model)
                yield from _check_uri(repository, root, model)
    for message in describe_duplicates(models, root):
        yield Finding("problem", message)


def _find_oversize(root: str) -> Iterator[Finding]:
    """Yield a problem if models, function and layers together are over Lambda's limit."""
    checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    size = measure_package_size(os.path.join(checkout, ".aws-sam", "build"), root)
    if size.is_over_limit:
        yield Finding("problem", size.describe())


def describe_empty_root(root: str) -> str:
    """Return the message for a repository without models."""
    return f"no {MODEL_SETTINGS_FILE} below {root}; copy your model's folder there"


def describe_duplicates(models: Iterable[ModelSettings], root: str) -> list[str]:
    """Return a message for each name and version that more than one settings file declares."""
    declared: dict[tuple[str, str | None], list[str]] = {}
    for model in models:
        folder = _relative_location(model, root)
        declared.setdefault((model.name, model.version), []).append(folder)
    return [
        f"{label(name, version)} is declared more than once: in {', '.join(folders)}; only one "
        "of them is served, give each another name or another parameters.version"
        for (name, version), folders in declared.items()
        if len(folders) > 1
    ]


def _relative_location(model: ModelSettings, root: str) -> str:
    base = root if root.startswith(_S3) else os.path.abspath(root)
    return quote(model.location.removeprefix(base.rstrip("/")).strip("/") or ".")


def label(name: str, version: str | None) -> str:
    """Return how messages of this module and of `start` call a model."""
    return quote(name) if version is None else f"{quote(name)} {quote(version)}"


def _compare_regions(repository: S3Repository) -> Finding:
    bucket_region = repository.s3.region(repository.bucket)
    function_region = repository.s3.client.meta.region_name
    if bucket_region == function_region:
        message = f"bucket {repository.bucket} is in {bucket_region}, as the function will be"
        return Finding("ok", message)
    return Finding(
        "problem",
        f"bucket {repository.bucket} is in {bucket_region}, the function would run in "
        f"{function_region}; deploy with --region {bucket_region}",
    )


class _Outcome(NamedTuple):
    """Why a model cannot be served, or "", and whether it was called successfully."""

    reason: str = ""
    called: bool = False


def _load_and_call(registry: Registry, state: ModelState) -> _Outcome:
    try:
        model = registry.get(registry.find(state.name, state.version))
    except MLServerlessError as error:
        return _Outcome(str(error))
    except Exception as error:  # noqa: BLE001 - a fault of one model must not hide the others
        return _Outcome(f"an unexpected {type(error).__name__} was raised while it was loaded")
    called = model.example() is not None
    if not called and is_unfitted(model.estimator):
        return _Outcome(f"the estimator ({type(model.estimator).__name__}) is not fitted")
    return _Outcome(called=called)


def is_unfitted(estimator: Any) -> bool:
    """Return True if scikit-learn's own check says that fit was never called.

    Stateless estimators count as fitted, and so do those that the check cannot examine.
    """
    from sklearn.exceptions import NotFittedError  # noqa: PLC0415 - 100 ms, loaded with a model
    from sklearn.utils.validation import check_is_fitted  # noqa: PLC0415 - as above

    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return True
    except Exception:  # noqa: BLE001 - an estimator of another library may raise anything
        return False
    return False


def _describe(state: ModelState, outcome: _Outcome) -> Iterator[Finding]:
    """Combine what loading found with what the registry recorded while the model was called."""
    name = label(state.name, state.version)
    reason = outcome.reason or ("" if state.ready else state.reason)
    if reason:
        reason = reason.removeprefix(f"Model {quote(state.name)} ")
        yield Finding("problem", f"{name}: {add_hint(reason)}")
        return
    yield Finding("ok", f"{name} loads")
    if not outcome.called:
        yield Finding(
            "warning",
            f"{name}: no generated request was accepted, so no prediction was tried; declare "
            f"inputs in {MODEL_SETTINGS_FILE}",
        )


# ── what to do ──────────────────────────────────────────────────────────────────────────

# The first pattern that is found in a reason decides what to do about it.
_HINTS: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern), hint)
    for pattern, hint in (
        (
            "is not fitted",
            "call fit before you save it",
        ),
        (
            "artifact, .* is not in the repository",
            "copy the file there, or correct parameters.uri in model-settings.json",
        ),
        (
            r"saved with scikit-learn (\S+), but this server runs (\S+)",
            (
                r"train it again with scikit-learn \2, install scikit-learn \1, or set "
                "MLSERVERLESS_ALLOW_SKLEARN_VERSION_MISMATCH=true if its predictions stay right"
            ),
        ),
        (
            "implementation .* is not served",
            "if it is a scikit-learn estimator, set implementation to that",
        ),
        (
            "not valid JSON|must be |model-settings.json cannot be read",
            "correct the file",
        ),
        (
            "cannot be unpickled|cannot be read as skops",
            (
                "check that the file is complete and not a Git LFS pointer, or save the estimator "
                "again with joblib.dump"
            ),
        ),
        (
            "is not a scikit-learn estimator|methods cannot be read",
            "save the fitted estimator itself with joblib.dump",
        ),
        (
            r"does not match parameters\.extra\.sha256",
            "copy the file again, or correct parameters.extra.sha256 if the file is right",
        ),
        (
            r"parameters\.extra\.sha256",
            "add the digest that sha256sum prints for the file",
        ),
        (
            "more memory",
            "use a smaller model or more memory",
        ),
        (
            "names a bucket and no object",
            "add the object's key to parameters.uri",
        ),
        (
            "bucket .* does not exist|is not the name of a bucket",
            "correct the bucket's name",
        ),
        (
            "is denied|refused bucket",
            "allow your credentials s3:ListBucket and s3:GetObject for the bucket",
        ),
        (
            "no credentials",
            "configure AWS credentials, for example with AWS_PROFILE",
        ),
        (
            "another region",
            "set AWS_REGION to the region of the bucket",
        ),
        (
            "configuration",
            "correct the AWS settings of this machine",
        ),
        (
            r"\bS3\b|out of reach",
            "check the network and the endpoint, and run doctor again",
        ),
        (
            "is not installed here",
            "add the package that contains it to the scikit-learn layer",
        ),
        (
            "cannot predict",
            "call the estimator in Python with the same data, correct it and save it again",
        ),
    )
)


# How messages begin a last part that says what to do, if no semicolon separates it.
_REMEDY_PATTERN: Final = re.compile(
    r": (?:add|copy|define|download|give|install|move|run|save|set|train|write) "
)


def add_hint(reason: str) -> str:
    """Return the reason with what to do about it, unless it already says so."""
    if "; " in reason or _REMEDY_PATTERN.search(reason):
        return reason
    for pattern, hint in _HINTS:
        if (found := pattern.search(reason)) is not None:
            return f"{reason}; {found.expand(hint)}"
    return f"{reason}; correct the model's folder and run doctor again"


# ── where artifacts are ─────────────────────────────────────────────────────────────────


def _check_uri(repository: Repository, root: str, model: ModelSettings) -> Iterator[Finding]:
    """Warn of an artifact that the deployed function will not find or may not read."""
    if model.uri is None:
        return
    name = label(model.name, model.version)
    correct = correct_s3_location(model.uri)
    if correct is not None:
        message = f"{name}: parameters.uri is not an S3 location; write {quote(correct)}"
        yield Finding("problem", message)
        return
    target = locate_artifact(model)
    if isinstance(repository, S3Repository):
        if not target.startswith(f"{_S3}{repository.bucket}/{repository.prefix}"):
            yield Finding(
                "warning",
                f"{name}: parameters.uri is outside {root}, and the function's role may not "
                f"read it; copy the artifact below {root} or extend the role's policy",
            )
    elif target.startswith(_S3):
        yield Finding(
            "warning",
            f"{name}: parameters.uri is in S3, and the role of a function with its models in a "
            "layer may not read it; copy the artifact below the model's folder, deploy with "
            "ModelBucket, or extend the role's policy",
        )
    elif os.path.commonpath([os.path.abspath(root), os.path.normpath(target)]) != os.path.abspath(
        root
    ):
        yield Finding(
            "warning",
            f"{name}: parameters.uri is outside {root}, and only what is below it is deployed; "
            "copy the artifact there",
        )


def find_missing_artifact(repository: Repository, model: ModelSettings) -> str:
    """Return why a model that was not loaded yet has nothing to load; "" if nothing is known.

    Reads file attributes, or the metadata of an object below the repository's own S3 prefix.
    Other locations are not checked, because they can be slow.
    """
    target = locate_artifact(model)
    if target.startswith(_S3) and not (
        isinstance(repository, S3Repository)
        and target.startswith(f"{_S3}{repository.bucket}/{repository.prefix}")
    ):
        return ""
    try:
        if repository.stamp(model):
            return ""
    except MLServerlessError as error:
        return str(error)
    return describe_missing_artifact(model)


# ── unknown keys ────────────────────────────────────────────────────────────────────────

Known = Mapping[str, frozenset[str]]

# Every key that MLServer 1.7.1 or this server reads, by the path of its JSON object. Both ignore
# all others. The same fields as in docs/settings.md; a test compares them.
SERVER_KEYS: Final[Known] = {
    "": frozenset(each.name for each in fields(Settings))
    | {
        "parallel_workers",
        "parallel_workers_timeout",
        "environments_dir",
        "model_repository_implementation",
        "model_repository_implementation_args",
        "extensions",
        "grpc_port",
        "grpc_max_message_length",
        "metrics_endpoint",
        "metrics_port",
        "metrics_rest_server_prefix",
        "metrics_dir",
        "use_structured_logging",
        "logging_settings",
        "kafka_enabled",
        "kafka_servers",
        "kafka_topic_input",
        "kafka_topic_output",
        "tracing_server",
        "cache_enabled",
        "cache_size",
    },
    "cors_settings": frozenset(CORS_FIELDS),
}
_TENSOR_KEYS: Final = frozenset({"name", "datatype", "shape", "parameters"})
MODEL_KEYS: Final[Known] = {
    "": frozenset(
        {
            "implementation",
            "name",
            "platform",
            "versions",
            "inputs",
            "outputs",
            "parallel_workers",
            "warm_workers",
            "max_batch_size",
            "max_batch_time",
            "cache_enabled",
            "parameters",
        }
    ),
    "parameters": frozenset(
        {
            "uri",
            "version",
            "environment_path",
            "environment_tarball",
            "inference_pool_gid",
            "autogenerate_inference_pool_gid",
            "format",
            "content_type",
            "extra",
        }
    ),
    "parameters.extra": frozenset(
        {"predict_fn", "sha256", "trusted", "method_kwargs", "transform_output"}
    ),
    "inputs": _TENSOR_KEYS,
    "outputs": _TENSOR_KEYS,
}
_TENSOR_PATHS: Final = frozenset({"inputs", "outputs"})
_FREE_FORM_PATHS: Final = frozenset({"parameters.extra"})  # a runtime may read any key of these
_MIN_SIMILARITY: Final = 0.75  # difflib's ratio: "paramaters" and "parameters" have 0.9
_CAMEL_CASE_PATTERN: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PREFIX_PATTERN: Final = re.compile(r"^(?:mlserver(?:less)?_)?(?:model_)?")


def _find_unknown_model_settings(repository: Repository, model: ModelSettings) -> Iterator[Finding]:
    name = label(model.name, model.version)
    for level, message in find_unknown_keys(_read_declared(repository, model), MODEL_KEYS):
        yield Finding(level, f"{name}: {MODEL_SETTINGS_FILE}: {message}")


def _read_declared(repository: Repository, model: ModelSettings) -> JSONObject:
    """Return the JSON object of a model's settings file, {} if there is none to be read."""
    for path, stored in model.listing.items():
        if path != f"{model.location.rstrip('/')}/{MODEL_SETTINGS_FILE}":
            continue
        try:
            if isinstance(repository, S3Repository):
                return parse_json_object(path, repository.s3.read(path, stored))
            with open(path, "rb") as file:
                return parse_json_object(path, file.read())
        except (MLServerlessError, OSError):  # the model's own line says what is wrong
            return {}
    return {}


def find_unknown_keys(declared: JSONObject, known: Known) -> Iterator[Finding]:
    """Yield each key that is ignored: a problem if it looks like a known one, else a warning."""
    for path, names in known.items():
        for each in _objects_at(declared, path):
            for key in each:
                if key not in names and not key.startswith(("_", "$")):  # those are comments
                    yield from _describe_unknown(path, key, known)


def _objects_at(declared: JSONObject, path: str) -> list[JSONObject]:
    value: Any = declared
    for part in path.split(".") if path else ():
        value = value.get(part) if isinstance(value, dict) else None
    return [each for each in (value if isinstance(value, list) else [value]) if _is_object(each)]


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _describe_unknown(path: str, key: str, known: Known) -> Iterator[Finding]:
    shown = quote(f"{path}.{key}" if path else key)
    likely = _find_likely_key(path, key, known)
    if likely is not None:
        yield Finding("problem", f"the key {shown} is unknown and ignored; did you mean {likely}?")
    elif path not in _FREE_FORM_PATHS:
        yield Finding("warning", f"the key {shown} is unknown and ignored; remove or correct it")


def _find_likely_key(path: str, key: str, known: Known) -> str | None:
    """Return the full name of the known key that was probably meant, in any JSON object."""
    snake = _CAMEL_CASE_PATTERN.sub("_", key).lower().replace("-", "_")
    short = _PREFIX_PATTERN.sub("", snake)
    same = {path: known[path]}
    # keys of a tensor are common words; outside of tensors they would only mislead
    others = {} if path in _TENSOR_PATHS else known.items() - same.items()
    elsewhere = {each: names for each, names in dict(others).items() if each not in _TENSOR_PATHS}
    for candidates in (same, elsewhere):
        for each, names in candidates.items():
            if (exact := snake if snake in names else short) in names:
                return _full_name(each, exact, path)
    for each, names in (same | elsewhere).items():
        close = difflib.get_close_matches(snake, names, 1, _MIN_SIMILARITY)
        if close:
            return _full_name(each, close[0], path)
    return None


def _full_name(path: str, key: str, found_in: str) -> str:
    if path:
        return f"{path}.{key}"
    return f"{key}, at the top level" if found_in else key
