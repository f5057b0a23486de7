"""Reading inputs, variables and overrides from the sources in the options, and writing results."""

import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepflow.cli.console import Usage
from stepflow.cli.display.texts import plain
from stepflow.cli.input.documents import read_config, read_flow
from stepflow.cli.input.files import read_file
from stepflow.cli.input.input_help import describe_input
from stepflow.cli.input.run_input import read_inputs
from stepflow.cli.input.values import read_overrides, read_variables
from stepflow.cli.options import InputOptions, ValueOptions, VariableOptions
from stepflow.cli.output import check_output, to_yaml, write_results
from stepflow.cli.tables import print_json, print_json_with_list
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Invalid, StepflowError
from stepflow.flow import Flow, flow_from_tree
from stepflow.flow.document import parse_tree

ANY_INPUT = flow_from_tree({"output": {"$input": "$"}})
NO_INPUT = flow_from_tree({"output": {"$literal": {"$input": "$"}}})


def file(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(error: type[StepflowError], options: InputOptions, flow: Flow = ANY_INPUT, stdin: bytes = b"") -> str:
    with pytest.raises(error) as caught:
        list(read_inputs(options, flow, io.BytesIO(stdin)))
    return caught.value.message


# --- input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", ' {"b" : [1, 2.50]} '), ("a.yaml", "b:\n- 1\n- 2.50"), ("a.YML", "b: [1, 2.5]")]
)
def test_an_input_file_is_read_by_its_extension(tmp_path: Path, name: str, text: str) -> None:
    inputs = read_inputs(InputOptions(value=str(file(tmp_path, name, text))), ANY_INPUT)
    assert inputs.values == [b'{"b":[1,2.5]}']
    assert not inputs.batch


def test_input_texts_are_read() -> None:
    assert read_inputs(InputOptions(json='{"a": 1}'), ANY_INPUT).values == [b'{"a":1}']
    assert read_inputs(InputOptions(yaml="a: yes"), ANY_INPUT).values == [b'{"a":"yes"}']
    assert read_inputs(InputOptions(json="null"), ANY_INPUT).values == [b"null"]


def test_a_batch_has_a_value_per_line(tmp_path: Path) -> None:
    inputs = read_inputs(InputOptions(lines=file(tmp_path, "a.jsonl", '{"a": 1}\nnull\n "x" ')), ANY_INPUT)
    assert list(inputs.values) == [b'{"a":1}', b"null", b'"x"']
    assert list(inputs.values) == [b'{"a":1}', b"null", b'"x"'], "the second reading is the first one"
    assert inputs.batch


def test_a_batch_file_is_read_line_by_line(tmp_path: Path) -> None:
    """A file of 50 GB: what it holds up to the first line that is too long is read, and no memory holds the rest."""
    path = file(tmp_path, "a.jsonl", "1\n2\n")
    os.truncate(path, 50_000_000_000)
    values = iter(read_inputs(InputOptions(lines=path), ANY_INPUT).values)
    assert (next(values), next(values)) == (b"1", b"2")
    with pytest.raises(Invalid, match="line 3 is 16,777,218 bytes; the limit is 16,777,216"):
        next(values)


def test_a_batch_from_a_pipe_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(path.write_text, "".join(f"{number}\n" for number in range(1_000)))
        inputs = read_inputs(InputOptions(lines=path), ANY_INPUT)
        written.result(timeout=30)
    assert list(inputs.values) == list(inputs.values) == [b"%d" % number for number in range(1_000)]


def test_a_pipe_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)

    def write_without_end() -> None:
        with suppress(BrokenPipeError), path.open("wb") as pipe:
            while True:
                pipe.write(b"1\n" * 10_000)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_without_end)
        assert "more than 100,000 lines" in refusal(Invalid, InputOptions(lines=path))
        writing.result(timeout=30)


