"""The files that belong to a plugin, and the plugins that a change touches."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from stepflow.config import config_from_tree
from stepflow.dev.file_states import FOLDERS_MAX, look_at_files
from stepflow.dev.sources import PARSED_BYTES_MAX, first_syntax_error, plugins_touched, sources_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stepflow.dev.sources import PluginSources


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def sources(folder: Path, environ: Mapping[str, str] | None = None, **commands: str) -> dict[str, PluginSources]:
    """Return the sources of plugins with these command lines; all have the working directory `folder`."""
    plugins = {
        name: {"type": "stepflow", "command": line.split()[0], "args": line.split()[1:]}
        for name, line in commands.items()
    }
    tree = {"plugins": plugins, "routes": {f"/{name}": [{"plugin": name}] for name in plugins}}
    return sources_of(config_from_tree(tree, source="test", base_dir=folder), environ or {})


def touched(folder: Path, found: Mapping[str, PluginSources], *names: str) -> list[str]:
    return plugins_touched(found, {folder / name for name in names})


SERVERS = {"a": "python a.py", "b": "python ./sub/../b.py --data notes.json"}


@pytest.mark.parametrize(
    ("changed", "plugins"),
    [
        ("a.py", ["a"]),
        ("b.py", ["b"]),
        ("helper.py", ["a", "b"]),
        ("deep/er/helper.py", ["a", "b"]),
        ("notes.json", []),
        ("flow.yaml", []),
        ("stepflow-config.yml", []),
        (".venv/lib/x.py", []),
        ("node_modules/x.py", []),
        ("__pycache__/a.py", []),
        (".git/x.py", []),
        (".stepflow/x.py", []),
        ("../x.py", []),
    ],
)
def test_a_script_touches_its_plugin_and_a_file_beside_it_all_that_may_import_it(
    tmp_path: Path, changed: str, plugins: list[str]
) -> None:
    write(tmp_path, "a.py", "b.py")
    assert touched(tmp_path, sources(tmp_path, **SERVERS), changed) == plugins


def test_a_script_that_is_gone_still_belongs_to_its_plugin(tmp_path: Path) -> None:
    assert touched(tmp_path, sources(tmp_path, **SERVERS), "a.py") == ["a"]


@pytest.mark.parametrize(
    ("line", "yes", "no"),
    [
        ("python -m pack.server", ["pack/server.py", "pack/other/x.py"], ["x.py", "pack/x.txt"]),
        ("python -m single", ["single.py", "x.py"], []),
        ("uv --directory prog run main", ["prog/x.py", "prog/y.ts"], ["x.py"]),
        ("uv --directory=prog run main", ["prog/x.py"], ["x.py"]),
        ("uv run a.py", ["a.py", "x.py"], ["x.js"]),
        ("python prog", ["prog/__main__.py", "prog/x.py"], ["x.py"]),
        ("node index.mjs", ["index.mjs", "lib/x.ts"], ["x.py"]),
        ("./run", ["run", "x.py"], ["run2"]),
        ("${INTERPRETER} $SCRIPT", ["a.py"], []),
        ("npx @scope/server-filesystem data", [], ["data/x.py", "x.js", "x.py"]),
        ("uvx some-server --db notes.db", [], ["notes.db", "x.py"]),
        (".venv/bin/server", [], [".venv/bin/server", "x.py"]),
    ],
)
def test_the_words_of_a_command_line_name_the_files(tmp_path: Path, line: str, yes: list[str], no: list[str]) -> None:
    write(tmp_path, "a.py", "pack/server.py", "single.py", "prog/__main__.py", "run", "data/x", ".venv/bin/server")
    found = sources(tmp_path, {"INTERPRETER": "python", "SCRIPT": "a.py"}, p=line)
    assert [name for name in yes if not touched(tmp_path, found, name)] == []
    assert [name for name in no if touched(tmp_path, found, name)] == []
    assert bool(found["p"]) is bool(yes)


def test_code_in_a_command_line_and_unset_variables_do_no_harm(tmp_path: Path) -> None:
    found = sources(tmp_path, p="python -c " + "x" * 5_000, q="python ${UNSET}/a.py")
    assert touched(tmp_path, found, "x.py") == []


def test_plugins_without_a_command_or_a_route_have_no_sources(tmp_path: Path) -> None:
    plugins = {
        "b": {"type": "builtin"},
        "n": {"type": "stepflow", "command": "python", "args": ["a.py"]},
        "u": {"type": "mcp", "transport": "streamable-http", "url": "http://h/mcp"},
    }
    tree = {"plugins": plugins, "routes": {"/b": [{"plugin": "b"}], "/u": [{"plugin": "u"}]}}
    assert sources_of(config_from_tree(tree, source="test", base_dir=tmp_path), {}) == {}


def test_the_state_of_the_files_tells_what_was_written_replaced_created_and_deleted(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "replaced.py", "gone.py", "same.py", "config.yml", "venv2/pyvenv.cfg", "venv2/x.py")
    found = sources(tmp_path, p="python a.py").values()

    def look() -> set[str]:
        nonlocal before
        now = look_at_files(found, [tmp_path / "config.yml"])
        changed, before = now.changed_since(before), now
        return {str(path.relative_to(tmp_path)) for path in changed}

    before = look_at_files(found, [tmp_path / "config.yml"])
    assert look() == set()
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "new").write_text("")
    (tmp_path / "new").replace(tmp_path / "replaced.py")
    (tmp_path / "gone.py").unlink()
    (tmp_path / "config.yml").write_text("x: 1")
    write(tmp_path, "deep/new.py", "venv2/y.py", "notes.txt")
    assert look() == {"a.py", "replaced.py", "gone.py", "config.yml", "deep/new.py"}
    assert look() == set()
    assert tmp_path / "deep" in before.folders
    assert tmp_path / "venv2" not in before.folders


def test_a_folder_with_too_many_folders_is_watched_in_part(tmp_path: Path) -> None:
    write(tmp_path, "a.py")
    for number in range(FOLDERS_MAX + 1):
        (tmp_path / f"f{number}").mkdir()
    states = look_at_files(sources(tmp_path, p="python a.py").values(), [])
    assert not states.complete
    assert len(states.folders) == FOLDERS_MAX
    assert tmp_path in states.folders


def test_a_syntax_error_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "bad.js").write_text("def f(:\n")
    assert first_syntax_error([tmp_path / "good.py", tmp_path / "gone.py", tmp_path / "bad.js"]) == ""
    assert first_syntax_error([tmp_path / "good.py", tmp_path / "bad.py"]).startswith(f"{tmp_path / 'bad.py'}:2: ")


def test_a_pipe_and_a_huge_file_are_not_read_for_syntax_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "huge.py").write_bytes(b"(" * (PARSED_BYTES_MAX + 1))
    assert first_syntax_error([tmp_path / "pipe.py", tmp_path / "huge.py"]) == ""
