"""`stepflow infer`: fill in the schemas of a flow from its expressions and components."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.options import ConfigOption, FlowOption, with_flow

if TYPE_CHECKING:
    from stepflow.flow import Diagnostics, Flow
    from stepflow.flow.types import FlowTypes

_BYTE_ORDER_MARK = "\ufeff"


@with_flow
def infer(
    flow: FlowOption,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File of the flow. Default: stdout."),
    ] = None,
    config: ConfigOption = None,
    servers: Annotated[
        bool, typer.Option("--servers", help="Start the servers of the config to ask for their schemas.")
    ] = False,
    show_step_inputs: Annotated[
        bool, typer.Option("--show-step-inputs", help="Also show what each step is given and what its component takes.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Report what cannot be checked; warnings are errors.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print flow and diagnostics as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no report about a flow that passes.")] = False,
) -> None:
    """Fill in the missing schemas of a flow.

    Those of the outputs of its steps, of its output, and of its input.

    The types follow from the flow's expressions and the components' schemas. The flow goes to stdout with its comments
    and the order of its members; the report goes to stderr. When a diagnostic is fatal or an error, no flow is printed,
    and the exit code is 1.

    \b
    Examples:
      stepflow infer flow.yaml
      stepflow infer flow.yaml --servers -o typed.yaml
      stepflow infer flow.yaml --json | jq .flow.schemas
    """
    from stepflow.check import including_types
    from stepflow.cli.findings import check, print_report
    from stepflow.cli.flow_types import known_catalogue, print_failures, types_of
    from stepflow.cli.found_flow import flow_file
    from stepflow.cli.input.documents import read_config, read_flow
    from stepflow.cli.output import check_output

    check_output(output)
    path = flow_file(flow)
    if path is None:
        raise console.Usage("FLOW_MISSING", "name the file of a flow: stepflow infer flow.yaml")
    parsed, loaded = read_flow(path), read_config(config, path)
    catalogue, failures = known_catalogue(loaded, servers=servers)
    types = types_of(parsed, catalogue, is_strict=strict)
    diagnostics = including_types(check(parsed, loaded), parsed, types, is_strict=strict)
    for warning in loaded.warnings:
        console.warn(warning)

    print_failures(failures)
    passed = not diagnostics.blocks
    if not (quiet and passed):
        print_report(diagnostics)
        _print_types(types, show_step_inputs=show_step_inputs)
    if json:
        _write(_json_text(diagnostics, _completed(path, parsed, types) if passed else None), output, quiet=quiet)
    elif passed:
        _write(_flow_text(path, parsed, types, output), output, quiet=quiet)
    raise typer.Exit(console.EXIT_OK if passed and not failures else console.EXIT_FAILED)


def _print_types(types: "FlowTypes", *, show_step_inputs: bool) -> None:
    from stepflow.flow.types import type_text

    parts = [("📊 Inferred step output types:", types.step_outputs)]
    if show_step_inputs:
        parts = [
            ("📥 Synthesized step input types:", types.step_inputs),
            ("📋 Component expected input types:", types.step_wanted),
            *parts,
        ]
    parts.append(("🏁 Flow:", {"input": types.input, "output": types.output}))
    for title, named in parts:
        console.say(title)
        for name, type_ in named.items():
            console.say(f"  {name}: {type_text(type_, types.scope)}")


def _additions(flow: "Flow", types: "FlowTypes") -> dict[str, dict[str, Any]]:
    """Return what the flow's schemas lack, each by name: `$defs`, members of `properties`, members of `steps`.

    Without any declared step, the steps are a member of `properties`.
    """
    from stepflow.flow.types import needed_definitions

    declared = (flow.schema("steps") or {}).get("properties", {})
    steps = {name: type_ for name, type_ in types.step_outputs.items() if name not in declared and _is_known(type_)}
    parts = {
        part: type_
        for part, type_ in (("input", types.input), ("output", types.output))
        if flow.schema(part) is None and _is_known(type_)  # type: ignore[arg-type]  # both are parts
    }
    needed = needed_definitions(types.scope, [*steps.values(), *parts.values()])
    definitions = {name: schema for name, schema in needed.items() if name not in flow.schema_definitions}
    if steps and flow.schema("steps") is None:
        parts["steps"] = {"type": "object", "properties": steps}
        steps = {}
    return {"$defs": definitions, "properties": parts, "steps": steps}


def _is_known(type_: Any) -> bool:
    return isinstance(type_, dict) and bool(type_)


def _completed(path: Path, flow: "Flow", types: "FlowTypes") -> Any:
    """Return the document of the flow with the schemas filled in."""
    from stepflow.cli.input.files import read_file, value_format
    from stepflow.codec import decode, encode
    from stepflow.flow import parse_tree

    text = read_file(path, what="flow").decode().removeprefix(_BYTE_ORDER_MARK)
    read = parse_tree(text, source=str(path), format=value_format(path, what="flow"), complex_keys=True)
    tree = decode(encode(read.value))  # a copy in which aliases share nothing

    added = _additions(flow, types)
    if any(added.values()):
        schemas = tree["schemas"] = tree.get("schemas") or {}
        properties = schemas["properties"] = schemas.get("properties") or {}
        properties.update(added["properties"])
        if added["$defs"]:
            schemas["$defs"] = {**(schemas.get("$defs") or {}), **added["$defs"]}
        if added["steps"]:
            steps = properties["steps"]
            steps["properties"] = {**(steps.get("properties") or {}), **added["steps"]}
    return tree


def _flow_text(path: Path, flow: "Flow", types: "FlowTypes", output: Path | None) -> str:
    """Return the flow as text, in the format of the output file, else of the flow's file."""
    from stepflow.cli.input.files import value_format
    from stepflow.cli.output import to_yaml

    wanted = _completed(path, flow, types)
    kind = value_format(path, what="flow")
    if (kind if output is None else value_format(output, what="output")) == "json":
        return _formatted(wanted)
    text = _edited(path, _additions(flow, types), wanted) if kind == "yaml" else None
    if text is None and kind == "yaml":
        console.warn(f"{path}: written in its normal form, without comments: the text has no place for the schemas")
    return to_yaml(wanted) if text is None else text


