"""Documents to flows: shape and types of every field, expressions, and what was written but is not read.

The format is tolerant (unknown members never stop a flow) but not silent: every member that is not read gives a
warning in `Flow.warnings`, with the likely intention where there is one. Only inside our own `backoff` and `then` are
unknown members errors. Numbers without a fraction count as integers (`maxRetries: 2.0`), since protobuf's JSON values
know only doubles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from stepflow import codec
from stepflow.errors import Code, Invalid
from stepflow.flow.diagnostics import Diagnostic
from stepflow.flow.document import ComplexKey, DocumentInvalid, Format, Place, Tree, describe, parse_tree
from stepflow.flow.model import FAIL, Flow, FlowInvalid, OnError, Step
from stepflow.flow.paths import json_path, shown
from stepflow.flow.syntax import NOTES_MAX, ExpressionInvalid, Notes, parse_expression, suggestion, unparse
from stepflow.retry import Backoff, backoff_from_tree

RETRIES_MAX = 2**32 - 1
DURATION_MS_MAX = 2**32 - 1
"""49 days, as far as back-offs go."""

_FLOW_MEMBERS = ("name", "description", "version", "schemas", "steps", "output", "test", "examples", "metadata")
_STEP_MEMBERS = ("id", "component", "input", "onError", "mustExecute", "metadata", "timeout", "idleTimeout")
_SCHEMA_PARTS = ("input", "output", "variables", "steps")
_ON_ERROR_MEMBERS = {
    "fail": ("action",),
    "useDefault": ("action", "defaultValue"),
    "retry": ("action", "maxRetries", "backoff", "then"),
}

_NO_SKIPPING = "steps cannot be skipped; refer to the step inside an `$if` branch instead"
_IN_SCHEMAS = "the schema of a flow belongs under `schemas.properties`"
_STEP_SCHEMA = "the schema of a step belongs under `schemas.properties.steps.properties`"
_FLOW_LEGACY = {
    **dict.fromkeys(("inputSchema", "input_schema", "outputSchema", "output_schema"), _IN_SCHEMAS),
    **dict.fromkeys(("input", "variables", "variables_schema"), _IN_SCHEMAS),
}
_STEP_LEGACY = {
    **dict.fromkeys(("inputSchema", "input_schema", "outputSchema", "output_schema"), _STEP_SCHEMA),
    **dict.fromkeys(("skip", "skipIf", "skip_if", "onSkip"), _NO_SKIPPING),
    "on_error": "it is spelled `onError`",
    "depends_on": "the order follows from references alone",
}


def parse_flow(text: bytes | str, *, source: str, format: Format) -> Flow:
    """Read a flow from YAML or JSON text. `source` is what errors call it, usually the file's name.

    Raises:
        FlowInvalid: not a document, or not a flow; with line, column and field.
    """
    try:
        tree = _read(text, source=source, format=format)
    except DocumentInvalid as error:
        raise FlowInvalid(
            error.reason, error.problem, source=source, line=error.line, column=error.column, field=error.field
        ) from None
    return _Parser(source, tree).flow(tree.value)


def _read(text: bytes | str, *, source: str, format: Format) -> Tree:
    """Read a document whose keys are strings, but below `test.config`: mock behaviours there go by JSON values."""
    try:
        return parse_tree(text, source=source, format=format)
    except DocumentInvalid:
        if format != "yaml":
            raise
        tree = parse_tree(text, source=source, format=format, complex_keys=True)
        test = tree.value.get("test") if isinstance(tree.value, dict) else None
        outside = [
            {key: value for key, value in tree.value.items() if key != "test"} if test is not None else tree.value,
            {key: value for key, value in test.items() if key not in _CONFIGS} if isinstance(test, dict) else test,
        ]
        if any(_has_complex_key(part) for part in outside):
            raise
        return tree


_CONFIGS = ("config", "stepflow_config")


def _has_complex_key(tree: object) -> bool:
    if isinstance(tree, dict):
        return any(isinstance(key, ComplexKey) or _has_complex_key(value) for key, value in tree.items())
    return isinstance(tree, list) and any(map(_has_complex_key, tree))


def flow_from_tree(tree: object, *, source: str = "flow") -> Flow:
    """Read a flow from a plain JSON tree. Raises: FlowInvalid, without lines."""
    try:
        codec.check_depth(tree, "the flow")
    except Invalid as error:
        raise FlowInvalid(error.reason, error.message, source=source) from None
    return _Parser(source, None).flow(tree)


def parse_step(tree: object, *, source: str) -> Step:
    """Read one step from a plain JSON tree. Raises: FlowInvalid."""
    return _Parser(source, None).step(tree, ())


_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(ms|s|m|h)", re.ASCII)
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}


def parse_duration_ms(text: object) -> int:
    """Read a duration such as `500ms`, `1.5s`, `2m` or `1h` as milliseconds, at least 1.

    Raises:
        Invalid: DURATION_INVALID.
    """
    found = _DURATION.fullmatch(text.strip()) if isinstance(text, str) and len(text) <= 40 else None
    if found:
        duration_ms = float(found[1]) * _UNITS_MS[found[2]]
        if 1 <= duration_ms <= DURATION_MS_MAX:
            return round(duration_ms)
    shown = f"`{text[:40]}`" if isinstance(text, str) else describe(text)
    raise Invalid(
        "DURATION_INVALID",
        f"a duration is a positive number with a unit (`500ms`, `30s`, `5m`, `1h`; at most 49 days), not {shown}",
    )


@dataclass(slots=True)
class _Parser:
    """Knows where it reads from; the methods take a tree and its place."""

    source: str
    tree: Tree | None
    warnings: list[Diagnostic] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)

    # --- the flow ------------------------------------------------------------------------------------------------

    def flow(self, tree: object) -> Flow:
        if not isinstance(tree, dict):
            what = "the document is empty" if tree is None else f"the document is {describe(tree)}"
            raise self.invalid((), f"{what}; a flow is a mapping with `steps` and `output`")
        self.note_unread(tree, (), _FLOW_MEMBERS, _FLOW_LEGACY, tolerated=("schema",))
        return Flow(
            name=self.text(tree, "name", ()),
            description=self.text(tree, "description", ()),
            version=self.version(tree),
            schemas=self.schemas(tree.get("schemas"), ("schemas",)),
            steps=tuple(self.step(step, ("steps", i)) for i, step in enumerate(self.listing(tree, "steps", ()))),
            output=self.expression(tree.get("output"), ("output",)),
            test=self.test(tree.get("test"), ("test",)),
            examples=tuple(
                self.example(one, ("examples", i)) for i, one in enumerate(self.listing(tree, "examples", ()))
            ),
            metadata=self.mapping(tree, "metadata", ()),
            warnings=self.all_warnings(),
        )

    def version(self, tree: dict[str, Any]) -> str | None:
        version = tree.get("version")
        if isinstance(version, (int, float)) and not isinstance(version, bool):
            text = codec.encode(version).decode()
            problem = f"a version is text: read as `{text}`; put it in quotes to keep it as written"
            self.warnings.append(Diagnostic(1902, problem, "$.version"))
            return text
        return self.text(tree, "version", ())

    def schemas(self, tree: object, place: Place) -> dict[str, Any]:
        if tree is None:
            return {}
        if not isinstance(tree, dict):
            raise self.invalid(place, f"must be a mapping, not {describe(tree)}")
        if not isinstance(tree.get("properties"), dict):
            for part in _SCHEMA_PARTS:
                if part in tree:
                    raise self.invalid((*place, part), f"belongs under `properties`: write `schemas.properties.{part}`")
        self.note_unread(tree, place, ("type", "$defs", "properties"))
        definitions = self.schema_map(tree, "$defs", place)
        properties = self.mapping(tree, "properties", place)
        self.note_unread(properties, (*place, "properties"), _SCHEMA_PARTS)
        parts = {part: properties[part] for part in _SCHEMA_PARTS if properties.get(part) is not None}
        for part, schema in parts.items():
            self.check_schema(schema, (*place, "properties", part))
        for part in ("variables", "steps"):
            if part in parts:
                at = (*place, "properties", part)
                if not isinstance(parts[part], dict):
                    raise self.invalid(at, f"must be an object schema, not {describe(parts[part])}")
                self.schema_map(parts[part], "properties", at)
        found = {"$defs": definitions, "properties": parts}
        kept = {key: value for key, value in found.items() if value}
        return {"type": "object", **kept} if kept else {}

    def schema_map(self, tree: dict[str, Any], key: str, place: Place) -> dict[str, Any]:
        schemas = self.mapping(tree, key, place)
        for name, schema in schemas.items():
            self.check_schema(schema, (*place, key, name))
        return schemas

    def check_schema(self, schema: object, place: Place) -> None:
        if not isinstance(schema, (dict, bool)):
            raise self.invalid(place, f"a schema is a mapping, not {describe(schema)}")

    def test(self, tree: object, place: Place) -> dict[str, Any] | None:
        if tree is None:
            return None
        if not isinstance(tree, dict):
            raise self.invalid(place, f"must be a mapping, not {describe(tree)}")
        self.note_unread(tree, place, ("configFile", "config", "stepflow_config", "cases"))
        alias = "config" if tree.get("config") is not None else "stepflow_config"
        found = {
            "configFile": self.text(tree, "configFile", place),
            "config": self.mapping(tree, alias, place) if tree.get(alias) is not None else None,
            "cases": [self.case(one, (*place, "cases", i)) for i, one in enumerate(self.listing(tree, "cases", place))],
        }
        return {key: value for key, value in found.items() if value is not None and value != []} or None

    def case(self, tree: object, place: Place) -> dict[str, Any]:
        case = self.example(tree, place, also=("output",))
        assert isinstance(tree, dict)  # or it would not be an example
        if tree.get("output") is not None:
            case["output"] = self.expected(tree["output"], (*place, "output"))
        return case

    def example(self, tree: object, place: Place, also: tuple[str, ...] = ()) -> dict[str, Any]:
        if not isinstance(tree, dict):
            raise self.invalid(place, f"must be a mapping with `name` and `input`, not {describe(tree)}")
        self.note_unread(tree, place, ("name", "description", "input", *also))
        found: dict[str, Any] = {"name": self.required_text(tree, "name", place)}
        if (description := self.text(tree, "description", place)) is not None:
            found["description"] = description
        if "input" not in tree:
            raise self.invalid((*place, "input"), "is required (it may be null)")
        found["input"] = tree["input"]
        return found

    def expected(self, tree: object, place: Place) -> dict[str, Any]:
        """Check a FlowResult: `{outcome: success, result}` or `{outcome: failed, error: {code, message, data?}}`."""
        outcome = tree.get("outcome") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or outcome not in ("success", "failed"):
            raise self.invalid((*place, "outcome"), "must be `success` or `failed`")
        companion = "result" if outcome == "success" else "error"
        if companion not in tree:
            raise self.invalid((*place, companion), f"is required when the outcome is `{outcome}`")
        self.note_unread(tree, place, ("outcome", companion))
        if outcome == "success":
            return {"outcome": outcome, "result": tree["result"]}
        error, at = tree["error"], (*place, "error")
        if not isinstance(error, dict):
            raise self.invalid(at, f"must be a mapping with `code` and `message`, not {describe(error)}")
        self.note_unread(error, at, ("code", "message", "data"))
        if not isinstance(error.get("code"), str) or error["code"] not in Code.__members__:
            raise self.invalid((*at, "code"), "must be the name of an error code: " + ", ".join(Code.__members__))
        found = {"code": error["code"], "message": self.required_text(error, "message", at)}
        if error.get("data") is not None:
            found["data"] = error["data"]
        return {"outcome": outcome, "error": found}

    # --- steps ---------------------------------------------------------------------------------------------------

    def step(self, tree: object, place: Place) -> Step:
        if not isinstance(tree, dict):
            raise self.invalid(place, f"a step is a mapping with `id` and `component`, not {describe(tree)}")
        self.note_unread(tree, place, _STEP_MEMBERS, _STEP_LEGACY)
        return Step(
            id=self.required_text(tree, "id", place),
            component=self.required_text(tree, "component", place),
            input=self.expression(tree.get("input"), (*place, "input")),
            on_error=self.on_error(tree.get("onError"), (*place, "onError")),
            must_execute=self.boolean(tree, "mustExecute", place),
            metadata=self.mapping(tree, "metadata", place),
            timeout_ms=self.duration(tree, "timeout", place),
            idle_timeout_ms=self.duration(tree, "idleTimeout", place),
        )

    def expression(self, tree: object, place: Place) -> Any:
        try:
            return unparse(parse_expression(tree, place, self.notes))
        except ExpressionInvalid as error:
            raise self.invalid(error.place, error.problem, reason="EXPRESSION_INVALID") from None

    def on_error(self, tree: object, place: Place) -> OnError:
        if tree is None:
            return FAIL
        action = tree.get("action") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or not isinstance(action, str) or action not in _ON_ERROR_MEMBERS:
            hint = suggestion(action, tuple(_ON_ERROR_MEMBERS)) if isinstance(action, str) else ""
            raise self.invalid((*place, "action"), f"must be `fail`, `useDefault` or `retry`{hint}")
        self.note_unread(tree, place, _ON_ERROR_MEMBERS[action])
        if action == "useDefault":
            return OnError("useDefault", tree.get("defaultValue"), has_default=True)
        if action == "retry":
            return self.retry(tree, place)
        return FAIL

    def retry(self, tree: dict[str, Any], place: Place) -> OnError:
        then, at = tree.get("then"), (*place, "then")
        if then is not None:
            if not isinstance(then, dict) or then.get("action") != "useDefault":
                raise self.invalid((*at, "action"), "must be `useDefault`; without `then` the last failure stands")
            self.refuse_unknown(then, at, ("action", "defaultValue"))
        return OnError(
            "retry",
            default=None if then is None else then.get("defaultValue"),
            has_default=then is not None,
            max_retries=self.count(tree, "maxRetries", place),
            backoff=self.backoff(tree.get("backoff"), (*place, "backoff")),
        )

    def backoff(self, tree: object, place: Place) -> Backoff | None:
        if tree is None:
            return None
        if isinstance(tree, dict):
            tree = {key: _as_integer(value) for key, value in tree.items()}
        try:
            return backoff_from_tree(tree)
        except Invalid as error:
            name = error.details.get("field")
            raise self.invalid((*place, str(name)) if name else place, error.message, reason=error.reason) from None

    # --- members -------------------------------------------------------------------------------------------------

    def text(self, tree: dict[str, Any], key: str, place: Place) -> str | None:
        value = tree.get(key)
        if value is not None and not isinstance(value, str):
            raise self.invalid((*place, key), f"must be text, not {describe(value)}; put it in quotes")
        return value

    def required_text(self, tree: dict[str, Any], key: str, place: Place) -> str:
        value = self.text(tree, key, place)
        if value is None:
            near = [name for name in tree if suggestion(name, (key,))]
            raise self.invalid((*place, key), "is required" + (f"; did you mean it by `{near[0]}`?" if near else ""))
        return value

    def listing(self, tree: dict[str, Any], key: str, place: Place) -> list[Any]:
        value = tree.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.invalid((*place, key), f"must be a list, not {describe(value)}")
        return value

    def mapping(self, tree: dict[str, Any], key: str, place: Place) -> dict[str, Any]:
        value = tree.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.invalid((*place, key), f"must be a mapping, not {describe(value)}")
        return value

    def boolean(self, tree: dict[str, Any], key: str, place: Place) -> bool:
        value = tree.get(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.invalid((*place, key), f"must be true or false, not {describe(value)}")
        return value

    def count(self, tree: dict[str, Any], key: str, place: Place) -> int | None:
        value = _as_integer(tree.get(key))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= RETRIES_MAX:
            raise self.invalid((*place, key), f"must be a whole number from 0 to {RETRIES_MAX:,}")
        return value

    def duration(self, tree: dict[str, Any], key: str, place: Place) -> int | None:
        if tree.get(key) is None:
            return None
        try:
            return parse_duration_ms(tree[key])
        except Invalid as error:
            raise self.invalid((*place, key), error.message, reason=error.reason) from None

    # --- what is said about it -----------------------------------------------------------------------------------

    def all_warnings(self) -> tuple[Diagnostic, ...]:
        # Fields are read before this is called: arguments are evaluated in order.
        unread = [Diagnostic(1900, sentence, json_path(place)) for place, sentence in self.notes.items]
        return (*self.warnings, *unread)

    def note_unread(
        self,
        tree: dict[str, Any],
        place: Place,
        known: tuple[str, ...],
        legacy: dict[str, str] | None = None,
        tolerated: tuple[str, ...] = (),
    ) -> None:
        for key, value in tree.items():
            if key in known or key in tolerated:
                continue
            if legacy and key in legacy:
                if value is not None and len(self.warnings) < NOTES_MAX:  # old files say `inputSchema: null`
                    sentence = f"`{key}` is not read: {legacy[key]}"
                    self.warnings.append(Diagnostic(1901, sentence, json_path((*place, key))))
            else:
                self.notes.unread(place, key, "is not a known member here", known)

    def refuse_unknown(self, tree: dict[str, Any], place: Place, known: tuple[str, ...]) -> None:
        for key in tree:
            if key not in known:
                problem = f"`{shown(key)}` is not a known member here{suggestion(key, known)}"
                raise self.invalid((*place, key), problem)

    def invalid(self, place: Place, problem: str, *, reason: str = "FLOW_INVALID") -> FlowInvalid:
        line, column = self.tree.nearest(place) if self.tree else (0, 0)
        field = json_path(place) if place else ""
        return FlowInvalid(reason, problem, source=self.source, line=line, column=column, field=field)


def _as_integer(value: Any) -> Any:
    """Undo what protobuf's numbers do to integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
