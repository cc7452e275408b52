"""SnapStart: what is done before a snapshot is taken, and anew after it is restored.

A snapshot is one process, restored many times: what it has done, no restored one does again,
and what it holds, all of them share.
Source: https://docs.aws.amazon.com/lambda/latest/dg/snapstart-runtime-hooks-python.html
"""

from __future__ import annotations

import random
import sys

from mlserverless.registry import Registry
from mlserverless.settings import takes_snapshots


def register(registry: Registry) -> None:
    """Have the runtime call `prepare` and `renew`, where it takes snapshots."""
    if not takes_snapshots():
        return
    import snapshot_restore_py as hooks  # noqa: PLC0415 - Lambda's runtime brings it

    hooks.register_before_snapshot(prepare, registry)
    hooks.register_after_restore(renew, registry)


def prepare(registry: Registry) -> None:
    """Load every model and ask it once: a first prediction imports and allocates."""
    registry.load_all()
    for model in registry.loaded():
        model.example()


def renew(registry: Registry) -> None:
    """Drop connections that ended long ago, and randomness that others have too."""
    registry.reconnect()
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()  # the generator of estimators without a random_state
