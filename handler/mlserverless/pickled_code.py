"""Refuse functions that cloudpickle saved as bytecode under another Python.

Bytecode of one Python version run by another raises TypeError at best and ends the process at
worst. The pickle does not record the version, so each code object is checked against the opcodes
of the running interpreter before anything can execute it.
Source: CPython's Lib/opcode.py and Lib/_opcode_metadata.py of the versions below.
"""

from __future__ import annotations

import functools
import importlib
import opcode
import sys
from collections.abc import Mapping
from types import CodeType
from typing import Any, Final

from mlserverless.errors import ModelLoadError

_CODE_ARGUMENTS: Final = 18  # of types.CodeType since Python 3.11
_BYTECODE_ARGUMENT: Final = 6  # its position among them
# Per version: the number of RESUME, which every function has near its start, and how many
# CACHE entries follow each instruction. 3.11 and 3.12 differ in the entries alone.
INSTRUCTION_SETS: Final[dict[str, tuple[int, Mapping[int, int]]]] = {
    "3.11": (
        151,
        {25: 4, 60: 1, 92: 1, 95: 4, 106: 4, 107: 2, 116: 5, 122: 1, 160: 10, 166: 1, 171: 4},
    ),
    "3.12": (
        151,
        {
            25: 1, 60: 1, 92: 1, 93: 1, 95: 4, 106: 9, 107: 1, 116: 4, 122: 1, 123: 1, 141: 1,
            171: 3,
        },
    ),
    "3.13": (
        149,
        {
            5: 1, 39: 1, 40: 3, 45: 1, 53: 3, 58: 1, 59: 1, 72: 1, 77: 1, 82: 9, 91: 4, 93: 1,
            97: 1, 98: 1, 99: 1, 100: 1, 104: 1, 108: 4, 117: 1,
        },
    ),
}  # fmt: skip
_CLOUDPICKLES: Final = ("cloudpickle.cloudpickle", "joblib.externals.cloudpickle.cloudpickle")


def check_code_objects(module: str) -> None:
    """Import a module of cloudpickle and have it check each code object that it creates."""
    importlib.import_module(module)
    for name in _CLOUDPICKLES:
        found: Any = sys.modules.get(name)
        original = getattr(found, "_builtin_type", None)
        if original is not None and not hasattr(original, "__wrapped__"):
            found._builtin_type = _wrap_builtin_type(original)  # noqa: SLF001 - pickles name it


def _wrap_builtin_type(original: Any) -> Any:
    @functools.wraps(original)
    def builtin_type(name: str) -> Any:
        return _create_code if name == "CodeType" else original(name)

    return builtin_type


def _create_code(*arguments: Any) -> CodeType:
    """Create a code object. Raises ModelLoadError if another Python saved it."""
    if len(arguments) != _CODE_ARGUMENTS:
        old = len(arguments) < _CODE_ARGUMENTS
        raise _other_python_error("Python 3.10 or older" if old else "another version of Python")
    # the bytes of the pickle: a code object would show them as this interpreter reads them
    bytecode = arguments[_BYTECODE_ARGUMENT]
    if not has_instruction_set(bytecode, opcode.opmap["RESUME"], count_cache_entries(), -1):
        versions = [
            f"Python {version}"
            for version, instructions in INSTRUCTION_SETS.items()
            if has_instruction_set(bytecode, *instructions)
        ]
        raise _other_python_error(" or ".join(versions) or "another version of Python")
    return CodeType(*arguments)


def _other_python_error(version: str) -> ModelLoadError:
    return ModelLoadError(
        f"the artifact contains functions that cloudpickle saved under {version}, but this "
        f"server runs Python {sys.version_info[0]}.{sys.version_info[1]}: save the model again "
        "with the server's Python, or move the functions into an installed module"
    )


def has_instruction_set(
    code: bytes, resume: int, caches: Mapping[int, int], unknown: int = 0
) -> bool:
    """Return whether bytecode has RESUME and all CACHE entries of this instruction set.

    `unknown` is the count for an instruction that `caches` lacks; -1 if no such one exists.
    """
    index, has_resume = 0, False
    while index < len(code):
        instruction = code[index]
        has_resume = has_resume or instruction == resume
        count = caches.get(instruction, unknown)
        entries = range(index + 2, index + 2 + 2 * count, 2)
        is_cache = instruction == 0
        if is_cache or count < 0 or any(code[entry : entry + 1] != b"\0" for entry in entries):
            return False
        index = index + 2 + 2 * count
    return has_resume


@functools.cache
def count_cache_entries() -> dict[int, int]:
    """Return how many CACHE entries follow each instruction of the running interpreter."""
    found: Any = opcode._inline_cache_entries  # type: ignore[attr-defined] # noqa: SLF001 - as dis
    if isinstance(found, dict):  # since Python 3.13: by name, where there are any
        return {number: found.get(name, 0) for name, number in opcode.opmap.items()}
    return {number: found[number] for number in opcode.opmap.values()}
