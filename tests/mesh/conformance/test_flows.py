"""Refused flows, their diagnostics, and flow ids: conformance cases of documents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from stepflow.codec import encode
from stepflow.config import load_config
from stepflow.errors import Invalid
from stepflow.flow import flow_from_tree, flow_id

if TYPE_CHECKING:
    from pathlib import Path

    from support.conformance import CaseMesh


def noop(step_id: str, input: Any = None) -> dict[str, Any]:
    return {"id": step_id, "component": "/builtin/noop", "input": input}


FORWARD = [noop("a", {"$step": "b"}), noop("b", 1)]


@pytest.mark.parametrize(
    ("flow", "code", "path"),
    [
        pytest.param({"steps": [noop("a"), noop("a")]}, 3000, "$.steps[1].id", id="duplicate"),
        pytest.param({"steps": [noop(" ")]}, 3001, "$.steps[0].id", id="blank"),
        pytest.param({"steps": [noop("a", {"x": {"$step": "a"}})]}, 3002, "$.steps[0].input.x", id="self"),
        pytest.param({"steps": FORWARD}, 3003, "$.steps[0].input", id="forward"),
        pytest.param({"steps": [noop("a", [{"$step": "z"}])]}, 3003, "$.steps[0].input[0]", id="unknown"),
        pytest.param({"output": {"$step": "z"}}, 3003, "$.output", id="unknown in the output"),
    ],
)
def test_unsound_references_are_fatal_and_the_flow_is_not_stored(
    mesh: CaseMesh, flow: dict[str, Any], code: int, path: str
) -> None:
    assert (code, "fatal", path) in mesh.diagnose(flow)
    for refuse in (mesh.store, mesh.run):
        with pytest.raises(Invalid) as refused:
            refuse(flow)
        assert (refused.value.status, refused.value.reason) == ("INVALID_ARGUMENT", "FLOW_INVALID")
    assert mesh.stored(flow_id(flow_from_tree(flow))) is None


def test_a_flow_stored_as_a_literal_is_checked_with_the_outer_one(mesh: CaseMesh) -> None:
    data = {"$literal": {"steps": FORWARD, "output": {"$step": "a"}}}
    put = {"id": "put", "component": "/builtin/put_blob", "input": {"blob_type": "flow", "data": data}}
    flow = {"steps": [put], "output": {"$step": "put"}}
    assert (3003, "fatal", "$.steps[0].input.data.$literal.steps[0].input") in mesh.diagnose(flow)
    with pytest.raises(Invalid) as refused:
        mesh.store(flow)
    assert refused.value.reason == "FLOW_INVALID"
    assert mesh.stored(flow_id(flow_from_tree(flow))) is None


def test_a_component_without_a_slash_is_stored_and_cannot_be_routed(mesh: CaseMesh) -> None:
    flow = {"steps": [{"id": "a", "component": "builtin/noop"}], "output": {"$step": "a"}}
    assert [(level, path) for code, level, path in mesh.diagnose(flow) if code == 2500] == [
        ("error", "$.steps[0].component")
    ]
    stored = mesh.store(flow)
    assert mesh.stored(stored) is not None
    ran = mesh.run(stored)
    assert (ran.status, ran.error["code"]) == ("failed", "ORCHESTRATOR_ERROR")


@pytest.mark.parametrize("part", ["input", "output", "variables", "steps"])
def test_schemas_without_their_wrapper_are_refused(mesh: CaseMesh, part: str) -> None:
    with pytest.raises(Invalid, match="properties"):
        mesh.run({"schemas": {part: {"type": "object"}}})


@pytest.mark.parametrize(
    "flow",
    [
        {"output": {"$from": {"step": "a"}}},
        {"output": [{"deep": {"$from": {"workflow": "input"}}}]},
        {"steps": [noop("a", {"x": {"$from": {"step": "b"}}})]},
        {"output": {"$if": True, "then": {"$from": 1}}},
    ],
)
def test_the_old_way_to_refer_is_refused_wherever_it_stands(mesh: CaseMesh, flow: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match=r"\$from"):
        mesh.run(flow)


# --- identity --------------------------------------------------------------------------------------------------------

SMALL = {
    "name": "small",
    "steps": [
        {"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": 0, "passthrough": {"z": 1, "a": 2.0}}}
    ],
    "output": {"$step": "a", "path": "passthrough"},
}


def test_a_flow_has_one_id_however_often_and_in_whatever_order_it_is_stored(mesh: CaseMesh) -> None:
    first = mesh.store(SMALL)
    backwards = {
        **{name: SMALL[name] for name in reversed(SMALL)},
        "steps": [dict(reversed(list(step.items()))) for step in SMALL["steps"]],
        "output": {"$step": "a", "path": "$.passthrough"},
    }
    assert [mesh.store(SMALL), mesh.store(json.loads(json.dumps(backwards)))] == [first, first]
    assert len(first) == 64


def test_another_flow_has_another_id(mesh: CaseMesh) -> None:
    assert mesh.store({**SMALL, "name": "other"}) != mesh.store(SMALL)


def test_a_stored_flow_keeps_its_numbers(mesh: CaseMesh) -> None:
    ran = mesh.run(mesh.store(SMALL))
    assert encode(ran.value) == b'{"z":1,"a":2.0}'


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["/mock/core", "/mock/", "", "/mock/{name}"])
def test_a_route_of_several_segments_is_refused_before_anything_starts(tmp_path: Path, key: str) -> None:
    file = tmp_path / "stepflow-config.yml"
    file.write_text(f'plugins: {{ builtin: {{ type: builtin }} }}\nroutes: {{ "{key}": [{{ plugin: builtin }}] }}\n')
    with pytest.raises(Invalid) as refused:
        load_config(file)
    assert refused.value.reason == "CONFIG_INVALID"
    assert "stepflow-config.yml:2" in refused.value.message
