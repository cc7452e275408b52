"""Imports that wait: what FastAPI and scikit-learn import and a request may never use.

A late module is in its place, empty, and imported for good when something of it is asked for.
What FastAPI, anyio or scikit-learn itself takes by `from module import name` (the table below) is a
stand-in that becomes the real thing when it is called, looked into or asked about; nobody else
ever gets a stand-in, an unpickler least of all. No answer changes.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

from mlserverless.settings import without_plugins

_NARWHALS: Final = "narwhals.stable.v2"  # asks scikit-learn's inputs whether they are tables

# Each late module, with the names that are stood in for. What is missing here is imported at
# once; a class that is caught as an exception must be missing.
LATE: Final[dict[str, frozenset[str]]] = {
    name: frozenset(names.split())
    for name, names in {
        "anyio._core._fileio": "AsyncFile Path open_file wrap_file",
        "anyio._core._subprocesses": "open_process run_process",
        "anyio._core._tempfile": "NamedTemporaryFile SpooledTemporaryFile TemporaryDirectory "
        "TemporaryFile gettempdir gettempdirb mkdtemp mkstemp",
        "anyio.streams.tls": "TLSConnectable TLSStream",
        "anyio.to_process": "",
        "asyncio.sslproto": "",
        "fastapi.openapi.docs": "get_redoc_html get_swagger_ui_html "
        "get_swagger_ui_oauth2_redirect_html",
        "fastapi.openapi.models": "APIKey APIKeyIn Example HTTPBase HTTPBearer OAuth2 OAuthFlows "
        "OpenAPI OpenIdConnect SecurityBase",
        "fastapi.openapi.utils": "get_openapi",
        "fastapi.security.api_key": "APIKeyCookie APIKeyHeader APIKeyQuery",
        "fastapi.security.http": "HTTPAuthorizationCredentials HTTPBasic HTTPBasicCredentials "
        "HTTPBearer HTTPDigest",
        "fastapi.security.open_id_connect_url": "OpenIdConnect",
        "fastapi.security.oauth2": "OAuth2 OAuth2AuthorizationCodeBearer OAuth2PasswordBearer "
        "OAuth2PasswordRequestForm OAuth2PasswordRequestFormStrict SecurityScopes",
        "narwhals": "",
        "narwhals.stable": "",
        _NARWHALS: "",
        "numpy.ctypeslib": "",
        "numpy.f2py": "",
        "numpy.ma": "MaskedArray",
        "numpy.testing": "",
        "opentelemetry._logs": "Logger LoggerProvider SeverityNumber",
        "opentelemetry.metrics": "Histogram MeterProvider UpDownCounter",
        "opentelemetry.propagate": "",
        "opentelemetry.trace": "Span SpanKind StatusCode Tracer TracerProvider",
        "scipy.fft": "fft ifft",
        "scipy.integrate": "trapezoid",
        "scipy.interpolate": "BSpline",
        "scipy.linalg": "cho_solve cholesky eigh norm pinv pinvh qr solve solve_triangular svd",
        "scipy.linalg.lapack": "get_lapack_funcs",
        "scipy.optimize": "linear_sum_assignment linprog minimize minimize_scalar",
        "scipy.optimize._linesearch": "line_search_wolfe2 scalar_search_wolfe1",
        "scipy.sparse.csgraph": "connected_components laplacian minimum_spanning_tree "
        "shortest_path",
        "scipy.sparse.linalg": "LinearOperator cg eigsh lobpcg lsqr svds",
        "scipy.spatial": "",
        "scipy.spatial.distance": "cdist pdist squareform",
        "scipy.special": "betaln binom boxcox comb digamma erf expit gamma gammainc gammaln "
        "inv_boxcox kv logsumexp xlogy",
        "scipy.stats": "chi2 gmean rankdata spearmanr",
        "ssl": "",
    }.items()
}
# Modules that need nothing of the late package they lie in, and what they are wanted for.
_ALONE: Final = {
    "scipy.linalg.cython_blas": "",
    "scipy.linalg.cython_lapack": "",
    "scipy.sparse.linalg._interface": "LinearOperator",  # which scikit-learn subclasses at import
}
# Who gets stand-ins; importlib looks whether a name is there before its taker takes it.
_TAKERS: Final = ("anyio", "fastapi.", "importlib.", "sklearn.")
_lock = threading.Lock()
_sklearn_lock = threading.Lock()


def import_sklearn() -> None:
    """scikit-learn, once, without pandas, at which it only looks; the caller then unpickles."""
    with _sklearn_lock:
        if "sklearn" in sys.modules:
            return
        hidden = "pandas" not in sys.modules
        if hidden:
            sys.modules["pandas"] = None  # type: ignore[assignment] # how Python says "not here"
        try:
            import sklearn  # noqa: F401, PLC0415 - this module is what keeps it late
        finally:
            if hidden:
                del sys.modules["pandas"]


class _LateModule(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        # Python's own questions, and of whoever looks through all modules
        if name.startswith("__") and name not in {"__all__", "__version__"}:
            raise AttributeError(name)
        if name in LATE[self.__name__]:
            importer = sys._getframe(1).f_globals.get("__name__", "")  # noqa: SLF001 - no other way
            if importer.startswith(_TAKERS):
                return _StandIn(self.__name__, name)
        child = f"{self.__name__}.{name}"
        if child in LATE:
            return importlib.import_module(child)
        if child == f"{_NARWHALS}.dependencies":
            return _Tables()
        value = getattr(_real(self.__name__), name)
        self.__dict__[name] = value  # whoever keeps this module asks once
        return value


class _Tables:
    """narwhals.dependencies, which need not be asked about arrays, sparse matrices and lists."""

    def is_into_dataframe(self, data: object) -> bool:
        return not _is_plain(data) and self._real().is_into_dataframe(data)

    def is_into_series(self, data: object) -> bool:
        return not _is_plain(data) and self._real().is_into_series(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    @staticmethod
    def _real() -> Any:
        return _real(_NARWHALS).dependencies


def _is_plain(data: object) -> bool:
    return type(data).__module__.partition(".")[0] in {"builtins", "numpy", "scipy"}


class _StandIn:
    """One name of a late module, for whoever imports it to use it later, if at all."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        for alone, name in _ALONE.items():
            if name == self._name and alone.startswith(self._module):
                return getattr(importlib.import_module(alone), name)
        return getattr(_real(self._module), self._name)

    @property  # type: ignore[misc] # nobody sets it
    def __class__(self) -> type:
        # isinstance(stand-in, type) asks; of an annotation only `typing` does, in vain
        return type(self._real()) if self._module.startswith("scipy.") else _StandIn

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._real()(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__typing") or name == "__parameters__":  # of an annotation
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._real())

    def __mro_entries__(self, _: tuple[Any, ...]) -> tuple[type, ...]:
        return (self._real(),)

    def __or__(self, other: Any) -> Any:
        return self  # of an annotation that nobody reads

    __ror__ = __or__


