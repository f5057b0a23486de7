"""`stepflow list-components`: the listed components, their format and their paths."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from stepflow import telemetry
from stepflow.cli.__main__ import main
from stepflow.cli.commands.components import describe
from stepflow.config import config_from_tree

CONFIG = config_from_tree(
    {
        "plugins": {"one": {"type": "builtin"}, "two": {"type": "builtin"}, "idle": {"type": "builtin"}},
        "routes": {"/x": [{"plugin": "one"}, {"plugin": "one"}], "/": [{"plugin": "one"}, {"plugin": "two"}]},
    },
    source="test",
    base_dir=Path(),
)


def component(name: str, **members: Any) -> Any:
    """A `ComponentInfo` as the component host would give it."""
    members = {"description": None, "input_schema": None, "output_schema": None, **members}
    return SimpleNamespace(component=name, path=f"/{name}", **members)


def describe_all(found: list[tuple[str, Any]], **options: bool) -> list[dict[str, Any]]:
    return describe(found, CONFIG, **{"with_schemas": False, "hide_unreachable": True, **options})


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    telemetry.configure()


def test_a_component_is_listed_with_every_path_that_reaches_it() -> None:
    assert describe_all([("one", component("add", description="Add."))]) == [
        {"component": "add", "path": "/add", "description": "Add.", "plugin": "one", "routes": ["/x/add", "/add"]}
    ]


def test_components_are_sorted_by_id() -> None:
    found = [("one", component("b")), ("two", component("a")), ("one", component("a"))]
    assert [(tree["component"], tree["plugin"]) for tree in describe_all(found)] == [
        ("a", "one"),
        ("a", "two"),
        ("b", "one"),
    ]


def test_components_without_a_route_are_hidden_unless_asked_for() -> None:
    found = [("idle", component("a"))]
    assert describe_all(found) == []
    assert describe_all(found, hide_unreachable=False) == [
        {"component": "a", "path": "/a", "plugin": "idle", "routes": []}
    ]


def test_schemas_are_listed_when_asked_for() -> None:
    found = [("one", component("a", input_schema={"type": "object"}, output_schema=True))]
    assert "input_schema" not in describe_all(found)[0]
    tree = describe_all(found, with_schemas=True)[0]
    assert (tree["input_schema"], tree["output_schema"]) == ({"type": "object"}, True)


@pytest.fixture
def without_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("without_config")
def test_without_a_config_the_builtins_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list-components"]) == 0
    shown = capfd.readouterr().out
    assert "/builtin/create_messages  [builtin]" in shown
    assert "input_schema" not in shown


@pytest.mark.usefixtures("without_config")
@pytest.mark.parametrize(("output_format", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_the_schemas_by_default(output_format: str, parse: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list-components", "--format", output_format]) == 0
    components = parse(capfd.readouterr().out)["components"]
    names = [tree["component"] for tree in components]
    assert names == sorted(names)
    noop = next(tree for tree in components if tree["path"] == "/noop")
    assert noop["routes"] == ["/builtin/noop"]
    assert all("input_schema" in tree for tree in components)


@pytest.mark.usefixtures("without_config")
def test_schemas_can_be_left_out_for_programs_and_shown_to_people(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list-components", "--format", "json", "--schemas", "false"]) == 0
    assert "input_schema" not in capfd.readouterr().out
    assert main(["list-components", "--schemas", "true"]) == 0
    assert "input_schema" in capfd.readouterr().out