def test_an_empty_batch_is_a_batch(tmp_path: Path) -> None:
    inputs = read_inputs(InputOptions(lines=file(tmp_path, "bom.jsonl", "\ufeff1\n2\n")), ANY_INPUT)
    assert list(inputs.values) == [b"1", b"2"]
    inputs = read_inputs(InputOptions(lines=file(tmp_path, "a.jsonl", "")), ANY_INPUT)
    assert (list(inputs.values), inputs.batch) == ([], True)


@pytest.mark.parametrize(("text", "line"), [("1\n\n2\n", 2), ("1\n2\n{", 3)])
def test_a_bad_line_of_a_batch_is_named(tmp_path: Path, text: str, line: int) -> None:
    assert f"a.jsonl line {line}" in refusal(Invalid, InputOptions(lines=file(tmp_path, "a.jsonl", text)))


def test_stdin_is_read_when_no_option_names_an_input() -> None:
    assert read_inputs(InputOptions(), ANY_INPUT, io.BytesIO(b'{"a": 1}\n')).values == [b'{"a":1}']
    assert read_inputs(InputOptions(stdin_format="yaml"), ANY_INPUT, io.BytesIO(b"a: 1")).values == [b'{"a":1}']


def test_options_that_exclude_each_other_are_named() -> None:
    message = refusal(Usage, InputOptions(json="1", lines=Path("x.jsonl")))
    assert "--input-json and --inputs exclude each other" in message


def test_an_unknown_extension_is_refused_with_the_way_out(tmp_path: Path) -> None:
    assert "unrecognized file extension" in refusal(Usage, InputOptions(value=str(file(tmp_path, "a.txt", "1"))))
    assert "--inputs" in refusal(Usage, InputOptions(value=str(file(tmp_path, "a.jsonl", "1"))))


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    assert "No such file" in refusal(Usage, InputOptions(value=str(tmp_path / "a.json")))


def test_an_unknown_stdin_format_is_a_usage_error() -> None:
    assert "--stdin-format is one of json, yaml, not" in refusal(Usage, InputOptions(stdin_format="toml"))


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (InputOptions(json='{"a": }'), "--input-json"),
        (InputOptions(yaml="a: [1"), "--input-yaml"),
    ],
)
def test_a_malformed_text_is_named_with_its_place(options: InputOptions, place: str) -> None:
    message = refusal(Invalid, options)
    assert place in message
    assert "1:" in message  # the line


def test_a_flow_that_wants_no_input_runs_on_null_without_looking_at_stdin() -> None:
    stdin = io.BytesIO(b"not read")
    assert read_inputs(InputOptions(), NO_INPUT, stdin).values == [b"null"]
    assert stdin.tell() == 0


def test_a_flow_that_wants_no_input_takes_one_all_the_same() -> None:
    assert read_inputs(InputOptions(json="1"), NO_INPUT).values == [b"1"]


def test_a_terminal_is_not_waited_for() -> None:
    """In a separate process, whose stdin is a terminal without input."""
    code = """
from stepflow.cli.console import Usage
from stepflow.cli.options import InputOptions
from stepflow.cli.input.run_input import read_inputs
from stepflow.flow import flow_from_tree
try:
    read_inputs(InputOptions(), flow_from_tree({"output": {"$input": "$.city"}}))
except Usage as error:
    print(error.reason, error.message)
"""
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=theirs, capture_output=True, text=True, timeout=60, check=True
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stdout.startswith("INPUT_MISSING")
    assert "and reads $.city" in done.stdout


# --- sizes -------------------------------------------------------------------------------------------------------


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as sparse:
        sparse.truncate(50_000_000_000)  # no memory holds this
    message = refusal(Invalid, InputOptions(value=str(path)))
    assert "50,000,000,000 bytes; the limit is 16,777,216" in message
    assert "line 1 is 16,777,218 bytes; the limit is 16,777,216" in refusal(Invalid, InputOptions(lines=path))


