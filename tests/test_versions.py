"""Which of several versions is the highest, in every notation."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.version import Version

from mlserverless.versions import sort_key


@pytest.mark.parametrize(
    "ascending",
    [
        ["v0.9.0", "v0.10.0", "v1.0.0"],
        ["9", "10", "100"],
        ["1.9", "1.10"],
        ["1", "1.0.1", "1.1", "1.1.1", "2"],
        ["1.0.0-rc1", "1.0.0"],
        ["1.0.0-rc9", "1.0.0-rc10", "1.0.0"],
        ["1.0rc1", "1.0"],
        ["1.0.0-rc.1", "1.0"],
        ["v2-beta", "v2", "v2.1-beta", "V2.1"],
        ["v2_beta", "v2"],
        ["1.0-SNAPSHOT", "1.0-RC1", "1.0"],
        ["1.0.0-foo", "1.0.0"],
        ["v2", "v2-hotfix", "v2.1"],
        ["2025-12-31", "2026-01-30", "2026-01-31", "2026-02-01", "2026-10-01"],
        ["2026-01-31", "2026-01-31-v2", "2026-01-31-v10"],
        ["20260131T090000Z", "20260131T101500Z", "20260201T000000Z"],
        ["1.0.0+build.9", "1.0.0+build.10", "1.0.1"],
        ["1.0.0-rc1+build", "1.0.0", "1.0.0+build"],
        ["1.0.2", "1.0.2k", "1.0.3"],
        ["model-9", "model-10"],
        ["beta", "latest", "0", "9"],
        ["", "-", "beta", "0"],
        ["007", "8"],
        ["\u0661", "2", "\u0663"],  # Arabic-Indic one and three
        # the precedence of semver.org, rule 11
        ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2",
         "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0"],
        ["2.0.0-alpha", "2.0.0-beta", "2.0.0-rc.1", "2.0.0"],
        # the summary of permitted suffixes and their order, PEP 440
        ["1.dev0", "1.0.dev456", "1.0a1", "1.0a2.dev456", "1.0a12.dev456", "1.0a12",
         "1.0b1.dev456", "1.0b2", "1.0b2.post345.dev456", "1.0b2.post345", "1.0rc1.dev456",
         "1.0rc1", "1.0", "1.0+abc.5", "1.0+abc.7", "1.0+5", "1.0.post456.dev34",
         "1.0.post456", "1.0.15", "1.1.dev1"],
    ],
    ids=lambda ascending: ascending[-1],
)  # fmt: skip
def test_versions_are_compared_part_by_part(ascending: list[str]) -> None:
    for lower, higher in itertools.combinations(ascending, 2):
        assert sort_key(lower) < sort_key(higher), (lower, higher)
        assert sort_key(higher) < sort_key(None), "no version is above every version"


ANY_VERSION = st.text(max_size=20) | st.from_regex(
    r"v?[0-9]{0,2}([-._+]?([0-9]{1,3}|a|rc|alpha|dev|post|x)){0,5}", fullmatch=True
)


@given(ANY_VERSION, ANY_VERSION, ANY_VERSION)
def test_any_strings_have_one_total_order(a: str, b: str, c: str) -> None:
    keys = {each: sort_key(each) for each in (a, b, c)}
    assert (a == b) == (keys[a] == keys[b])
    assert 1 == (keys[a] < keys[b]) + (keys[a] == keys[b]) + (keys[a] > keys[b])
    assert (keys[a] < keys[b]) == (keys[b] > keys[a])
    low, middle, high = sorted((a, b, c), key=keys.__getitem__)
    assert keys[low] <= keys[middle] <= keys[high]
    assert keys[low] <= keys[high]
    orders = {
        tuple(sorted(order, key=keys.__getitem__)) for order in itertools.permutations((a, b, c))
    }
    assert 1 == len(orders), "whatever the order in which they are found"


PEP_440 = st.from_regex(
    r"v?(0|[1-9][0-9]?)(\.(0|[1-9][0-9]?)){0,3}"
    r"([-._]?(a|b|c|rc|alpha|beta|pre|preview)([-._]?[0-9]{1,2})?)?"
    r"([-._](post|rev|r)([-._]?[0-9]{1,2})?)?([-._]dev([-._]?[0-9]{1,2})?)?"
    r"(\+[a-z]{1,3}(\.[1-9])?)?",
    fullmatch=True,
).filter(str.isascii)


@given(PEP_440, PEP_440)
@example("1.0rc1", "1")
@example("1.0.post.dev1", "1.0.post0")
def test_what_pep_440_orders_is_ordered_so(a: str, b: str) -> None:
    one, other = Version(a), Version(b)
    if one != other:
        assert (one < other) == (sort_key(a) < sort_key(b))


NUMBER = st.integers(0, 20).map(str)
IDENTIFIER = NUMBER | st.sampled_from(["alpha", "beta", "rc", "x", "y"])
SEMVER = st.tuples(st.tuples(NUMBER, NUMBER, NUMBER), st.lists(IDENTIFIER, max_size=3)).filter(
    lambda each: not each[1] or not each[1][0].isdigit()
)


def semver_precedence(version: tuple[tuple[str, ...], list[str]]) -> object:
    """Rule 11 of semver.org as it is written."""
    core, identifiers = version
    ranked = [(0, int(each), "") if each.isdigit() else (1, 0, each) for each in identifiers]
    return [int(each) for each in core], not identifiers, ranked


@given(SEMVER, SEMVER)
def test_what_semver_orders_is_ordered_so(
    a: tuple[tuple[str, ...], list[str]], b: tuple[tuple[str, ...], list[str]]
) -> None:
    one, other = (
        ".".join(core) + "".join(["-", ".".join(rest)] if rest else []) for core, rest in (a, b)
    )
    if semver_precedence(a) < semver_precedence(b):  # type: ignore[operator] # of one shape
        assert sort_key(one) < sort_key(other)


@pytest.mark.parametrize("text", ["9", "0", "9.", "0.", "a1", "-", "v", "+", "rc", "\u0663", "1-a"])
def test_a_version_of_many_characters_costs_no_more_than_its_length(text: str) -> None:
    """int() refuses more than 4,300 digits, and would take quadratic time for them."""
    long = text * (100_000 // len(text))
    start = time.process_time()
    assert sort_key(long) != sort_key(long + "1")
    assert time.process_time() - start < 2, "quadratic: minutes"


def test_the_order_is_that_of_numbers_of_any_length() -> None:
    huge = "9" * 5_000
    assert sort_key(huge) < sort_key("1" + huge)
    assert sort_key("0" * 5_000 + "1") < sort_key("2")
