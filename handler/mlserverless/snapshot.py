"""SnapStart: what is done before a snapshot is taken and after it is restored.

A snapshot is one process that is restored many times. Work done before it is not repeated, and
what it holds is shared by all restored processes.
Source: https://docs.aws.amazon.com/lambda/latest/dg/snapstart-runtime-hooks-python.html
"""

from __future__ import annotations

import logging
import random
import sys
from typing import TYPE_CHECKING

from mlserverless.errors import ModelLoadError, quote
from mlserverless.registry import Registry
from mlserverless.settings import takes_snapshots

if TYPE_CHECKING:
    from mlserverless.runtime import Model

log = logging.getLogger(__name__)


def register(registry: Registry, *, fail_on_error: bool = False) -> None:
    """Have Lambda's runtime call `prepare` and `renew`, if it takes snapshots. Never raises."""
    if not takes_snapshots():
        return
    try:
        import snapshot_restore_py as hooks  # noqa: PLC0415 - part of Lambda's runtime

        hooks.register_before_snapshot(prepare, registry, fail_on_error=fail_on_error)
        hooks.register_after_restore(renew, registry)
    except Exception as error:  # noqa: BLE001 - INIT must not fail
        message = "the SnapStart hooks were not registered (%s): models load on demand"
        log.error(message, type(error).__name__)  # noqa: TRY400 - its own message may be a path


def prepare(registry: Registry, *, fail_on_error: bool = False) -> None:
    """Load every model and let it predict once: a first prediction imports and allocates.

    An exception here fails the publication of the version, and with it the deployment. So the
    only one is ModelLoadError, raised if `fail_on_error` is set and a model, or the repository,
    would not serve from this snapshot.
    """
    problems = [str(error) for error in registry.load_all()]
    models = registry.loaded()
    problems += [problem for problem in map(_try_example, models) if problem]
    if not models and not problems:
        problems.append("the model repository contains no models")
    if problems and fail_on_error:
        raise ModelLoadError(f"MLSERVERLESS_FAIL_SNAPSHOT_ON_ERROR is set: {problems[0]}")


def _try_example(model: Model) -> str | None:
    """Call a model with its example request; return a message if that fails."""
    name, why = quote(model.settings.name), ""
    try:
        if model.example() is not None:
            return None
    except BaseException as error:  # noqa: BLE001 - an estimator may raise anything
        why = f" ({type(error).__name__})"
    problem = f"Model {name} fails on its example request{why}"
    log.warning("%s: its first prediction is not part of the snapshot", problem)
    return problem


def renew(registry: Registry) -> None:
    """Reset what restored processes must not share: connections, scan times and random states."""
    registry.reconnect()
    registry.rescan_at_next_request()
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()  # the generator of estimators without a random_state
