"""A server with this project's SDK under upstream's orchestrator, 0.13.0, which starts it and dispatches to it."""

from __future__ import annotations

import re

import pytest
from support.upstream import DATA, flow, run_upstream

pytestmark = pytest.mark.timeout(400)  # the orchestrator is installed first


def test_upstreams_orchestrator_drives_a_server_with_our_sdk() -> None:
    child = {
        "schemas": {},
        "steps": [{"id": "s", "component": "/ours/add", "input": {"a": {"$input": "x"}, "b": 1}}],
        "output": {"$step": "s"},
    }
    good = flow(
        ("sync", "/ours/add", {"a": 1, "b": {"$input": "n"}}),
        ("pattern", "/more/files/a/b", {"value": 5}),
        ("blob", "/ours/blob_async", {"value": [1, "é", 2**53]}),
        ("blob_in_thread", "/ours/blob_sync", {"value": {"a": 1.5}}),
        ("sub_flow", "/ours/flow_async", {"flow": {"$literal": child}, "value": {"x": 41}}),
        ("large", "/ours/big", {"count": 2 << 20}),
    )
    found = run_upstream(
        {"ours": DATA / "servers" / "behaviours.py", "more": DATA / "stepflow_servers" / "own.py"},
        {"flow": good, "input": {"n": 21}},
        {"flow": flow(("s", "/ours/fail", {"kind": "input"})), "input": {}},
        {"flow": flow(("s", "/ours/fail", {"kind": "own"})), "input": {}},
    )
    assert {"add", "flow_async", "files/{*rest}"} <= set(found["components"])
    first, refused, failed = found["runs"]
    output = first["output"]
    assert len(output.pop("large")) == 2 << 20
    assert output["blob"][1] == [1, "é", 2**53]
    assert output["blob_in_thread"][1] == {"a": 1.5}
    assert output["pattern"]["rest"] == "a/b"
    assert (output["sync"], output["sub_flow"]) == (22, 42)
    assert (refused["code"], refused["message"]) == (2, "the input is odd")
    assert failed["code"] == 3
    assert re.fullmatch(r"KeyError: 'secret place' \(.*behaviours\.py:\d+ in fail\)", failed["message"])
