"""The grammar of the command line: former words, every printed next step, and the command lines of the documents."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import typer
from support import ROOT
from support.command_lines import commands_in, former_words, parse, texts_of

from stepflow.cli.app import app
from stepflow.cli.commands.submit import _run_id_of
from stepflow.cli.console import Usage
from stepflow.cli.input.run_input import read_inputs
from stepflow.cli.input.values import read_overrides, read_payload, read_variables
from stepflow.cli.options import RunOptions, ValueOptions, _one_flow
from stepflow.errors import Invalid
from stepflow.flow import flow_from_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLOW = flow_from_tree(
    {
        "schemas": {
            "properties": {"variables": {"type": "object", "properties": {"zip": {"type": "string"}, "n": {}}}}
        },
        "output": {"$input": "$"},
    }
)

OLD_TO_NEW = [
    ("run --flow flow.yaml", "run flow.yaml"),
    ("run -f flow.yaml", "run flow.yaml"),
    ("submit --flow greet@live", "submit greet@live"),
    ("validate --flow flow.yaml", "validate flow.yaml"),
    ("infer --flow flow.yaml", "infer flow.yaml"),
    ("flows store --flow flow.yaml --label live", "flows store flow.yaml --tag live"),
    ("""run x --input-json '{"a": 1}'""", """run x --input '{"a": 1}'"""),
    ("run x --input-yaml 'a: 1'", """run x --input '{"a": 1}'"""),
    ("""run x --variables-json '{"n": 1}'""", "run x --var n=1"),
    ("run x --variables-yaml 'n: 1'", "run x --var n=1"),
    ("run x --variables v.yaml", "run x --var-file v.yaml"),
    ("""run x --overrides-json '{"steps": {"a": {"value": {"input": {"b": 1}}}}}'""", "run x --set a.input.b=1"),
    ("run x --overrides-yaml 'steps: {a: {value: {input: {b: c}}}}'", "run x --set a.input.b=c"),
    ("run x --overrides o.yaml", "run x --set-file o.yaml"),
    ("submit x --run-id 0198f3c2-0000-7000-8000-000000000001", "submit x --key 0198f3c2-0000-7000-8000-000000000001"),
    ("""runs signal 0198f3 go --payload-json '{"by": 1}'""", """runs signal 0198f3 go --payload '{"by": 1}'"""),
    ("runs signal 0198f3 go --payload-yaml 'by: 1'", """runs signal 0198f3 go --payload '{"by": 1}'"""),
]

FORMER_COMMANDS = {"runs get": "runs show", "runs steps": "runs show", "flows get": "flows show"}

DOCUMENTS = [
    ROOT / "README.md",
    *sorted(
        path for path in (ROOT / "docs").rglob("*.md") if "decisions" not in path.parts and path.name != "testing.md"
    ),
    *sorted((ROOT / "examples").glob("*/README.md")),
]

FENCED = re.compile(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:echo .*\| )?(stepflow [a-z].*)$", re.MULTILINE)
INLINE = re.compile(r"`(stepflow [a-z][^`…\[|]*)`")
"""Without forms such as `stepflow init [DIR]`."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.yaml").write_text("n: 1")
    (tmp_path / "o.yaml").write_text("steps: {a: {value: {input: 1}}}")
    return tmp_path


def meaning(line: str) -> dict[str, Any]:
    """Return what a command line means, whatever words it is written in."""
    given = dict(parse(shlex.split(line))[1].params)
    found: dict[str, Any] = {}
    if "flow_option" in given:
        flows = given.pop("flows", None) or [given.pop("flow", None)]
        found["flow"] = [_one_flow(flows[0], given.pop("flow_option")), *flows[1:]]
    if "input_json" in given:
        options = RunOptions(**{name: given.pop(name) for name in RunOptions.__dataclass_fields__})
        has_input = options.input or options.input_json or options.input_yaml
        found["input"] = list(read_inputs(options.of_input, FLOW)) if has_input else None
        found["variables"] = read_variables(options.of_variables, FLOW, {})
        found["overrides"] = read_overrides(options.of_overrides)
    if "payload_json" in given:
        names = ("payload", "payload_json", "payload_yaml")
        found["payload"] = read_payload(ValueOptions(*(given.pop(name) for name in names)))
    return found | given


@pytest.mark.parametrize(("old", "new"), OLD_TO_NEW)
def test_a_former_word_means_what_the_new_word_means(old: str, new: str) -> None:
    assert meaning(old) == meaning(new)
    assert former_words(shlex.split(old)), "the help must not show it"
    assert former_words(shlex.split(new)) == []


def test_former_commands_are_there_and_hidden() -> None:
    for old, new in FORMER_COMMANDS.items():
        command, _ = parse([*old.split(), "0198f3"])
        assert command.hidden
        assert not parse([*new.split(), "0198f3"])[0].hidden
    assert parse(["list-components"])[0].hidden


