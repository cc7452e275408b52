"""Every failure has a status, and a message that is one harmless line."""

from __future__ import annotations

import inspect

import pytest

from mlserverless import errors

TREE = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if each.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_the_tree_at_the_head_of_the_file_names_every_error_with_its_status(
    error: type[errors.MLServerlessError],
) -> None:
    drawn = [line.split() for line in (errors.__doc__ or "").splitlines()]
    assert [str(error.status)] == [
        line[line.index(error.__name__) + 1] for line in drawn if error.__name__ in line
    ]


def test_unavailable_says_when_to_come_back() -> None:
    assert {"Retry-After": "7"} == errors.Unavailable("later", retry_after=7).headers


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("plain", "plain"),
        ("caf\u00e9", "caf\u00e9"),
        ("a\r\nb\x00", r"a\r\nb\x00"),
        ("\ud800", r"\ud800"),
        ("x" * 101, "x" * 100 + "…"),
    ],
)
def test_a_quoted_name_is_one_line_of_at_most_a_hundred_characters(name: str, quoted: str) -> None:
    assert quoted == errors.quote(name)


def test_somebody_elses_sentence_is_folded_into_one_line() -> None:
    assert "X has 3 features, but" == errors.one_line("X has 3\n  features,\tbut")
