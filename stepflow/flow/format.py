"""The members of a flow document: names, kinds and descriptions.

The one table behind the parser, which warns about all other members, and the JSON Schema of flows
(`flow_schema`). A kind is a key of `flow_schema.KINDS`. Kept light: the parser is imported at each start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Member(NamedTuple):
    name: str
    kind: str
    description: str
    required: bool = False


FLOW = (
    Member("name", "text", "Name of the flow, shown in listings."),
    Member("description", "text", "What the flow does, for people."),
    Member("version", "version", "Version of the flow, for people; never interpreted."),
    Member("schemas", "schemas", "JSON Schemas of the input, the output, the variables and the results of steps."),
    Member("steps", "steps", "The steps. A step runs when something needs it; it refers to earlier steps only."),
    Member("output", "expression", "The result of the flow, with references to steps, input and variables."),
    Member("test", "test", "Test cases for `stepflow test`."),
    Member("examples", "examples", "Example inputs."),
    Member("metadata", "mapping", "Data for other tools; stored and returned, never interpreted."),
)

STEP = (
    Member("id", "text", "Name of the step, unique within the flow; `$step` refers to it.", required=True),
    Member("component", "text", "Path of the component, such as `/builtin/map`; routes lead to it.", required=True),
    Member("input", "expression", "Input of the component, with references to steps, input and variables."),
    Member("onError", "onError", "What happens when the component fails. Default: the failure is the step's result."),
    Member("mustExecute", "boolean", "Run the step even if nothing refers to it."),
    Member("metadata", "mapping", "Data for other tools; never interpreted."),
    Member("timeout", "duration", "Limit of one attempt, such as `30s`."),
    Member("idleTimeout", "duration", "Limit of the time without progress within one attempt."),
)

_ACTION = Member("action", "text", "`fail`, `useDefault` or `retry`.", required=True)
_DEFAULT = Member("defaultValue", "any", "Result of the step in place of the failure: plain JSON, no references.")

ON_ERROR: Mapping[str, tuple[Member, ...]] = {
    "fail": (_ACTION,),
    "useDefault": (_ACTION, _DEFAULT),
    "retry": (
        _ACTION,
        Member("maxRetries", "count", "Attempts after the first."),
        Member("backoff", "backoff", "Delays between the attempts. Default: those of the configuration."),
        Member("then", "then", "What happens after the last attempt. Default: the last failure stands."),
    ),
}

SCHEMA_PARTS = (
    Member("input", "schema", "Schema of the flow's input, checked before a run starts."),
    Member("output", "schema", "Schema of the flow's output."),
    Member("variables", "schemaMap", "Schemas of the variables, under `properties`."),
    Member("steps", "schemaMap", "Schemas of the results of steps, under `properties` by step id."),
)

SCHEMAS = (
    Member("type", "any", "Always `object`."),
    Member("$defs", "definitions", "Schemas that the others refer to."),
    Member("properties", "schemaParts", "The schemas, by what they describe."),
)

EXAMPLE = (
    Member("name", "text", "Name of the example or test case.", required=True),
    Member("description", "text", "What it shows."),
    Member("input", "any", "Input of the run: plain JSON, no references.", required=True),
)

EXPECTED = Member("output", "expected", "The expected outcome. Members that it leaves out are not compared.")

EXPECTED_ERROR = (
    Member("code", "code", "Name of the failure code.", required=True),
    Member("message", "text", "Text of the failure.", required=True),
    Member("data", "any", "Data of the failure."),
)

TEST = (
    Member("configFile", "text", "Configuration of the tests: a path relative to the flow."),
    Member("config", "mapping", "Configuration of the tests, inline."),
    Member("stepflow_config", "mapping", "Older spelling of `config`."),
    Member("cases", "cases", "The test cases."),
)

CONFIG_ONLY = ("plugins", "routes")
"""Members of a configuration that no flow has."""


def names(members: tuple[Member, ...]) -> tuple[str, ...]:
    """Return the names of members, in order."""
    return tuple(member.name for member in members)
