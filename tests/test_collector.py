"""The collector waits within a block, and is afterwards as its owner had it."""

from __future__ import annotations

import gc

import pytest

from mlserverless.collector import paused


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_afterwards_as_it_was_whatever_happens(collecting: bool) -> None:
    try:
        gc.enable() if collecting else gc.disable()
        with pytest.raises(KeyError):  # noqa: SIM117, PT012 - the state within is the rule
            with paused(), paused():
                assert not gc.isenabled()
                raise KeyError
        assert collecting == gc.isenabled()
    finally:
        gc.enable()
