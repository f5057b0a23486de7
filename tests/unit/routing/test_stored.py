"""Routing rules: round trips through their JSON form in the store."""

from __future__ import annotations

import pytest

from stepflow.errors import DataLoss
from stepflow.flow.paths import parse_path
from stepflow.routing.stored import decode_rules, encode_rules
from stepflow.routing.table import Rule

RULES = (
    Rule("a", ((parse_path("$.user.name"), {"x": [1, None]}), (parse_path('$["a.b"][0]'), 1.5))),
    Rule("b", allow=frozenset({"/x", "/y"}), deny=frozenset()),
    Rule("b", params={"region": "eu"}),
)
TYPES = {"a": "mcp", "b": "builtin"}


def test_rules_come_back_as_they_were_written() -> None:
    assert decode_rules(encode_rules(RULES, TYPES)[0]) == (RULES, TYPES)


def test_no_list_and_an_empty_list_are_not_the_same() -> None:
    assert encode_rules([Rule("b", allow=frozenset())], TYPES)[1] != encode_rules([Rule("b")], TYPES)[1]


def test_equal_rules_have_equal_hashes_and_the_order_of_rules_counts() -> None:
    assert encode_rules(RULES, TYPES) == encode_rules(list(RULES), dict(reversed(TYPES.items())))
    assert encode_rules(RULES, TYPES)[1] != encode_rules(RULES[::-1], TYPES)[1]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"rules":[{}]}', b'{"rules":[{"plugin":1}]}', b'{"rules":3}'])
def test_what_cannot_be_read_is_data_loss(text: bytes) -> None:
    with pytest.raises(DataLoss) as caught:
        decode_rules(text)
    assert caught.value.reason == "ROUTES_UNREADABLE"
