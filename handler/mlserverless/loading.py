"""Load a model's artifact: check its digest, unpickle it, check the versions that saved it.

joblib and scikit-learn are imported by the first load; scikit-learn's parts by the pickle itself.
Every failure is a ModelLoadError that says what is wrong with the artifact and what to do.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, BinaryIO, Final

from mlserverless.errors import ModelLoadError, quote
from mlserverless.imports import import_sklearn
from mlserverless.repository import Artefact
from mlserverless.runtime import Model
from mlserverless.settings import ModelSettings, Settings

log = logging.getLogger(__name__)

SKLEARN_VERSION_KEY: Final = "_sklearn_version"  # its key in an estimator's state
# `_sklearn_version` in the bytes of a pickle: the key, an optional memoize opcode, a string opcode
# with its length, the version.
PICKLED_VERSION_PATTERN: Final = re.compile(
    rb"_sklearn_version(?:\x94|q.|r.{4})?(?:\x8c.|X.{4})(\d+\.\d+(?:\.\d+)?(?:\.?(?:a|b|rc|dev|post)\d+)?)",
    re.DOTALL,
)
CHUNK_BYTES: Final = 1 << 20
CHUNK_OVERLAP_BYTES: Final = 64  # so that a match across two chunks is found
MAX_SEARCHED_BYTES: Final = 1 << 30  # of a pickle that failed; a small file may unpack to more
MAX_LISTED_TYPES: Final = 20
# Messages repeat only these parts of an exception: names of modules, types, attributes and
# libraries. The rest may contain a path of the server.
MISSING_NAME_PATTERNS: Final = (
    re.compile(r"attribute '(?P<name>[\w.<>]+)' on <module '(?P<module>[\w.]+)'"),
    re.compile(r"[mM]odule '?(?P<module>[\w.]+)'? has no attribute '(?P<name>[\w.<>]+)'"),
    re.compile(r"cannot import name '(?P<name>[\w.]+)' from '(?P<module>[\w.]+)'"),
)
MISSING_ATTRIBUTE_PATTERN: Final = re.compile(r"'([\w.]+)' object has no attribute '(\w+)'")
TRUNCATED_PATTERN: Final = re.compile(r"truncated|exhausted|ended before")
SHARED_LIBRARY_PATTERN: Final = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object")

# The first bytes of files that are not pickles, with what is wrong and what to do.
_FOREIGN_FORMATS: Final = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer instead of the file: run git lfs pull, then copy or deploy it again",
    ),
    (
        b"\x04\x22\x4d\x18",
        (
            "is compressed with lz4, which is not installed: add lz4 to the scikit-learn layer, or "
            "save the model with joblib.dump(model, path, compress=3)"
        ),
    ),
    (
        b"PK\x03\x04",
        "is a zip archive instead of a pickle: give it the suffix .skops if skops saved it",
    ),
    (b"\x89HDF", "is an HDF5 file instead of a pickle: save the model with joblib.dump"),
    (b"<", "is an HTML or XML document instead of a pickle: download the model again"),
    (b"{", "is a JSON document instead of a pickle: save the model with joblib.dump"),
)
_HEAD_BYTES: Final = 64


def load(artifact: Artefact, settings: ModelSettings, server: Settings) -> Model:
    """Load a model. Raises ModelLoadError with the reason; closes `artifact.file`.

    With `parameters.extra.sha256`, the digest is verified before anything is executed. A `.skops`
    file is never unpickled: skops creates only objects of types that it or the operator trusts.
    """
    with artifact.file as file, _record_sklearn_versions() as saved_by:
        verified = _verify_digest(file, settings.sha256, server.require_sha256)
        try:
            if artifact.name.endswith(".skops"):
                estimator = _read_skops(verified, settings.trusted)
            else:
                estimator = _unpickle(verified)
        except ModelLoadError:
            # another version of scikit-learn explains more than the error that it caused
            versions = saved_by | _find_versions_in_pickle(verified)
            _check_versions(versions, server.allow_version_mismatch)
            raise
        _check_versions(saved_by, server.allow_version_mismatch)
    return _create_model(estimator, settings, server.max_body_bytes)


def _create_model(estimator: Any, settings: ModelSettings, body_limit: int) -> Model:
    try:
        is_estimator = callable(getattr(estimator, "fit", None))
        if is_estimator and not isinstance(estimator, type | ModuleType):
            return Model(estimator, settings, body_limit)
    except Exception as error:
        why = type(error).__name__
        raise ModelLoadError(f"the estimator's methods cannot be read ({why})") from error
    raise ModelLoadError("the artifact is not a scikit-learn estimator")


def _verify_digest(file: BinaryIO, expected: str | None, required: bool) -> BinaryIO:
    """Return the bytes to unpickle: with a digest, a copy, so that a later write has no effect."""
    if expected is None:
        if required:
            raise ModelLoadError(
                "parameters.extra.sha256 is missing, but MLSERVERLESS_REQUIRE_SHA256 is set"
            )
        return file
    raw = file.read()
    if hashlib.sha256(raw).hexdigest() != expected.lower():
        raise ModelLoadError("the artifact does not match parameters.extra.sha256")
    return io.BytesIO(raw)


# ── pickles ─────────────────────────────────────────────────────────────────────────────


def _unpickle(file: BinaryIO) -> Any:
    import joblib  # noqa: PLC0415 - this import takes most of a cold start's time

    try:
        return joblib.load(file)
    except (ModelLoadError, MemoryError):
        raise
    except BaseException as error:
        raise _unpickling_error(error, file) from error


def _unpickling_error(error: BaseException, file: BinaryIO) -> ModelLoadError:
    """Say why unpickling failed: a dependency is missing, or the file is not a pickle."""
    if isinstance(error, ImportError | AttributeError):
        return _missing_dependency_error(error)
    library = SHARED_LIBRARY_PATTERN.search(str(error)) if isinstance(error, OSError) else None
    if library is not None:
        return _missing_library_error(library[1])
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if not head:
        return ModelLoadError("the artifact is empty: copy or deploy it again")
    for prefix, description in _FOREIGN_FORMATS:
        if head.lstrip().startswith(prefix):
            return ModelLoadError(f"the artifact {description}")
    if isinstance(error, EOFError) or TRUNCATED_PATTERN.search(str(error)):
        return ModelLoadError("the artifact is incomplete: its end is missing; copy it again")
    return ModelLoadError(f"the artifact cannot be unpickled ({type(error).__name__})")


def _missing_library_error(name: str) -> ModelLoadError:
    return ModelLoadError(
        f"the artifact needs the shared library {name}, which is not on this system: add it to "
        "the lib/ folder of a layer"
    )


def _missing_dependency_error(error: ImportError | AttributeError) -> ModelLoadError:
    """Name the module or the attribute that a pickle needs, and where it can come from."""
    text = str(error)
    library = SHARED_LIBRARY_PATTERN.search(text)
    if library is not None:
        return _missing_library_error(library[1])
    matches = (pattern.search(text) for pattern in MISSING_NAME_PATTERNS)
    found = next((match for match in matches if match), None)
    if found is not None:
        if found["module"] == "__main__":
            return _script_object_error(found["name"])
        return _other_version_error(f"{found['module']}.{found['name']}")
    module = error.name if isinstance(error, ImportError) else None
    if module:
        package = module.partition(".")[0]
        if package != module and package in sys.modules:
            return _other_version_error(module)
        return ModelLoadError(
            f"the artifact needs the Python module {quote(module)}, which is not installed: add "
            "the package that contains it to the scikit-learn layer"
        )
    attribute = MISSING_ATTRIBUTE_PATTERN.search(text)
    if attribute is not None:
        return ModelLoadError(
            f"the artifact cannot be unpickled: its {quote(attribute[1])} has no attribute "
            f"{quote(attribute[2])}; install the library version that saved it"
        )
    return ModelLoadError(f"the artifact cannot be unpickled ({type(error).__name__})")


def _other_version_error(name: str) -> ModelLoadError:
    return ModelLoadError(
        f"the artifact needs {quote(name)}, which the installed version of "
        f"{quote(name.partition('.')[0])} does not have: install the version that saved it"
    )


def _script_object_error(name: str) -> ModelLoadError:
    return ModelLoadError(
        f"the artifact needs {quote(name)}, which was defined in the script or notebook that saved "
        "it (__main__): define it in a module, import it from there and save the model again, or "
        "save the model with cloudpickle"
    )


def _read_skops(file: BinaryIO, trusted: Sequence[str]) -> Any:
    from skops import io as skops  # noqa: PLC0415 - most models are pickles

    try:
        raw = file.read()
        untrusted = [name for name in skops.get_untrusted_types(data=raw) if name not in trusted]
        if not untrusted:
            return skops.loads(raw, trusted=list(trusted))
    except MemoryError:
        raise
    except BaseException as error:
        raise ModelLoadError(
            f"the artifact cannot be read as skops ({type(error).__name__})"
        ) from error
    names = ", ".join(map(quote, untrusted[:MAX_LISTED_TYPES]))
    more = ", …" if untrusted[MAX_LISTED_TYPES:] else ""
    raise ModelLoadError(
        f"the .skops file contains untrusted types: {names}{more}; add them to "
        "parameters.extra.trusted if you trust them"
    )


# ── versions ────────────────────────────────────────────────────────────────────────────


_load_context = threading.local()  # `saved_by`: the versions of scikit-learn found by this load


@contextmanager
def _record_sklearn_versions() -> Iterator[set[str]]:
    """Yield a set that collects the versions which saved the estimators loaded in the block."""
    try:
        _patch_unpickling()
    except ImportError as error:
        raise _missing_dependency_error(error) from error
    _load_context.saved_by = found = set[str]()
    try:
        yield found
    finally:
        del _load_context.saved_by


@cache
def _patch_unpickling() -> None:
    """Wrap BaseEstimator.__setstate__ and joblib's find_class, once, for loads of this module.

    `__setstate__` records the version that saved an estimator. scikit-learn would warn of it, but
    warnings are shared by all threads, and a prediction elsewhere may silence them. `find_class`
    refuses objects of a script and checks the bytecode that cloudpickle saved.
    """
    import_sklearn()
    from joblib.numpy_pickle import NumpyUnpickler  # noqa: PLC0415 - as in _unpickle
    from sklearn.base import BaseEstimator  # noqa: PLC0415 - as in _unpickle

    set_state, find_class = BaseEstimator.__setstate__, NumpyUnpickler.find_class

    def set_state_recording_version(estimator: Any, state: Any) -> None:
        saved_by = getattr(_load_context, "saved_by", None)
        if saved_by is not None and type(estimator).__module__.startswith("sklearn."):
            saved_by.add(str(state.get(SKLEARN_VERSION_KEY, "pre-0.18")))
            state[SKLEARN_VERSION_KEY] = sys.modules["sklearn"].__version__
        set_state(estimator, state)

    def find_checked_class(unpickler: Any, module: str, name: str) -> Any:
        if getattr(_load_context, "saved_by", None) is not None:
            if module == "__main__":  # this server's own script is never the one that saved it
                raise _script_object_error(name)
            if "cloudpickle" in module:
                from mlserverless.pickled_code import (  # noqa: PLC0415 - few models need it
                    check_code_objects,
                )

                check_code_objects(module)
        return find_class(unpickler, module, name)

    BaseEstimator.__setstate__ = set_state_recording_version
    NumpyUnpickler.find_class = find_checked_class


def _find_versions_in_pickle(file: BinaryIO) -> set[str]:
    """Return the versions of scikit-learn in the bytes of a pickle that cannot be loaded."""
    found, tail, searched = set[str](), b"", 0
    try:
        stream = _open_decompressed(file)
        while searched < MAX_SEARCHED_BYTES and (chunk := stream.read(CHUNK_BYTES)):
            searched += len(chunk)
            found.update(
                match[1].decode() for match in PICKLED_VERSION_PATTERN.finditer(tail + chunk)
            )
            tail = chunk[-CHUNK_OVERLAP_BYTES:]
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a damaged file: what was found before the damage counts
        log.debug("the versions in a damaged artifact cannot be read")
    return found


def _open_decompressed(file: BinaryIO) -> Any:
    """Return a reader of the pickle's own bytes, by joblib's registry of compressors."""
    from joblib import compressor, numpy_pickle_utils  # noqa: PLC0415 - as in _unpickle

    file.seek(0)
    name = numpy_pickle_utils._detect_compressor(file)  # noqa: SLF001 - joblib.load's own first step
    file.seek(0)
    wrapper = compressor._COMPRESSORS.get(name)  # noqa: SLF001 - as above
    return file if wrapper is None else wrapper.decompressor_file(file)


def _check_versions(saved_by: Iterable[str], allow_mismatch: bool) -> None:
    """Refuse another minor version unless that is allowed; log a warning for another patch."""
    installed = sys.modules["sklearn"].__version__
    for version in sorted(saved_by):
        message = (
            f"the model was saved with scikit-learn {quote(version)}, but this server runs "
            f"{installed}"
        )
        if not allow_mismatch and version.split(".")[:2] != installed.split(".")[:2]:
            raise ModelLoadError(message)
        if version != installed:
            log.warning(message)
