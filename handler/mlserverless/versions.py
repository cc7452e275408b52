"""Order of model versions: which of several is the default.

`sort_key` accepts any string and reads the notations of Semantic Versioning, PEP 440 and dates.
Sources: https://semver.org/#spec-item-11,
https://packaging.python.org/en/latest/specifications/version-specifiers/
"""

from __future__ import annotations

import re
from typing import Final

Part = tuple[int, int, str]
SortKey = tuple[bool, tuple[Part, ...], tuple[Part, ...], str]

# Compiled at first use: few repositories have several versions, and every cold start would pay.
_PREFIX_PATTERN: Final = r"[vV][ ._-]?(?=\d)"
_PART_PATTERN: Final = r"(\d+)|[^\W\d_]+"

# Ranks of what can stand at one position, lowest first. 1.0.dev1 < 1.0a1 < 1.0 < 1.0.post1 < 1.0.1
_DEVELOPMENT: Final = 0
_PRE_RELEASE: Final = 1
_END: Final = 2
_POST_RELEASE: Final = 3
_WORD: Final = 4
_NUMBER: Final = 5
_PRE_RELEASE_WORD: Final = 6  # in 1.0.0-alpha.beta, which is above 1.0.0-alpha.1
_TAKES_NUMBER: Final = frozenset({_DEVELOPMENT, _PRE_RELEASE, _POST_RELEASE})  # none means 0

_DEVELOPMENT_WORDS: Final = frozenset({"dev", "nightly", "snapshot"})
_PRE_RELEASE_WORDS: Final = frozenset({"alpha", "beta", "rc"})
_POST_RELEASE_WORDS: Final = frozenset(
    {
        "final",
        "fix",
        "ga",
        "hotfix",
        "p",
        "patch",
        "post",
        "release",
        "sp",
        "update",
        "v",
        "version",
    }
)
# of PEP 440, and cr of Maven
_ALIASES: Final = {
    "a": "alpha", "b": "beta", "c": "rc", "cr": "rc", "pre": "rc", "preview": "rc", "r": "post",
    "rev": "post",
}  # fmt: skip


def sort_key(version: str | None) -> SortKey:
    """Return the key that orders versions; the highest version of a model is its default.

    None, a model without a version, is above every version. Otherwise the first difference in
    these rules decides:

    1. Versions are compared part by part. A part is a number or a word; any other character
       separates parts. Numbers are compared by value: 1.10 is above 1.9. A missing part is below
       a number: 1.0.1 is above 1.0. Zeros at the end do not count: 1.0 and 1 are equal here.
    2. A pre-release is below its release. That is alpha, beta, rc, dev and their aliases,
       and any word that follows a number and a hyphen: 1.0.0-rc.1, 1.0rc1, v2-beta.
       A number after a hyphen is a part like any other, so that dates work: 2026-01-31.
    3. A post-release is above its release: 1.0.post1, v2-hotfix.
    4. Build metadata, all from the first `+`, decides only between versions that are equal
       without it.
    5. The string itself decides last, so that no two versions are equal.

    A `v` before the first number does not count, nor does case. A version that starts with a
    word is below one that starts with a number. The cost is linear in the length.
    """
    if version is None:
        return (True, (), (), "")
    public, _, build = version.partition("+")
    prefix = re.match(_PREFIX_PATTERN, public)
    parts = _split(public[prefix.end() :] if prefix else public, is_build=False)
    return (False, parts, _split(build, is_build=True), version)


def _split(text: str, *, is_build: bool) -> tuple[Part, ...]:
    parts: list[Part] = []
    numbers = 0  # in a row at the end of `parts`
    in_pre_release, end = False, 0
    for match in re.finditer(_PART_PATTERN, text):
        separator, end = text[end : match.start()], match.end()
        if match[1]:
            parts.append(_number(match[1]))
            numbers += 1
            continue
        written = match[0].casefold()
        word = _ALIASES.get(written, written)
        if is_build or not parts:
            rank = _WORD
        else:
            if written in {"a", "b", "c"} and not numbers:  # a name: model-a, model-b
                word = written
            rank = _rank(word, numbers > 0 and "-" in separator, in_pre_release)
        in_pre_release |= rank in {_DEVELOPMENT, _PRE_RELEASE}
        _close_run(parts, numbers, rank)
        parts.append((rank, 0, written if rank == _WORD else word))
        numbers = 0
    _close_run(parts, numbers, _END)
    return (*parts, (_END, 0, ""))


def _number(digits: str) -> Part:
    """Return the part of a number without int(), whose cost is quadratic in the digits."""
    if not digits.isascii():
        digits = "".join([str(int(digit)) for digit in digits])
    digits = digits.lstrip("0")
    return (_NUMBER, len(digits), digits)


_ZERO: Final = _number("0")


def _rank(word: str, after_number_and_hyphen: bool, in_pre_release: bool) -> int:
    if word in _DEVELOPMENT_WORDS:
        return _DEVELOPMENT
    if word in _POST_RELEASE_WORDS:
        return _POST_RELEASE
    if in_pre_release:
        return _PRE_RELEASE_WORD
    if word in _PRE_RELEASE_WORDS or after_number_and_hyphen:
        return _PRE_RELEASE
    return _WORD


def _close_run(parts: list[Part], numbers: int, next_rank: int) -> None:
    """End a run of numbers so that 1.0 equals 1, and 1.0rc equals 1.0rc0 if no word follows."""
    while numbers > 1 and parts[-1] == _ZERO:
        parts.pop()
        numbers -= 1
    last_rank = parts[-1][0] if parts else _END
    if next_rank in {_DEVELOPMENT, _POST_RELEASE, _END} and last_rank in _TAKES_NUMBER:
        parts.append(_ZERO)
