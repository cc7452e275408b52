"""The garbage collector, told to wait while many objects are made that are all kept."""

from __future__ import annotations

import gc


class paused:  # noqa: N801 - read as a word: `with paused():`
    """Collect nothing within the block; an owner who turned the collector off finds it off."""

    __slots__ = ("collecting",)

    def __enter__(self) -> None:
        self.collecting = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self.collecting:
            gc.enable()
