"""How an MCP result becomes a step's output, and an MCP error its failure. Pure.

The mapping, in full in `docs/how-to/use-mcp-servers.md`:

- The output is a result's `structuredContent`. Without it, a single text block yields its text, anything else the list
  of content blocks. With `result: content`, the list of content blocks is always the output.
- Prompts and resources yield their results unchanged.
- `isError` is a failure with the joined text: INVALID_INPUT if the arguments break the tool's input schema or an SDK
  reports that it refused them, COMPONENT_NOT_FOUND for an unlisted tool, else COMPONENT_FAILED.
- JSON-RPC errors map by their code. A lost connection is the caller's to detect, not read from a code.

Imports the SDK: import it late.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import mcp_types
from jsonschema.exceptions import ValidationError as SchemaError  # type: ignore[import-untyped]  # has no stubs
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from stepflow import codec
from stepflow.errors import Code, Failure, Invalid
from stepflow.flow.schema import InputValidator

if TYPE_CHECKING:
    from collections.abc import Iterator

    import mcp
    from pydantic import BaseModel

    from component_host.backend import ComponentInfo
    from component_host.mcp_bridge.link import OfferKind, ResultForm

MESSAGE_CHARS_MAX = 8_000
"""Of a failure's text, which is journaled."""

_ARGUMENTS_REFUSED = re.compile(
    r"""\AInput\ validation\ error              # low-level servers of the Python SDK, and TypeScript's
      | \AMCP\ error\ -32602                    # TypeScript's SDK
      | \bInvalid\ arguments\ for\ tool\b       # both
      | \bvalidation\ errors?\ for\ \w+Arguments\b  # high-level servers of the Python SDK
    """,
    re.VERBOSE,
)
_TOOL_UNKNOWN = re.compile(r"\b(unknown tool|tool \S+ (was )?not found)\b", re.IGNORECASE)


McpResult = mcp_types.CallToolResult | mcp_types.GetPromptResult | mcp_types.ReadResourceResult


INPUT_DEPTH_MAX = 200
"""The SDK's encoder accepts 255 levels, the request around the input included."""

assert INPUT_DEPTH_MAX + 16 < codec.JSON_DEPTH_MAX - 1


def input_problem(kind: OfferKind, input: Any) -> str:
    """Return why an input cannot be sent; empty if it can."""
    if not isinstance(input, dict):
        return "the input of an MCP component is an object of its arguments"
    if kind == "prompt" and not all(isinstance(value, str) for value in input.values()):
        return "the arguments of an MCP prompt are strings"
    if kind == "resources" and not isinstance(input.get("uri"), str):
        return "the input must have the `uri` of a resource"
    try:
        codec.check_depth(input, "the input", INPUT_DEPTH_MAX)
    except Invalid as error:
        return error.message
    return ""


def outcome(result: McpResult, form: ResultForm, info: ComponentInfo | None, arguments: Any) -> bytes | Failure:
    """Return a result's output as JSON text, or its failure. `info` is None for an unlisted component."""
    if isinstance(result, mcp_types.CallToolResult) and result.is_error:
        return failure_of_result(result, info, arguments)
    tree = _output(result, form)
    try:
        text = codec.encode(tree)
        if b"null" in text:  # the encoder writes NaN and infinities, which the SDK accepts over HTTP, as null
            _check_numbers(tree)
    except Invalid as error:
        return _failure(Code.COMPONENT_FAILED, f"the server's answer cannot be an output: {error.message}", {})
    return text


def _check_numbers(tree: Any) -> None:
    """Raises: Invalid, a number is infinite or NaN."""
    match tree:
        case float() if not math.isfinite(tree):
            raise Invalid("NOT_JSON", f"it has the number {tree}, which JSON cannot represent")
        case dict():
            for member in tree.values():
                _check_numbers(member)
        case list():
            for member in tree:
                _check_numbers(member)


def _output(result: McpResult, form: ResultForm) -> Any:
    if isinstance(result, mcp_types.GetPromptResult):
        return _tree(result, "description", "messages")
    if isinstance(result, mcp_types.ReadResourceResult):
        return _tree(result, "contents")
    if form == "structured":
        if result.structured_content is not None:
            return result.structured_content
        if len(result.content) == 1 and isinstance(block := result.content[0], mcp_types.TextContent):
            return block.text
    return _blocks(result)


def _tree(result: BaseModel, *members: str) -> dict[str, Any]:
    tree = result.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {name: tree[name] for name in members if tree.get(name) is not None}


def failure_of_result(result: mcp_types.CallToolResult, tool: ComponentInfo | None, arguments: Any) -> Failure:
    """Return the failure of an `isError` result. `tool` is None if the server does not list it."""
    texts = [block.text for block in result.content if isinstance(block, mcp_types.TextContent)]
    message = "\n".join(texts) or "the tool failed without saying why"
    details: dict[str, Any] = {}
    if len(texts) < len(result.content):
        details["content"] = _blocks(result)
    if result.structured_content is not None:
        details["structuredContent"] = result.structured_content
    return _failure(_code_of_error_text(message, tool, arguments), message, details)


