"""Reading what the options of `options` name, and writing results.

- Options of one group that exclude each other are refused by name.
- A file's size is looked at before it is read, and no more than the limit is read from what has no size (a pipe).
- Nobody waits for a person: on a terminal without input, the message says what the flow wants.
- What is wrong with the command line is `Usage` (exit code 2); what is wrong inside a file is `Invalid` (1).

Heavy for a command line (JSON, YAML): imported by commands when they run, not for their help.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from stepflow.cli import console
from stepflow.cli.console import Usage
from stepflow.cli.options import ValueOptions
from stepflow.codec import PAYLOAD_BYTES_MAX, compact, decode, encode
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from stepflow.cli.options import InputOptions, VariableOptions
    from stepflow.config import Config
    from stepflow.flow import Flow

INPUTS_BYTES_MAX = 256 * 1024 * 1024
"""Of a whole JSONL file of inputs; each line is bounded as any value is."""

assert INPUTS_BYTES_MAX > PAYLOAD_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Inputs:
    """Compact JSON, one text per item. A batch of one is still a batch: its output is JSONL."""

    values: list[bytes]
    batch: bool


# --- flow and config ---------------------------------------------------------------------------------------------


def read_flow(path: Path) -> Flow:
    """Parse a flow file.

    Raises:
        Usage: no such file, an extension that is neither YAML nor JSON.
        Invalid: not a flow (`FlowInvalid`, with line and field), or too large.
    """
    from stepflow.flow import parse_flow

    return parse_flow(read_file(path, what="flow"), source=str(path), format=value_format(path, what="flow"))


def read_config(config: Path | None, flow: Path | None = None, *, test: bool = False) -> Config:
    """Load the config that was named, else the one found beside the flow or here, else the default one.

    `test` prefers the file names that are meant for tests. Raises: Usage, Invalid.
    """
    from pathlib import Path

    from stepflow.config import default_config, discover, load_config

    if config is not None and not config.is_file():
        raise Usage("FILE_UNREADABLE", f"--config {config}: there is no such file", path=str(config))
    here = Path.cwd()
    folder = flow.parent if flow is not None else here
    found = config or discover(folder, here, test=test)
    return default_config(folder) if found is None else load_config(found)


# --- input -------------------------------------------------------------------------------------------------------


def read_inputs(options: InputOptions, flow: Flow, stdin: BinaryIO | None = None) -> Inputs:
    """Read the run's input, or the inputs of a batch, from where the options say; else from stdin (`stdin` in tests).

    A flow that refers to no input and declares none runs on `null` without one.

    Raises:
        Usage: options that exclude each other, a file that is not there, or no input where the flow wants one.
        Invalid: not JSON or YAML, or too large.
    """
    _at_most_one(
        {"--input": options.file, "--input-json": options.json, "--input-yaml": options.yaml, "--inputs": options.lines}
    )
    if options.lines is not None:
        return Inputs(_read_lines(options.lines), batch=True)
    given = ValueOptions(options.file, options.json, options.yaml)
    if given != ValueOptions():
        return Inputs([_compact(_read_value(given, "input"), "input")], batch=False)
    return Inputs([_read_stdin(options.stdin_format, flow, stdin)], batch=False)


def _read_stdin(stdin_format: str, flow: Flow, stdin: BinaryIO | None) -> bytes:
    if stdin_format not in ("json", "yaml"):
        raise Usage("OPTION_INVALID", f"--stdin-format is json or yaml, not {stdin_format!r}")
    if not _wants_input(flow):
        return b"null"
    text = b"" if stdin is None and _nobody_writes() else _read_bounded(stdin or sys.stdin.buffer, "the input on stdin")
    if not text.strip():
        raise Usage("INPUT_MISSING", f"the flow needs an input, and none was given.\n\n{describe_input(flow)}")
    return _compact(_parse(text, "stdin", "yaml" if stdin_format == "yaml" else "json"), "input")


def _nobody_writes() -> bool:
    return sys.stdin.closed or sys.stdin.isatty()


def _read_lines(path: Path) -> list[bytes]:
    values: list[bytes] = []
    size = 0
    with _open(path, "inputs", INPUTS_BYTES_MAX) as file:
        # A line above the limit comes in parts, the first of which is refused.
        while line := file.readline(PAYLOAD_BYTES_MAX + 2):
            size += len(line)
            if size > INPUTS_BYTES_MAX:
                raise _too_large(f"inputs {path}", INPUTS_BYTES_MAX)
            place = f"{path} line {len(values) + 1}"
            if not line.strip():
                raise Invalid("INPUT_INVALID", f"{place} is empty; each line is the JSON input of one item")
            values.append(compact(line.strip(), what=place))
    return values


def _wants_input(flow: Flow) -> bool:
    return flow.schema("input") is not None or next(_input_paths(flow), None) is not None


def _input_paths(flow: Flow) -> Iterator[str]:
    """Yield the paths of the input that the flow refers to; `$` is the whole."""
    for tree in (*(step.input for step in flow.steps), flow.output):
        yield from _input_paths_in(tree)


def _input_paths_in(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict) and "$literal" not in tree:
        if "$input" in tree:
            yield str(tree["$input"] or "$")
        for member in tree.values():
            yield from _input_paths_in(member)
    elif isinstance(tree, list):
        for member in tree:
            yield from _input_paths_in(member)


def describe_input(flow: Flow) -> str:
    """Say, for people, which input a flow wants and how to give it."""
    lines = []
    schema = flow.schema("input")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if isinstance(properties, dict) and properties:
        lines.append("It wants an object with")
        required = schema.get("required") or ()
        lines += [_describe_member(name, member, name in required) for name, member in properties.items()]
    elif isinstance(schema, dict) and schema:
        lines.append(f"It wants {_describe_type(schema)}.")
    else:
        paths = sorted(set(_input_paths(flow)))
        reads = f"; it reads {', '.join(paths)}" if paths else ""
        lines.append(f"It declares no schema for it{reads}.")
    lines += [
        "",
        "Give it with --input FILE, --input-json TEXT, --input-yaml TEXT or a pipe, or a batch with --inputs FILE.",
    ]
    example = _example_input(flow)
    if example is not None:
        lines.append(f"For example: --input-json {shlex.quote(example)}")
    return "\n".join(lines)


def _describe_member(name: str, schema: Any, required: bool) -> str:
    schema = schema if isinstance(schema, dict) else {}
    notes = [_describe_type(schema), "required" if required else "optional"]
    if "default" in schema and not schema.get("is_secret"):
        notes.append(f"default {encode(schema['default']).decode()}")
    text = f"  {name}  ({', '.join(notes)})"
    description = schema.get("description")
    return f"{text}  {description}" if isinstance(description, str) else text


def _describe_type(schema: Mapping[str, Any]) -> str:
    if isinstance(schema.get("enum"), list):
        return "one of " + ", ".join(encode(value).decode() for value in schema["enum"])
    kind = schema.get("type", "any value")
    return " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


_EXAMPLE_CHARS_MAX = 200


def _example_input(flow: Flow) -> str | None:
    """Return the first example of the flow as JSON text, when it is short enough for a command line."""
    for example in flow.all_examples():
        text = encode(example["input"]).decode()
        return text if len(text) <= _EXAMPLE_CHARS_MAX else None
    return None


# --- variables, overrides ----------------------------------------------------------------------------------------


def read_variables(options: VariableOptions, flow: Flow, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that were given for variables, as trees; the flow's own defaults are not among them.

    Raises:
        Usage: options that exclude each other, a file that is not there.
        Invalid: not JSON or YAML, too large, not an object.
    """
    given = _read_value(options.given, "variables")
    values: dict[str, Any] = {} if given is _ABSENT else given
    if not isinstance(values, dict):
        raise Invalid("VARIABLES_INVALID", "variables are given as an object of names and values")
    if options.from_environment:
        from stepflow.flow import VariableSpecs

        values = VariableSpecs.from_schema(flow.schema("variables")).from_environment(environ, values)
    return values