def test_no_more_than_the_limit_is_read_from_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    os.mkfifo(path)

    def write_without_end() -> None:
        with path.open("wb", buffering=0) as pipe:
            try:
                while True:
                    pipe.write(b" " * 65536)
            except BrokenPipeError:
                return

    writer = threading.Thread(target=write_without_end, daemon=True)
    writer.start()
    assert "more than 16,777,216 bytes" in refusal(Invalid, InputOptions(value=str(path)))
    writer.join(timeout=30)
    assert not writer.is_alive()


def test_no_more_than_the_limit_is_read_from_stdin() -> None:
    stdin = io.BytesIO(b" " * (PAYLOAD_BYTES_MAX + 1000))
    with pytest.raises(Invalid, match="more than"):
        read_inputs(InputOptions(), ANY_INPUT, stdin)


def test_a_line_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", b'1\n"' + b"x" * PAYLOAD_BYTES_MAX + b'"\n')
    assert "line 2" in refusal(Invalid, InputOptions(lines=path))


def test_aliases_that_make_much_out_of_little_are_refused() -> None:
    text = "a: &a [" + ", ".join(["1234567"] * 1000) + "]\nb: &b [" + ", ".join(["*a"] * 1000) + "]\n"
    text += "c: [" + ", ".join(["*b"] * 100) + "]"
    assert refusal(Invalid, InputOptions(yaml=text))


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    assert len(read_file(file(tmp_path, "a.json", b"x" * 100), what="input", bytes_max=100)) == 100
    with pytest.raises(Invalid):
        read_file(file(tmp_path, "a.json", b"x" * 101), what="input", bytes_max=100)


# --- what a flow wants -------------------------------------------------------------------------------------------

WANTING = flow_from_tree(
    {
        "schemas": {
            "properties": {
                "input": {
                    "type": "object",
                    "required": ["city"],
                    "properties": {
                        "city": {"type": "string", "description": "where to look"},
                        "unit": {"enum": ["C", "F"], "default": "C"},
                        "key": {"type": ["string", "null"], "is_secret": True, "default": "hunter2"},
                        "other": True,
                    },
                }
            }
        },
        "examples": [{"name": "e", "input": {"city": "Łódź"}}],
    }
)


def test_a_missing_input_is_described_from_the_schema() -> None:
    message = refusal(Usage, InputOptions(), WANTING)
    assert "city  (string, required)  where to look" in message
    assert 'unit  (one of "C", "F", optional, default "C")' in message
    assert "key  (string or null, optional)" in message
    assert "other  (any value, optional)" in message
    assert "--input VALUE" in message
    assert "hunter2" not in message


def test_the_first_example_is_offered_ready_for_a_shell() -> None:
    assert """--input '{"city":"Łódź"}'""" in describe_input(WANTING)


@pytest.mark.parametrize(
    ("schema", "text"),
    [({"type": "string"}, "The input: string"), ({}, "no schema"), (True, "no schema"), (None, "no schema")],
)
def test_other_schemas_are_described_as_well(schema: Any, text: str) -> None:
    flow = flow_from_tree({"schemas": {"properties": {"input": schema}}, "output": {"$input": "$"}})
    assert text in describe_input(flow)


def test_without_a_schema_the_paths_that_the_flow_reads_are_named() -> None:
    flow = flow_from_tree(
        {
            "steps": [{"id": "a", "component": "/b", "input": [{"$literal": {"$input": "no"}}, {"$input": "city"}]}],
            "output": {"$if": {"$input": None}, "then": {"$input": "unit.name"}},
        }
    )
    assert "and reads $, $.city, $.unit.name." in describe_input(flow)


def test_an_example_too_long_for_a_command_line_is_left_out() -> None:
    flow = flow_from_tree({"examples": [{"name": "e", "input": "x" * 1000}]})
    assert "For example" not in describe_input(flow)


# --- variables and overrides -------------------------------------------------------------------------------------