def failure_of_error(error: Exception, name: str, tool: ComponentInfo | None, arguments: Any) -> Failure:
    """Return the failure of a call over a connection that still stands. `name` is the tool's."""
    if isinstance(error, MCPError):
        details = {"code": error.code} if error.data is None else {"code": error.code, "data": error.data}
        if error.code == mcp_types.PARSE_ERROR:  # the SDK's own words would quote the answer
            return _failure(Code.COMPONENT_FAILED, "the server's answer is no valid JSON-RPC message", details)
        return _failure(_code_of_rpc_error(error, tool, arguments), error.message, details)
    if isinstance(error, ValidationError):
        return _failure(Code.COMPONENT_FAILED, describe_bad_answer(error), {})
    if isinstance(error, RuntimeError):
        return _failure(Code.COMPONENT_FAILED, _schema_problem(error, name), {})
    return _failure(
        Code.WORKER_ERROR, f"the call of tool {name!r} went wrong in the MCP client: {type(error).__name__}", {}
    )


def unreachable(message: str, stderr_tail: str) -> Failure:
    return _failure(Code.UNREACHABLE, message, {"stderr": stderr_tail} if stderr_tail else {})


def describe_bad_answer(error: ValidationError) -> str:
    """Describe where an answer breaks the protocol. (Pydantic's own text would quote the answer.)"""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    locations = [f"{'.'.join(map(str, problem['loc'])) or 'it'}: {problem['msg']}" for problem in problems[:3]]
    return f"the server's answer breaks the protocol ({'; '.join(locations)})"


def breaks_schema(schema: Any, arguments: Any) -> bool:
    """Return True if the arguments break the schema. An invalid schema accepts everything."""
    try:
        return InputValidator(schema).check(arguments) is not None
    except Invalid:
        return False


class BoundedResultCheck:
    """Makes an SDK session check tool results with our validator, whose work is bounded.

    The SDK's own validator runs on the event loop in pure Python: one schema can keep it busy for hours.
    """

    def __init__(self) -> None:
        self._validators: dict[str, tuple[Any, InputValidator]] = {}

    def install(self, session: mcp.ClientSession) -> None:
        """Replace the part of `session` that compiles output schemas."""
        assert callable(session._output_schema_validator)
        session._output_schema_validator = self._validator  # type: ignore[method-assign,assignment]  # duck-typed: it calls iter_errors only

    def _validator(self, name: str, schema: Any) -> _ResultValidator:
        """Raises: RuntimeError for an unusable schema, as the SDK's own does."""
        known = self._validators.get(name)
        if known is None or known[0] is not schema:
            try:
                known = self._validators[name] = (schema, InputValidator(schema, check_formats=False))
            except Invalid as error:
                raise RuntimeError(
                    f"the output schema of tool {name!r} cannot be used ({error.reason}): {error.message}"
                ) from None
        return _ResultValidator(name, known[1])


class _ResultValidator:
    """The part of a jsonschema validator that the SDK calls."""

    def __init__(self, name: str, validator: InputValidator) -> None:
        self._name = name
        self._validator = validator

    def iter_errors(self, tree: Any) -> Iterator[SchemaError]:
        """Yield at most one error. Raises: RuntimeError, the result is too large to check."""
        try:
            problem = self._validator.misfit(tree)
        except Invalid as error:
            raise RuntimeError(
                f"the result of tool {self._name!r} cannot be checked ({error.reason}): {error.message}"
            ) from None
        if problem is not None:
            pointer, message, rule = problem
            yield SchemaError(message, validator=rule or "schema", path=_parts(pointer))


def _parts(pointer: str) -> list[str | int]:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    return [int(part) if part.isdecimal() else part for part in parts]


def _code_of_error_text(message: str, tool: ComponentInfo | None, arguments: Any) -> Code:
    if tool is None:
        return Code.COMPONENT_NOT_FOUND
    if _ARGUMENTS_REFUSED.search(message) or breaks_schema(tool.input_schema, arguments):
        return Code.INVALID_INPUT
    return Code.COMPONENT_FAILED


def _code_of_rpc_error(error: MCPError, tool: ComponentInfo | None, arguments: Any) -> Code:
    match error.code:
        case mcp_types.METHOD_NOT_FOUND:
            return Code.COMPONENT_NOT_FOUND
        case mcp_types.INVALID_PARAMS:
            unknown = tool is None or _TOOL_UNKNOWN.search(error.message)
            return Code.COMPONENT_NOT_FOUND if unknown else Code.INVALID_INPUT
        case -32002:  # missing resource in the handshake era; INVALID_PARAMS in the modern one
            return Code.INVALID_INPUT
        case mcp_types.REQUEST_TIMEOUT:
            return Code.TIMEOUT
        case _:
            refused = tool is not None and breaks_schema(tool.input_schema, arguments)
            return Code.INVALID_INPUT if refused else Code.COMPONENT_FAILED


def _schema_problem(error: RuntimeError, name: str) -> str:
    """Describe the SDK's refusal of a result without the payload that its own text repeats."""
    cause = error.__cause__
    rule, path = getattr(cause, "validator", None), getattr(cause, "json_path", None)
    if rule is not None and path is not None:
        return f"the result of tool {name!r} breaks the tool's output schema: {rule!r} does not hold at {path}"
    return str(error)


def _blocks(result: mcp_types.CallToolResult) -> list[Any]:
    return [block.model_dump(mode="json", by_alias=True, exclude_unset=True) for block in result.content]


def _failure(code: Code, message: str, details: dict[str, Any]) -> Failure:
    if len(message) > MESSAGE_CHARS_MAX:
        message = message[:MESSAGE_CHARS_MAX] + " …"
    return Failure(code, message, codec.encode(details) if details else b"")
