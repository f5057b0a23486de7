"""JSON in google.protobuf.Value: round trips and refusals."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from stepflow.errors import Invalid
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.pull.values import EXACT_MAX, fill, tree_of

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-EXACT_MAX, EXACT_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"))
)
TREES = st.recursive(
    SCALARS,
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), below, max_size=4)
    ),
    max_leaves=20,
)


def through(tree: Any) -> Any:
    value = struct_pb2.Value()
    fill(value, tree, "it")
    return tree_of(struct_pb2.Value.FromString(value.SerializeToString()), "it")


@given(TREES)
def test_a_tree_comes_back_equal(tree: Any) -> None:
    assert through(tree) == tree


@pytest.mark.parametrize(
    ("number", "back"), [(1, 1), (1.0, 1), (-3.0, -3), (1.5, 1.5), (2**53, 2**53), (1e300, 1e300), (True, True)]
)
def test_a_number_without_a_fraction_is_an_integer_again(number: float, back: float) -> None:
    found = through(number)
    assert found == back
    assert type(found) is type(back)


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 2**60, 10**5_000], ids=["above", "below", "far", "huge"])
def test_an_integer_that_no_double_holds_is_refused(number: int) -> None:
    with pytest.raises(Invalid) as caught:
        fill(struct_pb2.Value(), {"a": [number]}, "the input of /x")
    assert caught.value.reason == "NUMBER_TOO_LARGE"
    assert "the input of /x" in caught.value.message


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_has_not_is_refused(number: float) -> None:
    with pytest.raises(Invalid) as caught:
        tree_of(struct_pb2.Value(number_value=number), "the output")
    assert caught.value.reason == "NUMBER_INVALID"


@pytest.mark.parametrize("container", [lambda below: [below], lambda below: {"a": below}])
def test_what_passes_can_be_decoded_and_what_is_deeper_is_refused(container: Any) -> None:
    passed = levels_that_pass(container)
    assert 20 < passed < 100
    tree: Any = 1
    for _ in range(passed + 1):
        tree = container(tree)
    with pytest.raises(Invalid) as caught:
        fill(struct_pb2.Value(), tree, "the input")
    assert caught.value.reason == "VALUE_TOO_DEEP"


def levels_that_pass(container: Any) -> int:
    """Return the greatest depth that a decoder accepts in an assignment, the deepest message around a value."""
    tree: Any = 1
    for levels in range(100):
        assignment = pb.TaskAssignment()
        try:
            fill(assignment.execute.input, tree, "the input")
        except Invalid:
            return levels - 1
        assert pb.TaskAssignment.FromString(assignment.SerializeToString()) == assignment
        tree = container(tree)
    return 100


def test_members_come_in_the_same_order_in_every_process() -> None:
    """Protobuf seeds the hashing of its maps in each process."""
    names = [f"member{number}" for number in range(40)]
    script = (
        "import json, sys\n"
        "from google.protobuf import struct_pb2\n"
        "from stepflow.pull.values import fill, tree_of\n"
        "value = struct_pb2.Value()\n"
        "fill(value, {'in': {name: 1 for name in json.loads(sys.argv[1])}}, 'it')\n"
        "print(json.dumps(tree_of(struct_pb2.Value.FromString(value.SerializeToString()), 'it')))\n"
    )
    texts = {
        subprocess.run([sys.executable, "-c", script, json.dumps(names)], capture_output=True, check=True).stdout
        for _ in range(4)
    }
    assert [list(json.loads(text)["in"]) for text in texts] == [sorted(names)]


def test_negative_zero_keeps_its_sign() -> None:
    assert [math.copysign(1, number) for number in through([-0.0, 0.0, 0])] == [-1, 1, 1]
    assert [type(number) for number in through([-0.0, 0.0, 0])] == [float, int, int]