WITH_VARIABLES = flow_from_tree(
    {
        "schemas": {
            "properties": {
                "variables": {
                    "type": "object",
                    "properties": {
                        "limit": {"type": "integer"},
                        "token": {"type": "string", "env_var": "THE_TOKEN", "is_secret": True},
                        "mode": {"type": "string", "default": "fast"},
                    },
                }
            }
        }
    }
)


def test_variables_are_what_was_given_and_no_defaults() -> None:
    assert read_variables(VariableOptions(ValueOptions(json='{"limit": 5, "extra": null}')), WITH_VARIABLES, {}) == {
        "limit": 5,
        "extra": None,
    }
    assert read_variables(VariableOptions(), WITH_VARIABLES, {"THE_TOKEN": "x"}) == {}


def test_a_text_that_a_variable_takes_from_the_environment_is_not_shown() -> None:
    options = VariableOptions(ValueOptions(yaml="token: not-from-there"), from_environment=True)
    read_variables(options, WITH_VARIABLES, {"STEPFLOW_VAR_MODE": "mode-of-nobody", "THE_TOKEN": "not-from-there"})
    assert plain("in mode-of-nobody, not-from-there", str) == "in [REDACTED], not-from-there"


def test_declared_variables_come_from_the_environment_when_asked_for() -> None:
    environ = {"THE_TOKEN": "t0ken", "STEPFLOW_VAR_LIMIT": "7", "STEPFLOW_VAR_OTHER": "1", "STEPFLOW_VAR_MODE": "slow"}
    options = VariableOptions(ValueOptions(yaml="mode: careful"), from_environment=True)
    assert read_variables(options, WITH_VARIABLES, environ) == {"mode": "careful", "token": "t0ken", "limit": 7}


@pytest.mark.parametrize("text", ["[1]", "null", "1"])
def test_variables_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="object") as caught:
        read_variables(VariableOptions(ValueOptions(json=text)), WITH_VARIABLES, {})
    assert not isinstance(caught.value, Usage)


def test_variable_options_exclude_each_other() -> None:
    with pytest.raises(Usage, match="--variables-json and --variables-yaml exclude each other"):
        read_variables(VariableOptions(ValueOptions(json="{}", yaml="{}")), WITH_VARIABLES, {})


def test_overrides_are_read_and_not_checked(tmp_path: Path) -> None:
    assert read_overrides(ValueOptions()) is None
    assert read_overrides(ValueOptions(json='{"steps": {}}')) == {"steps": {}}
    assert read_overrides(ValueOptions(str(file(tmp_path, "o.yaml", "steps: {}")))) == {"steps": {}}
    with pytest.raises(Usage, match="--set-file and --overrides-json exclude each other"):
        read_overrides(ValueOptions(str(tmp_path / "o.yaml"), json="{}"))


# --- results -----------------------------------------------------------------------------------------------------

RESULT = {"outcome": "success", "result": {"text": "a\nb", "n": 1, "ü": None}}


