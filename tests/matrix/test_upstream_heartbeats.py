"""Upstream's orchestrator drops a worker after 5 to 10 s of silence; an SDK worker sends heartbeats while it works."""

from __future__ import annotations

import pytest
from support.upstream import DATA, flow, run_upstream

pytestmark = pytest.mark.timeout(400)  # the orchestrator is installed first


def test_components_that_take_long_are_waited_for_by_upstream() -> None:
    steps = [(name, f"/ours/{name}", {"seconds": 12}) for name in ("blocking", "waiting")]
    found = run_upstream({"ours": DATA / "stepflow_servers" / "slow.py"}, {"flow": flow(*steps), "input": {}})
    assert found["runs"] == [{"output": {"blocking": "slept", "waiting": "waited"}, "code": 0, "message": ""}]
