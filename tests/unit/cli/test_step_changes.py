"""`--set STEP.PATH=VALUE`: paths that are refused."""

from __future__ import annotations

import pytest

from stepflow.cli.console import Usage
from stepflow.cli.input.step_changes import with_changes
from stepflow.codec import JSON_DEPTH_MAX


def test_a_path_may_be_as_deep_as_a_document_and_no_deeper() -> None:
    names = ["a", "input", *["a"] * (JSON_DEPTH_MAX - 2)]
    assert "a" in with_changes({}, {".".join(names): 1})["steps"]
    for more in (1, 10_000):
        with pytest.raises(Usage, match="at most") as refused:
            with_changes({}, {".".join(names + ["a"] * more): 1})
        assert refused.value.reason == "OPTION_INVALID"
