"""Import scikit-learn without what it imports and most models never use.

scikit-learn's base imports pandas (to look at, never to use) and scipy.stats (for functions
that few estimators call); they are half of its import. No answer changes: what is asked of
either is the real thing, imported when it is asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

_STATS: Final = "scipy.stats"
# What scikit-learn takes from scipy.stats by name at import, and calls later if at all.
_LATE: Final = frozenset({"chi2", "gmean", "rankdata", "spearmanr"})
_lock = threading.Lock()


def import_sklearn() -> None:
    """scikit-learn, once; the caller goes on to unpickle."""
    with _lock:
        if "sklearn" in sys.modules:
            return
        import scipy  # noqa: PLC0415 - this module is what keeps it late

        if _STATS not in sys.modules:
            sys.modules[_STATS] = _Stats(os.path.join(scipy.__path__[0], "stats"))
            sys.meta_path.insert(0, _finder)
        hidden = "pandas" not in sys.modules
        if hidden:
            sys.modules["pandas"] = None  # type: ignore[assignment] # how Python says "not here"
        try:
            import sklearn  # noqa: F401, PLC0415 - as above
        finally:
            if hidden:
                del sys.modules["pandas"]


class _Stats(ModuleType):
    """scipy.stats, imported when anything of it is used."""

    def __init__(self, folder: str) -> None:
        super().__init__(_STATS)
        self.__path__ = [folder]

    def __getattr__(self, name: str) -> Any:
        if name in _LATE:
            return _Late(name)
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real_stats(), name)


class _Late:
    """A function or distribution of scipy.stats, imported when it is called or looked into."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return getattr(_real_stats(), self._name)(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(_real_stats(), self._name), name)


def _real_stats() -> ModuleType:
    with _lock:
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
            del sys.modules[_STATS]
    return importlib.import_module(_STATS)


class _Submodules(MetaPathFinder, Loader):
    """`import scipy.stats.x` while scipy.stats is late: all of it first, and x came with it."""

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        if not fullname.startswith(f"{_STATS}."):
            return None
        _real_stats()
        return ModuleSpec(fullname, self) if fullname in sys.modules else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It has run already."""


_finder: Final = _Submodules()