def _real(name: str) -> ModuleType:
    """The module itself; not under the lock, for Python's own keep importers apart."""
    with _lock:
        _finder.gone.add(name)
        if isinstance(sys.modules.get(name), _LateModule):
            del sys.modules[name]
    real = importlib.import_module(name)
    for each in _ALONE:  # they were set on the late one
        package, _, child = each.rpartition(".")
        if package == name and each in sys.modules:
            setattr(real, child, sys.modules[each])
    return real


class _Finder:  # not importlib.abc's, which are 5 ms to import
    """Puts late modules where the table says, and the real ones where something lies in them."""

    def __init__(self) -> None:
        self.gone: set[str] = set()  # late no more

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, _: Any = None
    ) -> ModuleSpec | None:
        if fullname in LATE and fullname not in self.gone:
            real = PathFinder.find_spec(fullname, path)
            if real is None:
                return None
            spec = ModuleSpec(fullname, self, is_package=True)  # type: ignore[arg-type] # it loads
            spec.submodule_search_locations = real.submodule_search_locations or []
            return spec
        package = fullname.rpartition(".")[0]
        if package in LATE and package not in self.gone and fullname not in _ALONE:
            _real(package)
            if fullname in sys.modules:  # it came with the package
                return ModuleSpec(fullname, _Found())  # type: ignore[arg-type] # it loads, too
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LateModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run yet."""


class _Found:
    """Of a module that its package has imported already."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It has run."""


_finder: Final = _Finder()
sys.meta_path.insert(0, _finder)
without_plugins()