def read_overrides(options: ValueOptions) -> Any:
    """Return the tree of the overrides, unchecked, or None when there are none. Raises as `read_variables`."""
    value = _read_value(options, "overrides")
    return None if value is _ABSENT else value


def read_payload(options: ValueOptions) -> Any:
    """Return the payload of a signal, None without one. Raises as `read_variables`."""
    value = _read_value(options, "payload")
    return None if value is _ABSENT else value


_ABSENT: Any = object()


def _read_value(options: ValueOptions, group: str) -> Any:
    """Return the tree that a group of three options gives, or `_ABSENT`."""
    _at_most_one({f"--{group}": options.file, f"--{group}-json": options.json, f"--{group}-yaml": options.yaml})
    if options.file is not None:
        text = read_file(options.file, what=group)
        return _parse(text, str(options.file), value_format(options.file, what=group))
    if options.json is not None:
        return _parse(options.json, f"--{group}-json", "json")
    if options.yaml is not None:
        return _parse(options.yaml, f"--{group}-yaml", "yaml")
    return _ABSENT


def _at_most_one(options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise Usage("OPTIONS_EXCLUSIVE", f"{' and '.join(given)} exclude each other; give one of them", options=given)


# --- output ------------------------------------------------------------------------------------------------------


def check_output(output: Path | None) -> None:
    """Refuse, before the run, an output file that could not be written after it. Raises: Usage."""
    if output is None:
        return
    _output_format(output)
    if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
        raise Usage("FILE_UNWRITABLE", f"cannot write the output to {output}", path=str(output))


def write_results(results: Sequence[Any], output: Path | None, *, batch: bool) -> None:
    """Write FlowResult trees to stdout (JSON) or to a file (by its extension).

    A single run gives one value; a batch one JSON text per line, or one YAML list. Raises: Usage.
    """
    if output is None:
        console.out(_to_lines(results))
        return
    if _output_format(output) == "yaml":
        content = to_yaml(list(results) if batch else results[0]).encode()
    else:
        content = _to_lines(results)
    try:
        output.write_bytes(content)
    except OSError as error:
        raise Usage("FILE_UNWRITABLE", f"cannot write the output to {output}: {error.strerror}") from None


def _output_format(output: Path) -> Literal["yaml", "json"]:
    return "json" if output.suffix.lower() == ".jsonl" else value_format(output, what="output")


def _to_lines(results: Sequence[Any]) -> bytes:
    return b"".join(encode(result) + b"\n" for result in results)


def to_yaml(tree: Any) -> str:
    """Return a tree as YAML for people: author order, no aliases, texts with line breaks as blocks."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # a repeated subtree is data, not a reference
            return True

    def text(dumper: Dumper, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(decode(encode(tree)), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


# --- files -------------------------------------------------------------------------------------------------------


def value_format(path: Path, *, what: str) -> Literal["yaml", "json"]:
    """Return the format of a file with one value, by its extension. Raises: Usage."""
    match path.suffix.lower():
        case ".yaml" | ".yml":
            return "yaml"
        case ".json":
            return "json"
        case ".jsonl":
            hint = "; a batch of inputs is given with --inputs"
        case _:
            hint = ""
    raise Usage(
        "FILE_EXTENSION", f"{path}: unrecognized file extension; the {what} is a .yaml, .yml or .json file{hint}"
    )


def read_file(path: Path, *, what: str, bytes_max: int = PAYLOAD_BYTES_MAX) -> bytes:
    """Read a file of bounded size. Raises: Usage (no such file), Invalid (too large)."""
    with _open(path, what, bytes_max) as file:
        return _read_bounded(file, f"{what} {path}", bytes_max)


def _open(path: Path, what: str, bytes_max: int) -> BinaryIO:
    try:
        file = path.open("rb")
    except OSError as error:
        raise Usage("FILE_UNREADABLE", f"cannot read the {what} {path}: {error.strerror}", path=str(path)) from None
    size = os.fstat(file.fileno()).st_size
    if size > bytes_max:
        file.close()
        raise _too_large(f"{what} {path}", bytes_max, size)
    return file


def _read_bounded(file: BinaryIO, what: str, bytes_max: int = PAYLOAD_BYTES_MAX) -> bytes:
    content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise _too_large(what, bytes_max)
    return content


def _too_large(what: str, bytes_max: int, size: int | None = None) -> Invalid:
    found = f"{size:,} bytes" if size is not None else f"more than {bytes_max:,} bytes"
    return Invalid(
        "PAYLOAD_TOO_LARGE",
        f"{what} is {found}; the limit is {bytes_max:,}. Put large data where the components can read it "
        "(a file, a bucket) and give its address",
        bytes_max=bytes_max,
    )


def _parse(text: str | bytes, source: str, kind: Literal["yaml", "json"]) -> Any:
    from stepflow.flow import parse_tree

    if len(text) > PAYLOAD_BYTES_MAX:
        raise _too_large(source, PAYLOAD_BYTES_MAX, len(text))
    return parse_tree(text, source=source, format=kind).value


def _compact(tree: Any, what: str) -> bytes:
    content = encode(tree)
    if len(content) > PAYLOAD_BYTES_MAX:  # YAML aliases can make much out of little
        raise _too_large(what, PAYLOAD_BYTES_MAX, len(content))
    return content
