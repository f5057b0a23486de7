"""From documents to flows: the shape and type of every field, expressions, and unread members.

The format is tolerant (unknown members never stop a flow) but not silent: every unread member gives a
warning in `Flow.warnings`, with the likely intention if any. Only inside `backoff` and `then`, which the
public format lacks, are unknown members errors. Numbers without a fraction count as integers (`maxRetries: 2.0`),
since protobuf's JSON values have only doubles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepflow import codec
from stepflow.errors import Invalid
from stepflow.flow.declarations import DeclarationReader
from stepflow.flow.diagnostics import Diagnostic
from stepflow.flow.document import Format, Tree, parse_tree
from stepflow.flow.members import as_integer
from stepflow.flow.model import FAIL, Flow, FlowInvalid, OnError, Step
from stepflow.flow.silence import silence_of
from stepflow.flow.source import DocumentInvalid, describe
from stepflow.flow.syntax import ExpressionInvalid, parse_expression, suggestion, unparse
from stepflow.flow.yaml_reader import ComplexKey
from stepflow.retry import Backoff, backoff_from_tree

if TYPE_CHECKING:
    from stepflow.flow.source import DocumentPath

_FLOW_MEMBERS = ("name", "description", "version", "schemas", "steps", "output", "test", "examples", "metadata")
_STEP_MEMBERS = ("id", "component", "input", "onError", "mustExecute", "metadata", "timeout", "idleTimeout")
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
    """Read a flow from YAML or JSON text. Errors name `source`, usually the file.

    Raises:
        FlowInvalid: the text is not a document or not a flow; with line, column and field.
    """
    try:
        tree = _read(text, source=source, format=format)
    except DocumentInvalid as error:
        raise FlowInvalid(
            error.reason, error.problem, source=source, line=error.line, column=error.column, field=error.field
        ) from None
    return _FlowReader(source, tree).flow(tree.value)


def _read(text: bytes | str, *, source: str, format: Format) -> Tree:
    """Read a document. Keys are strings, except below `test.config`, where mock behaviours have JSON values as keys."""
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
    return _FlowReader(source, None).flow(tree)


def parse_step(tree: object, *, source: str) -> Step:
    """Read a step from a plain JSON tree. Raises: FlowInvalid."""
    return _FlowReader(source, None).step(tree, ())


class _FlowReader(DeclarationReader):
    """Methods take a tree and its document path."""

    def flow(self, tree: object) -> Flow:
        if not isinstance(tree, dict):
            what = "the document is empty" if tree is None else f"the document is {describe(tree)}"
            raise self.invalid((), f"{what}; a flow is a mapping with `steps` and `output`")

        self.note_unread(tree, (), _FLOW_MEMBERS, _FLOW_LEGACY, tolerated=("schema",))

        flow = Flow(
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
        )
        warnings = tuple(silence_of(flow).without_silenced(self.all_warnings()))
        return replace(flow, warnings=warnings) if warnings else flow

    def version(self, tree: dict[str, Any]) -> str | None:
        version = tree.get("version")
        if isinstance(version, (int, float)) and not isinstance(version, bool):
            text = codec.encode(version).decode()
            problem = f"a version is text: read as `{text}`; put it in quotes to keep it as written"
            self.warnings.append(Diagnostic(1902, problem, "$.version"))
            return text
        return self.text(tree, "version", ())

    def step(self, tree: object, doc_path: DocumentPath) -> Step:
        if not isinstance(tree, dict):
            raise self.invalid(doc_path, f"a step is a mapping with `id` and `component`, not {describe(tree)}")
        self.note_unread(tree, doc_path, _STEP_MEMBERS, _STEP_LEGACY)

        return Step(
            id=self.required_text(tree, "id", doc_path),
            component=self.required_text(tree, "component", doc_path),
            input=self.expression(tree.get("input"), (*doc_path, "input")),
            on_error=self.on_error(tree.get("onError"), (*doc_path, "onError")),
            must_execute=self.boolean(tree, "mustExecute", doc_path),
            metadata=self.mapping(tree, "metadata", doc_path),
            timeout_ms=self.duration(tree, "timeout", doc_path),
            idle_timeout_ms=self.duration(tree, "idleTimeout", doc_path),
        )

    def expression(self, tree: object, doc_path: DocumentPath) -> Any:
        try:
            return unparse(parse_expression(tree, doc_path, self.notes))
        except ExpressionInvalid as error:
            raise self.invalid(error.doc_path, error.problem, reason="EXPRESSION_INVALID") from None

    def on_error(self, tree: object, doc_path: DocumentPath) -> OnError:
        if tree is None:
            return FAIL
        action = tree.get("action") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or not isinstance(action, str) or action not in _ON_ERROR_MEMBERS:
            hint = suggestion(action, tuple(_ON_ERROR_MEMBERS)) if isinstance(action, str) else ""
            raise self.invalid((*doc_path, "action"), f"must be `fail`, `useDefault` or `retry`{hint}")

        self.note_unread(tree, doc_path, _ON_ERROR_MEMBERS[action])
        if action == "useDefault":
            return OnError("useDefault", tree.get("defaultValue"), has_default=True)
        if action == "retry":
            return self.retry(tree, doc_path)
        return FAIL

    def retry(self, tree: dict[str, Any], doc_path: DocumentPath) -> OnError:
        then, at = tree.get("then"), (*doc_path, "then")
        if then is not None:
            if not isinstance(then, dict) or then.get("action") != "useDefault":
                raise self.invalid((*at, "action"), "must be `useDefault`; without `then` the last failure stands")
            self.refuse_unknown(then, at, ("action", "defaultValue"))
        return OnError(
            "retry",
            default=None if then is None else then.get("defaultValue"),
            has_default=then is not None,
            max_retries=self.count(tree, "maxRetries", doc_path),
            backoff=self.backoff(tree.get("backoff"), (*doc_path, "backoff")),
        )

    def backoff(self, tree: object, doc_path: DocumentPath) -> Backoff | None:
        if tree is None:
            return None
        if isinstance(tree, dict):
            tree = {key: as_integer(value) for key, value in tree.items()}
        try:
            return backoff_from_tree(tree)
        except Invalid as error:
            name = error.details.get("field")
            raise self.invalid(
                (*doc_path, str(name)) if name else doc_path, error.message, reason=error.reason
            ) from None
