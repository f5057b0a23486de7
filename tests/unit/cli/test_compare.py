"""Comparison of actual with expected results."""

from typing import Any

import pytest

from stepflow.cli.testing.compare import (
    SHOWN_CHARS_MAX,
    ZERO_UUID,
    differences,
    normalise,
    sort_members,
    without_mesh_data,
)

SAME: list[tuple[str, Any, Any]] = [
    ("equal trees", {"a": [1, "x", None]}, {"a": [1, "x", None]}),
    ("extra members", {"a": {"b": 1}}, {"a": {"b": 1, "c": 2}, "d": 3}),
    ("members in another order", {"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ("extra members inside arrays", [{"a": 1}], [{"a": 1, "b": 2}]),
    ("an empty object expects any object", {"a": {}}, {"a": {"b": 1}}),
    ("a number by value", {"a": 8}, {"a": 8.0}),
    ("null for null", {"a": None}, {"a": None}),
    (
        "error data that nobody expects",
        {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "late"}},
        {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "late", "data": {"stack": []}}},
    ),
]

DIFFERENT: list[tuple[str, Any, Any, str]] = [
    ("a scalar", {"a": 1}, {"a": 2}, "$.a: expected 1, got 2"),
    ("a missing member", {"a": {"b": 1}}, {"a": {}}, "$.a.b: expected 1, but there is no such member"),
    ("null is not absent", {"a": None}, {}, "$.a: expected null, but there is no such member"),
    ("a shorter array", [1, 2], [1], "$: expected 2 elements, got 1"),
    ("a longer array", [1], [1, 2], "$: expected 1 elements, got 2"),
    ("an element", [1, [2, 3]], [1, [2, 4]], "$[1][1]: expected 3, got 4"),
    ("true is not one", {"a": 1}, {"a": True}, "$.a: expected 1, got true"),
    ("false is not zero", {"a": False}, {"a": 0}, "$.a: expected false, got 0"),
    ("a number is not its text", {"a": 1}, {"a": "1"}, '$.a: expected 1, got "1"'),
    ("an array is not an object", {"a": []}, {"a": {}}, "$.a: expected [], got {}"),
    ("a name that is no word", {"a b": 1}, {"a b": 2}, '$["a b"]: expected 1, got 2'),
    ("the code of an error", {"error": {"code": "TIMEOUT"}}, {"error": {"code": "CANCELLED"}}, "$.error.code: "),
]


@pytest.mark.parametrize(("what", "expected", "actual"), SAME, ids=[case[0] for case in SAME])
def test_an_actual_result_with_all_that_is_expected_passes(what: str, expected: Any, actual: Any) -> None:
    assert list(differences(expected, actual)) == []


@pytest.mark.parametrize(("what", "expected", "actual", "line"), DIFFERENT, ids=[case[0] for case in DIFFERENT])
def test_a_difference_is_named_with_its_place(what: str, expected: Any, actual: Any, line: str) -> None:
    (found,) = differences(expected, actual)
    assert found.startswith(line)


def test_every_difference_is_reported() -> None:
    found = list(differences({"a": 1, "b": [1, 2]}, {"a": 2, "b": [1, 3]}))
    assert found == ["$.a: expected 1, got 2", "$.b[1]: expected 2, got 3"]


def test_a_long_value_is_cut_in_the_message() -> None:
    (found,) = differences({"a": "x" * 10_000}, {"a": "y" * 10_000})
    assert len(found) < 3 * SHOWN_CHARS_MAX


def test_run_ids_and_backtraces_do_not_count() -> None:
    tree = {"run_id": "0192c5a0", "a": [{"run_id": "x", "backtrace": "…", "error": "e"}], "backtrace": [1]}
    assert normalise(tree) == {"run_id": ZERO_UUID, "a": [{"run_id": ZERO_UUID, "error": "e"}]}


def test_a_run_id_that_is_no_text_is_data() -> None:
    assert normalise({"run_id": 5}) == {"run_id": 5}


def test_normalising_leaves_its_argument_alone() -> None:
    tree = {"run_id": "x", "backtrace": "y"}
    normalise(tree)
    assert tree == {"run_id": "x", "backtrace": "y"}


def test_members_are_sorted_at_every_depth() -> None:
    assert list(sort_members({"b": [{"d": 1, "c": 2}], "a": 0})) == ["a", "b"]
    assert list(sort_members({"b": [{"d": 1, "c": 2}]})["b"][0]) == ["c", "d"]


def test_what_the_mesh_adds_to_errors_is_not_written_into_test_cases():
    located = {"step": "a", "component": "/c", "attempt": 1, "host": "h", "frames": [{"file": "c.py"}]}
    failed = {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "no", "data": {"n": 1, **located}}}
    kept = {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "no", "data": {"n": 1}}}
    tree = {"outcome": "success", "result": {"results": [failed], "attempt": 7}}
    assert without_mesh_data(tree) == {"outcome": "success", "result": {"results": [kept], "attempt": 7}}

    bare = {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "no", "data": located}}
    assert without_mesh_data(bare) == {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "no"}}

    own = {"step": "mine", "stepflow": located}
    assert without_mesh_data({**failed, "error": {"data": own}}) == {**failed, "error": {"data": {"step": "mine"}}}
    unlocated = {**failed, "error": {"data": {"step": 3}}}
    assert without_mesh_data(unlocated) == unlocated
