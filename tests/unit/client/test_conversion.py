"""Messages of a server as values of the client."""

from __future__ import annotations

from typing import Any

from stepflow.client.conversion import status_of


def test_a_status_that_only_a_later_server_knows_is_shown_by_its_number() -> None:
    known: Any = 1
    later: Any = 99
    assert (status_of(known), status_of(later)) == ("running", "unknown (99)")