def visible_commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield from visible_commands(each, (*path, name))
    if path and not hasattr(command, "commands"):
        yield " ".join(path), command


def test_the_help_has_examples_in_the_new_words_that_parse() -> None:
    checked = 0
    for name, command in visible_commands(typer.main.get_command(app)):
        for line in (line.strip() for line in command.help.splitlines()):
            example = re.search(r"(?:^|\| )stepflow ([a-z].*)", line)
            if example is not None and line.startswith(("stepflow", "echo")):
                (words,) = commands_in(f"stepflow {example[1]}")
                parse(words)
                assert former_words(words) == [], f"{name}: {line}"
                checked += 1
    assert checked > 40


def printed_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield every command line in a text that the code prints, with the name of its module."""
    names = set(typer.main.get_command(app).commands)
    for package in ("stepflow", "control_plane", "executor", "component_host"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.parent.name != "v1":
                for words in (words for text in texts_of(path) for words in commands_in(text)):
                    if words and words[0] in names:
                        yield path.name, words


def test_every_printed_next_step_parses_in_the_new_words() -> None:
    found = list(printed_commands())
    for name, words in found:
        parse(words)
        assert former_words(words) == [], f"{name}: {words}"
    assert {"resume", "submit", "run", "runs", "validate", "cluster"} <= {words[0] for _, words in found}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_have_command_lines_in_the_new_words(path: Path) -> None:
    text = re.sub(r"^## Former words$.*", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for line in FENCED.findall(text):
        for words in commands_in(line):
            parse(words)
            assert former_words(words) == [], line
    for line in INLINE.findall(text):
        for words in commands_in(line):
            assert former_words(words) == [], line


def test_documents_have_command_lines() -> None:
    assert sum(len(FENCED.findall(path.read_text("utf-8"))) for path in DOCUMENTS) > 30


# --- values -----------------------------------------------------------------------------------------------------------


def variables(*pairs: str) -> dict[str, Any]:
    return read_variables(RunOptions(var=list(pairs)).of_variables, FLOW, {})


def test_a_variable_is_json_or_text_and_text_where_the_flow_says_so() -> None:
    assert variables("n=1", "zip=01234", "a=b=c", "o={}") == {"n": 1, "zip": "01234", "a": "b=c", "o": {}}
    assert variables("zip=7", 'n="7"', "t=true") == {"zip": "7", "n": "7", "t": True}


def test_single_values_count_over_files() -> None:
    options = RunOptions(
        var=["n=2"], variables="v.yaml", set=["a.input=2", "b.onError.action=skip"], overrides="o.yaml"
    )
    assert read_variables(options.of_variables, FLOW, {}) == {"n": 2}
    assert read_overrides(options.of_overrides) == {
        "steps": {"a": {"value": {"input": 2}}, "b": {"value": {"onError": {"action": "skip"}}}}
    }


def test_changes_to_one_step_are_joined() -> None:
    options = RunOptions(set=["a.input.x=1", "a.input.y.z=text", '["b.c"].input=null'])
    assert read_overrides(options.of_overrides) == {
        "steps": {"a": {"value": {"input": {"x": 1, "y": {"z": "text"}}}}, "b.c": {"value": {"input": None}}}
    }


@pytest.mark.parametrize("text", ["a", "a=1", "=1", "a.input[0]=1", "a.[=1"])
def test_a_change_that_names_no_member_is_a_usage_error(text: str) -> None:
    with pytest.raises(Usage, match="--set"):
        read_overrides(RunOptions(set=[text]).of_overrides)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a.inptu.x=1", "no member `inptu`; did you mean `input`?"),
        ("a.model=m", r"no member `model`; write STEP\.input"),
    ],
)
def test_a_change_to_a_member_that_no_step_has_is_a_usage_error(text: str, hint: str) -> None:
    with pytest.raises(Usage, match=hint):
        read_overrides(RunOptions(set=[text]).of_overrides)


def test_a_name_that_is_given_twice_is_a_usage_error() -> None:
    with pytest.raises(Usage, match="--var gives n twice"):
        variables("n=1", "n=2")
    with pytest.raises(Usage, match="--var is NAME=VALUE"):
        variables("n")


def test_a_value_that_is_no_file_and_no_json_says_what_a_value_is() -> None:
    with pytest.raises(Usage, match=r"--input 5: there is no such file; JSON text begins with"):
        read_inputs(RunOptions(input="5").of_input, FLOW)


def test_a_key_is_a_run_id_or_any_text() -> None:
    key = "0198f3c2-0000-7000-8000-000000000001"
    assert _run_id_of(key.upper()) == key
    assert _run_id_of("order-17") == _run_id_of("order-17") == "11cf79f1-b923-5cc1-9312-b91a4e79b283"
    assert _run_id_of("order-18") != _run_id_of("order-17")
    with pytest.raises(Invalid, match="the limit is 512"):
        _run_id_of("x" * 513)
