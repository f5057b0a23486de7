"""The JSON Schema of flows: the parser accepts what it accepts, and it accepts every flow of the repository."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ROOT
from support.schema_documents import documents

from stepflow.flow import FlowInvalid, flow_from_tree, parse_flow, parse_path, parse_tree
from stepflow.flow.duration import DURATION_PATTERN, parse_duration_ms
from stepflow.flow.flow_schema import PATH_PATTERN, flow_schema

SCHEMA = flow_schema()
VALIDATOR = jsonschema_rs.Draft202012Validator(SCHEMA)
FOLDERS = ("examples", "tests/data", "docs", "stepflow/cli/template", "benchmarks")


def flows() -> list[Path]:
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.y*ml")):
            try:
                flow = parse_flow(path.read_bytes(), source=str(path), format="yaml")
            except FlowInvalid:
                continue
            if (flow.steps or flow.output is not None) and not flow.warnings:
                found.append(path)
    return found


def pattern_accepts(pattern: str, text: str) -> bool:
    return jsonschema_rs.is_valid({"type": "string", "pattern": pattern}, text)


def test_every_flow_of_the_repository_fits() -> None:
    paths = flows()
    assert len(paths) >= 10
    for path in paths:
        tree = parse_tree(path.read_bytes(), source=str(path), format="yaml", complex_keys=True).value
        assert [str(error) for error in VALIDATOR.iter_errors(json.loads(json.dumps(tree)))] == [], path


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents(SCHEMA))
def test_the_parser_accepts_what_the_schema_accepts(tree: Any) -> None:
    flow = flow_from_tree(tree)
    assert [
        item for item in flow.warnings if item.code in (1900, 1901, 2006) and "ordinary" not in item.formatted
    ] == []


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="$.[]'\"a0 1\n", max_size=9))
def test_paths_that_the_schema_accepts_are_paths(text: str) -> None:
    if pattern_accepts(PATH_PATTERN, text):
        parse_path(text)


@settings(max_examples=500, deadline=None)
@given(st.from_regex(DURATION_PATTERN))
def test_durations_that_the_schema_accepts_are_durations(text: str) -> None:
    if pattern_accepts(DURATION_PATTERN, text):
        assert parse_duration_ms(text) >= 1


@pytest.mark.parametrize("text", ["500ms", "30s", "0.25s", "1.5 s", "5m", "24h", "48d", "86400000ms"])
def test_usual_durations_are_accepted(text: str) -> None:
    assert pattern_accepts(DURATION_PATTERN, text)


@pytest.mark.parametrize(
    "tree",
    [
        {"outputs": 1},
        {"plugins": {}},
        {"steps": [{"id": "a"}]},
        {"steps": [{"id": "a", "component": "/x", "inputs": 1}]},
        {"steps": [{"id": "a", "component": "/x", "timeout": 3}]},
        {"steps": [{"id": "a", "component": "/x", "onError": {"action": "retyr"}}]},
        {"output": {"$if": 1}},
        {"output": {"$from": 1}},
        {"output": [{"a": {"$step": "a", "pth": "b"}}]},
        {"output": {"$input": "$x"}},
        {"schemas": {"input": {}}},
        {"test": {"cases": [{"name": "a", "input": 1, "output": {"outcome": "skipped"}}]}},
    ],
)
def test_slips_are_refused(tree: Any) -> None:
    assert not VALIDATOR.is_valid(tree)


def test_every_member_has_a_description() -> None:
    def check(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for name, member in node.get("properties", {}).items():
                if path.endswith(("step", "case", "parts", "example", "test")) or path == "$":
                    assert member.get("description"), f"{path}.{name}"
            for name, below in node.items():
                check(below, name)

    check(SCHEMA, "$")
