"""Two values of JSON, compared so that a person can read what differs."""

from __future__ import annotations

from typing import Any


def differences(expected: Any, found: Any, where: str = "answer") -> list[str]:
    """Each place where two JSON values differ, in words; floats are equal to 1e-9."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = [f"{where}.{key} is missing" for key in expected.keys() - found.keys()]
        lines += [f"{where}.{key} is unexpected" for key in found.keys() - expected.keys()]
        for key in expected.keys() & found.keys():
            lines += differences(expected[key], found[key], f"{where}.{key}")
        return lines
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [
            line for i, pair in pairs for line in differences(pair[0], pair[1], f"{where}[{i}]")
        ]
    if isinstance(expected, float) and isinstance(found, float | int):
        close = abs(expected - found) <= 1e-9 * max(1.0, abs(expected))
        return [] if close else [f"{where}: expected {expected!r}, found {found!r}"]
    same = expected == found and isinstance(expected, bool) == isinstance(found, bool)
    return [] if same else [f"{where}: expected {expected!r}, found {found!r}"]
