"""The public names of the client library."""

import pytest

from stepflow import client


@pytest.mark.parametrize(
    ("older", "name"),
    [
        ("Cluster", "ClusterInfo"),
        ("Diagnostic", "FlowDiagnostic"),
        ("Event", "ClientEvent"),
        ("Item", "RunItem"),
        ("Step", "RunStep"),
        ("Watch", "RunWatch"),
    ],
)
def test_an_older_name_is_the_same_class(older: str, name: str) -> None:
    assert getattr(client, older) is getattr(client, name)
    assert {older, name} <= set(client.__all__)


def test_every_public_name_exists() -> None:
    assert [name for name in client.__all__ if not hasattr(client, name)] == []
