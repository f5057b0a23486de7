"""The JSON Schema of configurations: the reader accepts what it accepts, and it accepts those of the repository."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from support import ROOT
from support.schema_documents import documents

from stepflow.config import config_from_tree, config_schema
from stepflow.flow import parse_tree

SCHEMA = config_schema()
VALIDATOR = jsonschema_rs.Draft202012Validator(SCHEMA)
FOLDERS = ("examples", "tests/data", "docs", "stepflow/cli/template", "benchmarks")


def test_every_configuration_of_the_repository_fits() -> None:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("stepflow?config*.y*ml"))]
    assert len(paths) >= 5
    for path in paths:
        tree = parse_tree(path.read_bytes(), source=str(path), format="yaml", complex_keys=True).value
        assert [str(error) for error in VALIDATOR.iter_errors(json.loads(json.dumps(tree)))] == [], path


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents(SCHEMA))
def test_the_reader_accepts_what_the_schema_accepts(tree: Any) -> None:
    # What no schema can say: rules name plugins of the file, routes are distinct, the folder exists.
    tree.pop("workingDirectory", None)
    routes = {key.partition("/{*")[0]: rules for key, rules in tree["routes"].items()}
    plugins = dict(tree["plugins"])
    for rules in routes.values():
        for rule in rules:
            plugins.setdefault(rule["plugin"], {"type": "builtin"})

    config = config_from_tree({**tree, "plugins": plugins, "routes": routes}, source="config", base_dir=Path("/"))
    assert [line for line in config.warnings if "is not a known key" in line] == []


@pytest.mark.parametrize(
    "plugin",
    [
        {"type": "stepflow"},
        {"type": "stdio", "command": "a"},
        {"type": "stepflow", "comand": "a"},
        {"type": "stepflow", "command": "${"},
        {"type": "stepflow", "command": "a", "startTimeout": 30},
        {"type": "stepflow", "transport": "http", "command": "a", "url": "http://b"},
        {"type": "mcp", "transport": "stdio", "url": "http://b"},
        {"type": "grpc", "command": "a"},
        {"type": "mock", "components": {"a": {}}},
        {},
    ],
)
def test_slips_are_refused(plugin: Any) -> None:
    assert not VALIDATOR.is_valid({"plugins": {"p": plugin}, "routes": {}})


def test_every_key_has_a_description() -> None:
    models = {"file": SCHEMA, **SCHEMA["$defs"]}
    for name, model in models.items():
        assert all(member.get("description") for member in model["properties"].values()), name
