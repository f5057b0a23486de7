"""`stepflow infer` and `stepflow validate --type-check`: reports, exit codes, and flows that keep their text."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from stepflow import telemetry
from stepflow.cli.__main__ import main
from stepflow.flow import parse_tree

HEAD = """\
# A flow.
name: n   # its name
description: d

"""
STEPS = """\
steps:
  # The only step.
  - id: a
    component: /builtin/create_messages
    input: { user_prompt: { $input: text } }

# What comes out.
output: { $step: a, path: messages }
"""
FLOW = HEAD + STEPS
WRONG = FLOW.replace("{ $input: text }", "3").replace("path: messages", "path: mesages")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, so that the repository's config is not found."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    telemetry.configure()


def command(name: str, text: str, *options: str, file: str = "flow.yaml") -> int:
    Path(file).write_text(text, encoding="utf-8", newline="")
    return main([name, *(["--flow"] if name == "validate" else []), file, *options])


@pytest.mark.parametrize("options", [(), ("--type-check",)])
def test_an_integer_for_a_text_and_a_misspelt_path_are_found(
    options: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("validate", WRONG, *options) == 1
    shown = capfd.readouterr().err
    assert shown.count("ERROR") == 2
    assert "integer does not fit string ($.steps[0].input.user_prompt)" in shown
    assert "there is no member `mesages`; did you mean `messages`? ($.output)" in shown


def test_a_type_check_also_finds_what_fits_only_sometimes(capfd: pytest.CaptureFixture[str]) -> None:
    maybe = FLOW.replace("{ $input: text }", "{ $if: { $input: text }, then: hi, else: 3 }")
    assert command("validate", maybe) == 0
    assert "WARNING" not in capfd.readouterr().err
    assert command("validate", maybe, "--type-check") == 0
    assert "WARNING The input of step 'a' may not fit" in capfd.readouterr().err


def test_a_type_check_as_json_has_codes_and_levels(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("validate", WRONG, "--type-check", "--json") == 1
    tree = json.loads(capfd.readouterr().out)
    assert [(item["code"], item["kind"], item["level"]) for item in tree["diagnostics"]] == [
        (2100, "typeMismatch", "error"),
        (2101, "unknownPropertyInPath", "error"),
    ]


def test_a_type_check_says_nothing_about_paths_that_it_has_checked(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("validate", FLOW, "--type-check", "--json") == 0
    assert json.loads(capfd.readouterr().out)["diagnostics"] == []


def test_a_path_into_a_result_is_no_warning_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("validate", FLOW) == 0
    assert capfd.readouterr().err == "✅ Validation passed with no errors\n"


def test_strict_makes_errors_of_warnings(capfd: pytest.CaptureFixture[str]) -> None:
    unnamed = FLOW.replace("name: n", "nam: n")
    assert command("validate", unnamed) == 0
    assert command("validate", unnamed, "--strict") == 1
    unknown = FLOW.replace("/builtin/create_messages", "/other/thing")
    assert command("validate", unknown, "--type-check") == 0
    assert command("validate", unknown, "--type-check", "--strict") == 1
    assert "cannot be checked" in capfd.readouterr().err


def test_a_silenced_warning_is_no_error_when_strict(capfd: pytest.CaptureFixture[str]) -> None:
    silenced = FLOW.replace("name: n", "metadata: {ignoreWarnings: [1001]}")
    assert command("validate", silenced, "--strict", "--type-check") == 1  # the input is not declared
    assert command("validate", silenced.replace("[1001]", "[1001, 1101]"), "--strict", "--type-check") == 0
    capfd.readouterr()


def test_infer_adds_schemas_and_keeps_the_rest_of_the_text(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("infer", FLOW) == 0
    shown = capfd.readouterr()
    assert shown.out.startswith(HEAD.rstrip("\n") + "\n\nschemas:\n")
    assert shown.out.endswith(STEPS)
    tree = parse_tree(shown.out, source="out", format="yaml").value
    properties = tree["schemas"]["properties"]
    assert properties["input"] == {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    assert properties["output"]["type"] == "array"
    assert list(properties["steps"]["properties"]) == ["a"]
    assert "a: { messages: { role: string, content: string }[] }" in shown.err
    assert "📥" not in shown.err


def test_infer_shows_the_inputs_of_steps_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("infer", FLOW, "--show-step-inputs") == 0
    shown = capfd.readouterr().err
    assert "📥 Synthesized step input types:\n  a: { user_prompt: any }\n" in shown
    assert (
        "📋 Component expected input types:\n  a: { user_prompt: string, system_instructions?: string | null }" in shown
    )


def test_an_inferred_flow_has_nothing_left_to_infer(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("infer", FLOW) == 0
    once = capfd.readouterr().out
    assert command("infer", once) == 0
    assert capfd.readouterr().out == once
    assert command("validate", once, "--type-check", "--strict") == 0


def test_infer_prints_no_flow_with_errors(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("infer", WRONG) == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "ERROR" in shown.err
    assert command("infer", WRONG, "-o", "out.yaml") == 1
    assert not Path("out.yaml").exists()


def test_infer_writes_a_file_and_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("infer", FLOW, "-o", "out.yaml") == 0
    assert "schemas:" in Path("out.yaml").read_text()
    assert command("infer", FLOW, "-o", "out.json") == 0
    assert json.loads(Path("out.json").read_text())["schemas"]["properties"]["input"]["required"] == ["text"]
    assert capfd.readouterr().out == ""
    assert command("infer", FLOW, "--json") == 0
    tree = json.loads(capfd.readouterr().out)
    assert (tree["numError"], tree["flow"]["schemas"]["properties"]["input"]["type"]) == (0, "object")


def test_infer_reads_json_flows(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("infer", '{"name": "n", "output": {"$input": "x"}}', file="flow.json") == 0
    assert json.loads(capfd.readouterr().out)["schemas"]["properties"]["input"]["required"] == ["x"]


def test_infer_needs_a_flow(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["infer"]) == 2
    assert "name a flow: a file" in capfd.readouterr().err
    assert command("infer", FLOW) == 0
    assert main(["infer", "--flow", "flow.yaml"]) == 0


INPUT = "{type: object, properties: {text: {type: string}}}"

TEXTS = [
    "steps: []\noutput: {a: 1}\n",
    "schemas:\nsteps: []\noutput: {a: 1}\n",
    "schemas: {}\nsteps: []\noutput: {a: 1}\n",
    "schemas: null  # none yet\nsteps: []\noutput: {a: 1}\n",
    "schemas:\n  type: object\nsteps: []\noutput: {a: 1}\n",
    f"schemas:\n  properties:\n    input: {INPUT}  # of the user\n    # the end\nsteps: []\noutput: {{a: 1}}\n",
    f"schemas: {{properties: {{input: {INPUT}}}}}\nsteps: []\noutput: {{a: 1}}\n",
    "schemas:\n  properties: {input: " + INPUT + "}\noutput: {a: 1}",
    "{name: n, output: {a: 1}}\n",
    '{"name": "n", "schemas": {"properties": {}}, "output": {"a": 1}}',
    "name: n\r\noutput: {a: 1}\r\n",
    "output:\n  a: 1",
    "output: {a: 1}\ndescription: |\n  a text\n\n# the end\n",
    "schemas:\n  properties:\n    steps:\n      properties:\n        other: {}\n    input: {}\noutput: {a: 1}\n"
    "steps:\n- {id: a, component: /builtin/noop, input: 1}\n- {id: other, component: /builtin/noop}\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_schemas_find_a_place_in_each_layout(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("infer", text) == 0
    shown = capfd.readouterr()
    assert "normal form" not in shown.err
    before, after = (parse_tree(one, source="flow", format="yaml").value for one in (text, shown.out))
    added = after["schemas"]["properties"]["output"]
    assert added["properties"] == {"a": {"type": "integer"}}
    assert without_schemas(after) == without_schemas(before)
    for line in text.splitlines():
        assert "#" not in line or line.partition("#")[2] in shown.out


def without_schemas(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != "schemas"}


def test_a_text_without_a_place_is_written_in_its_normal_form(capfd: pytest.CaptureFixture[str]) -> None:
    text = "metadata: {m: &s {properties: {input: {}}}}\nschemas: *s\noutput: {a: 1}  # gone\n"
    assert command("infer", text) == 0
    shown = capfd.readouterr()
    assert "normal form" in shown.err
    tree = parse_tree(shown.out, source="flow", format="yaml").value
    assert tree["schemas"]["properties"]["output"]["required"] == ["a"]
    assert tree["metadata"] == {"m": {"properties": {"input": {}}}}


# --- no false alarms ---

REPOSITORY_FLOWS = sorted(
    path
    for folder in ("examples", "tests/data/flows", "stepflow/cli/template")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".yaml", ".yml", ".json")
    and "steps" in path.read_text("utf-8")
    and ".stepflow" not in path.parts
)
DOCUMENTED = [
    pytest.param(text, id=f"{page.name}-{index}")
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for index, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE))
    if re.search(r"^steps:", text, re.MULTILINE) and "# error" not in text
]


def alarms(capfd: pytest.CaptureFixture[str], *args: str) -> list[Any]:
    """Return the findings of a type check."""
    assert main(["validate", *args, "--type-check", "--json"]) in (0, 1)
    return [item for item in json.loads(capfd.readouterr().out)["diagnostics"] if item["code"] in (2100, 2101)]


@pytest.mark.parametrize("path", REPOSITORY_FLOWS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_flow_of_the_repository_gives_a_false_alarm(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert alarms(capfd, "--flow", str(path)) == []


@pytest.mark.parametrize("text", DOCUMENTED)
def test_no_flow_of_the_documentation_gives_a_false_alarm(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("flow.yaml").write_text(text, encoding="utf-8")
    assert alarms(capfd, "--flow", "flow.yaml") == []


def test_flows_to_check_are_found() -> None:
    assert len(REPOSITORY_FLOWS) > 10
    assert len(DOCUMENTED) > 2


def test_a_new_project_has_no_warnings(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "new"]) == 0
    capfd.readouterr()
    for options in ([], ["--type-check"]):
        assert main(["validate", "--flow", "new/flow.yaml", *options]) == 0
        assert capfd.readouterr().err == "✅ Validation passed with no errors\n"


def test_a_quiet_infer_prints_the_flow_alone_and_still_reports_errors(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("infer", FLOW, "-q") == 0
    shown = capfd.readouterr()
    assert (shown.out.startswith("# A flow."), shown.err) == (True, "")
    assert command("infer", FLOW, "-q", "-o", "typed.yaml") == 0
    assert capfd.readouterr() == ("", "")
    assert Path("typed.yaml").is_file()
    assert command("infer", WRONG, "-q") == 1
    assert "ERROR" in capfd.readouterr().err
