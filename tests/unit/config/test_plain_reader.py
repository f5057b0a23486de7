"""Plain configurations are read without pydantic, and as the models read them."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from stepflow.config.model import ConfigInvalid
from stepflow.config.plain_reader import read_plain_config
from stepflow.config.reader import read_config
from stepflow.flow import parse_tree

BASE = Path("/somewhere")
FILES = sorted(
    path
    for folder in ("examples", "stepflow/cli/template", "tests/data")
    for path in (ROOT / folder).rglob("stepflow*config*.y*ml")
)

FULL: dict[str, Any] = {
    "plugins": {
        "builtin": {"type": "builtin"},
        "mine": {
            "type": "stepflow",
            "transport": "stdio",
            "command": "python",
            "args": ["${SERVER:-a.py}", "--x"],
            "env": {"KEY": "$KEY"},
            "inheritEnv": True,
            "startTimeout": "5s",
            "processes": 2,
        },
        "web": {"type": "stepflow", "transport": "http", "url": "http://localhost:1"},
        "tools": {"type": "mcp", "command": "npx", "args": []},
    },
    "routes": {
        "/builtin": [{"plugin": "builtin"}],
        "/mine": [{"plugin": "mine", "componentAllow": ["/a"], "componentDeny": []}, {"plugin": "web"}],
        "/": [{"plugin": "tools"}],
    },
    "storageConfig": {"type": "inMemory"},
}

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 2_000, 1.5, "", "x", "5s", "5", "stdio", "http", "grpc", "streamable-http", "mcp",
    "builtin", "stepflow", "mock", "nats", "${", "${A", "$A", "\\", "/a", "/a/b", "/{*x}", [], ["a"], [1], [None],
    {}, {"a": "b"}, {"a": 1}, {"type": "builtin"}, {"plugin": "builtin"}, [{"plugin": "builtin"}],
]  # fmt: skip
KEYS = [
    "type", "transport", "command", "args", "env", "inheritEnv", "inherit_env", "url", "startTimeout", "processes",
    "concurrency", "openai", "limits", "plugin", "componentAllow", "conditions", "plugins", "routes", "retry",
    "steps", "result", "/a", "/a/{*rest}", "", "x",
]  # fmt: skip


def plain(tree: Any) -> Any:
    return read_plain_config(tree, source="test", base_dir=BASE)


def full(tree: Any) -> Any:
    try:
        return read_config(tree, source="test", base_dir=BASE)
    except ConfigInvalid:
        return None


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in below for place in places(value, (*path, key)))]


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """The full configuration after some changes: values replaced, members added and removed."""
    tree = {"": copy.deepcopy(FULL)}
    for _ in range(draw(st.integers(0, 3))):
        path = ("", *draw(st.sampled_from(places(tree[""]))))
        node: Any = tree
        for key in path[:-1]:
            node = node[key]
        action = draw(st.sampled_from(("replace", "remove", "add")))
        if action == "remove" and len(path) > 1:
            del node[path[-1]]
        elif action == "add" and isinstance(node[path[-1]], dict):
            node[path[-1]][draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        else:
            node[path[-1]] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return tree[""]


def test_a_plain_configuration_is_read_as_the_models_read_it() -> None:
    assert plain(FULL) is not None
    assert plain(FULL) == full(FULL)


@settings(max_examples=500, deadline=None)
@given(trees())
def test_any_tree_is_read_as_the_models_read_it_or_left_to_them(tree: Any) -> None:
    found = plain(copy.deepcopy(tree))
    if found is not None:
        assert found == full(tree)
        assert found.warnings == ()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_of_the_repository_is_read_as_the_models_read_it_or_left_to_them(path: Path) -> None:
    tree = parse_tree(path.read_bytes(), source=str(path), format="yaml", complex_keys=True).value
    found = plain(tree)
    assert found is None or found == full(tree)


def test_the_configuration_of_a_new_project_takes_no_pydantic() -> None:
    code = (
        "import sys; from stepflow.config import load_config\n"
        f"load_config({str(ROOT / 'stepflow/cli/template/stepflow-config.yml')!r})\n"
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
