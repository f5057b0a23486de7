"""Known secrets and credentials leave no text."""

from __future__ import annotations

import pytest

from stepflow.redaction import longest_first, redact_values, url_without_credentials


def test_a_secret_that_contains_another_is_replaced_as_a_whole() -> None:
    secrets = longest_first(["hunter", "hunter2-and-more"])
    assert redact_values("say hunter2-and-more, hunter", secrets) == "say [REDACTED], [REDACTED]"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@host:8443/mcp?key=k#f", "https://host:8443/mcp"),
        ("s3://AKIA:secret@bucket/prefix", "s3://bucket/prefix"),
        ("memory://", "memory:"),
        ("file:///var/blobs", "file:///var/blobs"),
    ],
)
def test_a_url_is_shown_without_its_credentials(url: str, shown: str) -> None:
    assert url_without_credentials(url).rstrip("/") == shown.rstrip("/")