def _edited(path: Path, added: dict[str, dict[str, Any]], wanted: Any) -> str | None:
    """Return the text of the file with the schemas added, or None if the text has no place for them."""
    from stepflow.cli.input.files import read_file
    from stepflow.cli.yaml_edits import add_members
    from stepflow.errors import StepflowError
    from stepflow.flow import parse_tree

    text = read_file(path, what="flow").decode().removeprefix(_BYTE_ORDER_MARK)
    properties = ("schemas", "properties")
    edits = [
        (("schemas", "$defs"), added["$defs"]),
        (properties, added["properties"]),
        ((*properties, "steps", "properties"), added["steps"]),
    ]

    try:
        for place, members in edits:
            if members:
                text = add_members(text, place, members, before="steps")
        tree = parse_tree(text, source=str(path), format="yaml", complex_keys=True).value
    except (StepflowError, ValueError, AttributeError):  # positions that a text with aliases or tags does not have
        return None
    return text if tree == wanted else None


def _json_text(diagnostics: "Diagnostics", flow: Any) -> str:
    return _formatted({**diagnostics.to_tree(), **({} if flow is None else {"flow": flow})})


def _formatted(tree: Any) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(tree), indent=2).decode() + "\n"


def _write(text: str, output: Path | None, *, quiet: bool) -> None:
    if output is None:
        console.out(text)
        return
    from stepflow.whole_file import whole_file

    with whole_file(output) as file:
        file.write(text.encode())
    if not quiet:
        console.say(f"wrote {output}")
