"""A text that a caller of the client gives must not be empty, and the nil UUID is no id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from stepflow.client import BlockingClient, Named
from stepflow.client.requests import split_name
from stepflow.errors import Invalid
from stepflow.ids import new_run_id, parse_run_id

if TYPE_CHECKING:
    from collections.abc import Callable

NIL = "00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize(
    ("reason", "call"),
    [
        ("RUN_ID_INVALID", lambda client: client.submit("greet", run_id="")),
        ("SIGNAL_INVALID", lambda client: client.signal(new_run_id(), "go", signal_id=" ")),
        ("LABEL_INVALID", lambda client: client.store_flow({}, label="")),
        ("LABEL_INVALID", lambda client: client.delete_flow("greet", label="")),
        ("LABEL_INVALID", lambda client: client.get_flow("greet@")),
        ("LABEL_INVALID", lambda client: client.submit(Named("greet", ""))),
    ],
)
def test_an_empty_text_is_refused_before_anything_is_sent(reason: str, call: Callable[[Any], object]) -> None:
    with BlockingClient("localhost:1", patience_s=0.0) as client, pytest.raises(Invalid) as caught:
        call(client)
    assert caught.value.reason == reason


def test_a_name_has_a_label_behind_its_last_at_sign() -> None:
    assert [split_name(text) for text in ("a", "a@b", "a@b@c")] == [("a", ""), ("a", "b"), ("a@b", "c")]


@pytest.mark.parametrize("text", [NIL, NIL.replace("-", ""), "", "x"])
def test_the_nil_uuid_is_no_run_id(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_run_id(text)
    assert caught.value.reason == "RUN_ID_INVALID"
