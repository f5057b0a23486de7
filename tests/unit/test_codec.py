"""Numbers and strings that a JSON tree cannot hold are refused with their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from stepflow.codec import compact, parse
from stepflow.errors import Invalid
from stepflow.flow.document import parse_tree
from stepflow.flow.source import DocumentInvalid

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ('{"a":[1,{"b":1e400}]}', "$.a[1].b", "beyond the range of a double"),
        ('{"a":[0.5,-1E+400]}', "$.a[1]", "beyond the range of a double"),
        ('{"small":1e-400}', "$.small", "its double is 0"),
        ("[-1E-0400]", "$[0]", "its double is 0"),
        ("[1, 0." + "0" * 400 + "1]", "$[1]", "its double is 0"),
        ("[1, 0." + "0" * 250 + "1e-99]", "$[1]", "its double is 0"),
        ('{"a.b":"\\ud800"}', '$["a.b"]', "half of a surrogate pair"),
        ('{"a":{"\\udc00":1}}', "$.a", "half of a surrogate pair"),
    ],
)
@pytest.mark.parametrize("as_bytes", [True, False], ids=["bytes", "text"])
@pytest.mark.parametrize("check", [compact, parse])
def test_a_value_that_no_tree_holds_is_refused_with_its_place(
    text: str, place: str, problem: str, as_bytes: bool, check: Callable[..., Any]
) -> None:
    with pytest.raises(Invalid) as caught:
        check(text.encode() if as_bytes else text, what="the input")
    assert caught.value.reason == "JSON_INVALID"
    assert f"{place}: " in caught.value.message
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"[0.0,-0.0,0e-999,0.0E-400]", b"[0.0,-0.0,0.0,0.0]"),
        (b"[5e-324,2.5e-320,1e308]", b"[5e-324,2.5e-320,1e308]"),
        (b'["1e-400","0.0"]', b'["1e-400","0.0"]'),
        (b"[123456789012345678901234567890]", b"[123456789012345678901234567890]"),
        (b"[1.10,1E2,0.1234567890123456789]", b"[1.1,100.0,0.12345678901234568]"),
    ],
)
def test_a_number_with_a_fraction_or_an_exponent_is_its_nearest_double(text: bytes, kept: bytes) -> None:
    assert compact(text) == kept


@pytest.mark.parametrize("lost", ["1e400", "1e-400", '"\\ud800"'])
def test_a_document_names_the_line_of_a_value_that_no_tree_holds(lost: str) -> None:
    with pytest.raises(DocumentInvalid) as caught:
        parse_tree(f'{{"a": [1,\n  {{"b": {lost}}}]}}', source="in.json", format="json")
    assert (caught.value.reason, caught.value.line, caught.value.field) == ("JSON_INVALID", 2, "$.a[1].b")