def test_a_result_goes_to_stdout_as_one_line_of_json(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_results([RESULT], None, batch=False)
    out = capfdbinary.readouterr().out
    assert out.count(b"\n") == 1
    assert json.loads(out) == RESULT


@pytest.mark.parametrize("name", ["out.json", "out.jsonl"])
def test_a_batch_is_a_line_per_item(tmp_path: Path, name: str) -> None:
    write_results([RESULT, RESULT], tmp_path / name, batch=True)
    assert [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] == [RESULT, RESULT]


@pytest.mark.parametrize(("batch", "expected"), [(False, RESULT), (True, [RESULT])])
def test_a_yaml_file_holds_the_same(tmp_path: Path, batch: bool, expected: Any) -> None:
    path = tmp_path / "out.yaml"
    write_results([RESULT], path, batch=batch)
    assert yaml.safe_load(path.read_text()) == expected


@pytest.mark.parametrize(
    ("name", "cause"),
    [("out.txt", "file extension"), ("missing/out.json", "there is no folder"), ("dir.json", "Is a directory")],
)
def test_an_output_that_cannot_be_written_is_refused_with_the_cause(tmp_path: Path, name: str, cause: str) -> None:
    (tmp_path / "dir.json").mkdir()
    with pytest.raises(Usage, match=cause):
        check_output(tmp_path / name)
    check_output(tmp_path / "out.json")
    check_output(None)


def test_yaml_repeats_what_is_repeated_and_writes_long_texts_as_blocks() -> None:
    shared = {"a": "x\ny\n"}
    text = to_yaml([shared, shared])
    assert "&" not in text
    assert text.count("|") == 2


@pytest.mark.parametrize(
    "word", ["0o10", "1e3", "08012", "0x1F", "1e400", "true", "~", "", "yes", "1_000", "a: b", "-"]
)
def test_a_text_written_as_yaml_is_read_back_as_that_text(word: str) -> None:
    assert parse_tree(to_yaml({"a": word}), source="it", format="yaml").value == {"a": word}


# --- flow and config ---------------------------------------------------------------------------------------------


def test_a_flow_file_is_parsed_with_its_name_in_errors(tmp_path: Path) -> None:
    path = file(tmp_path, "flow.yaml", "steps:\n- id: a\n")
    with pytest.raises(Invalid) as caught:
        read_flow(path)
    assert f"{path}:2" in caught.value.message


def test_a_config_is_the_named_one_else_that_beside_the_flow_else_the_default(tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    alone = tmp_path / "alone"
    beside.mkdir()
    alone.mkdir()
    text = "plugins: {b: {type: builtin}}\nroutes: {/x: [{plugin: b}]}\n"
    named = file(tmp_path, "named.yml", text.replace("/x", "/named"))
    file(beside, "stepflow-config.yml", text)
    assert list(read_config(named, beside / "flow.yaml").routes) == ["/named"]
    assert list(read_config(None, beside / "flow.yaml").routes) == ["/x"]
    assert list(read_config(None, alone / "flow.yaml").routes) == ["/builtin"]


def test_a_config_for_tests_is_preferred_when_testing(tmp_path: Path) -> None:
    text = "plugins: {b: {type: builtin}}\nroutes: {/x: [{plugin: b}]}\n"
    file(tmp_path, "stepflow-config.yml", text)
    file(tmp_path, "stepflow-config.test.yml", text.replace("/x", "/test"))
    assert list(read_config(None, tmp_path / "flow.yaml", test=True).routes) == ["/test"]
    assert list(read_config(None, tmp_path / "flow.yaml").routes) == ["/x"]


def test_a_missing_config_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="no such file"):
        read_config(tmp_path / "missing.yml")


def test_results_are_written_as_they_come(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A batch is larger than memory: nothing is read ahead."""
    path = tmp_path / "out.jsonl"
    sizes = []

    def results() -> Iterator[Any]:
        for _ in range(100):
            yield {"outcome": "success", "result": "x" * 10_000}
            sizes.append(sum(draft.stat().st_size for draft in tmp_path.iterdir()))

    write_results(results(), path, batch=True)
    assert sizes[50] > 400_000
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]

    write_results(({"outcome": "success", "result": number} for number in range(20_000)), None, batch=True)
    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line)["result"] for line in lines] == list(range(20_000))


def test_an_empty_batch_is_an_empty_list_of_yaml(tmp_path: Path) -> None:
    write_results([], tmp_path / "out.yaml", batch=True)
    assert yaml.safe_load((tmp_path / "out.yaml").read_text()) == []


@pytest.mark.parametrize("elements", [[], [1], [{"a": [1, {"b": "x\ny"}], "c": {}}, [], "z"]])
def test_a_tree_with_a_list_of_parts_is_printed_as_a_whole_one(
    elements: list[Any], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    tree = {"run_id": "r", "labels": {"a": 1}, "n": None}
    print_json(tree | {"results": elements})
    whole = capfdbinary.readouterr().out
    print_json_with_list(tree, "results", iter(elements))
    assert capfdbinary.readouterr().out == whole
