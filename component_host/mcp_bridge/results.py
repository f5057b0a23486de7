"""How an MCP result becomes a step's output, and an MCP error its failure. Pure.

The mapping, in full in `docs/how-to/use-mcp-servers.md`:

- The output is a result's `structuredContent`. Without it, a single text block yields its text, anything else the list
  of content blocks. With `result: content`, the list of content blocks is always the output.
- Prompts and resources yield their results unchanged.
- Answers are read as they were sent (`answers`); the SDK's models do not decide what is a result.
- `isError` is a failure with the joined text: INVALID_INPUT if the arguments break the tool's input schema or an SDK
  reports that it refused them, COMPONENT_NOT_FOUND for an unlisted tool, else COMPONENT_FAILED.
- JSON-RPC errors map by their code. A lost connection is the caller's to detect, not read from a code.

Imports the SDK: import it late.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import mcp_types
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from stepflow import codec
from stepflow.errors import Code, Failure, Invalid
from stepflow.failure_data import with_stderr
from stepflow.flow.schema import InputValidator

if TYPE_CHECKING:
    from component_host.backend import ComponentInfo
    from component_host.mcp_bridge.link import OfferKind, ResultForm
    from component_host.supervision.report import ProcessReport

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
_SESSION_UNKNOWN = re.compile(
    r"not[ _]found|unknown|invalid|no valid|no such|missing|expired|does(n't| not) exist|re-?initiali[sz]|"
    r"not[ _](been )?(initiali[sz]ed|recogni[sz]ed)"
)
_SESSION_ENDED = re.compile(r"terminated|closed|ended|deleted|no longer")
_TOOL_UNKNOWN = re.compile(r"\b(unknown tool|tool \S+ (was )?not found)\b", re.IGNORECASE)


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


class BadAnswerError(Exception):
    """An answer is no result, or breaks the schema of the tool; the text says how."""


def outcome(kind: OfferKind, answer: dict[str, Any], form: ResultForm, call: ToolCall) -> bytes | Failure:
    """Return an answer's output as JSON text, or its failure."""
    if kind == "tool" and answer.get("isError") not in (None, False, 0, "", "false"):
        return failure_of_result(answer, call.tool, call.arguments)
    try:
        tree = _output(kind, answer, form)
        if kind == "tool":
            _check_structure(call, answer)
        text = codec.encode(tree)
        if b"null" in text:  # the encoder writes NaN and infinities, which the SDK accepts over HTTP, as null
            _check_numbers(tree)
    except (BadAnswerError, Invalid) as error:
        return _failure(Code.COMPONENT_FAILED, str(error), {})
    return text


def _check_numbers(tree: Any) -> None:
    """Raises: Invalid NOT_JSON, a number is infinite or NaN."""
    match tree:
        case float() if not math.isfinite(tree):
            problem = f"the server's answer cannot be an output: it has the number {tree}, unknown to JSON"
            raise Invalid("NOT_JSON", problem)
        case dict():
            for member in tree.values():
                _check_numbers(member)
        case list():
            for member in tree:
                _check_numbers(member)


def _output(kind: OfferKind, answer: dict[str, Any], form: ResultForm) -> Any:
    """Raises: BadAnswerError, the answer has no output."""
    match kind:
        case "prompt":
            return _members(answer, "messages", "description")
        case "resources":
            return _members(answer, "contents")
        case _:
            structured = answer.get("structuredContent")
            if form == "structured" and structured is not None:
                return structured
            blocks = _objects(answer, "content")
            if form == "structured" and len(blocks) == 1 and (text := _text_of(blocks[0])) is not None:
                return text
            return blocks


def _members(answer: dict[str, Any], member: str, *others: str) -> dict[str, Any]:
    found = {name: answer[name] for name in others if answer.get(name) is not None}
    return {**found, member: _objects(answer, member)}


def _objects(answer: dict[str, Any], member: str) -> list[Any]:
    objects = answer.get(member)
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        raise BadAnswerError(f"the server's answer breaks the protocol (`{member}` is no list of objects)")
    return objects


def _text_of(block: Any) -> str | None:
    if not isinstance(block, dict) or block.get("type") != "text":
        return None
    text = block.get("text")
    return text if isinstance(text, str) else None


def failure_of_result(answer: dict[str, Any], tool: ComponentInfo | None, arguments: Any) -> Failure:
    """Return the failure of an `isError` result. `tool` is None if the server does not list it."""
    content = answer.get("content")
    blocks = content if isinstance(content, list) else []
    texts = [text for block in blocks if (text := _text_of(block)) is not None]
    message = "\n".join(texts) or "the tool failed without saying why"
    details: dict[str, Any] = {}
    if len(texts) < len(blocks):
        details["content"] = blocks
    if answer.get("structuredContent") is not None:
        details["structuredContent"] = answer["structuredContent"]
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
        return _failure(Code.COMPONENT_FAILED, str(error), {})
    return _failure(
        Code.WORKER_ERROR, f"the call of tool {name!r} went wrong in the MCP client: {type(error).__name__}", {}
    )


def speaks_of_session(error: MCPError) -> bool:
    """Return True if an error may say that the server has forgotten the session."""
    text = _session_text(error)
    return "session" in text and bool(_SESSION_UNKNOWN.search(text) or _SESSION_ENDED.search(text))


def refuses_session(error: MCPError) -> bool:
    """Return True if such an error says that the request was not looked at."""
    return bool(_SESSION_UNKNOWN.search(_session_text(error)))


def _session_text(error: MCPError) -> str:
    return f"{error.message} {error.data or ''}"[:MESSAGE_CHARS_MAX].lower()


def unreachable(message: str, stderr_tail: str) -> Failure:
    return _failure(Code.UNREACHABLE, message, {"stderr": stderr_tail} if stderr_tail else {})


def with_stderr_of_call(failure: Failure, process: ProcessReport | None) -> Failure:
    """Return the failure with what the server wrote to stderr during the call, if the call was the only one."""
    if process is None or failure.code is Code.COMPONENT_NOT_FOUND:
        return failure
    return Failure(failure.code, failure.message, with_stderr(failure.data, process.stderr_of_call()))


def with_pause(failure: Failure, retry_after_ms: int | None) -> Failure:
    """Return the failure with the pause before the next attempt in its data, if the server asked for one."""
    if retry_after_ms is None:
        return failure
    details = codec.decode(failure.data) if failure.data else {}
    return _failure(failure.code, failure.message, {**details, "retry_after_ms": retry_after_ms})


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


class ToolCall(NamedTuple):
    """What a result is read by."""

    name: str
    tool: ComponentInfo | None
    """None: the server does not list it."""
    arguments: Any
    checks: ResultChecks
    result_schema: Any = None


class ResultChecks:
    """Checks structured content against output schemas, which are compiled once.

    By our validator, whose work is bounded. The SDK's own runs on the event loop in pure Python: one schema can keep it
    busy for hours.
    """

    def __init__(self) -> None:
        self._validators: dict[str, tuple[Any, InputValidator]] = {}

    def check(self, name: str, schema: Any, value: Any) -> None:
        """Raises: BadAnswerError, the value breaks the schema of tool `name`, or cannot be checked."""
        # 1. Compile the schema, unless it is the one of the last result.
        known = self._validators.get(name)
        if known is None or known[0] is not schema:
            try:
                known = self._validators[name] = (schema, InputValidator(schema, check_formats=False))
            except Invalid as error:
                raise BadAnswerError(
                    f"the output schema of tool {name!r} cannot be used ({error.reason}): {error.message}",
                ) from None

        # 2. Check.
        try:
            problem = known[1].misfit(value)
        except Invalid as error:
            raise BadAnswerError(
                f"the result of tool {name!r} cannot be checked ({error.reason}): {error.message}"
            ) from None
        if problem is not None:
            pointer, _, rule = problem  # the message quotes the value
            raise BadAnswerError(
                f"the result of tool {name!r} breaks the tool's output schema: {rule or 'schema'!r} does not hold at "
                f"{pointer or 'its root'}",
            )


def _check_structure(call: ToolCall, answer: dict[str, Any]) -> None:
    """Raises: BadAnswerError, the structured content breaks the tool's output schema."""
    if call.result_schema is None:
        return
    if "structuredContent" not in answer:
        raise BadAnswerError(f"tool {call.name!r} has an output schema, and its result no structured content")
    call.checks.check(call.name, call.result_schema, answer["structuredContent"])


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


def _failure(code: Code, message: str, details: dict[str, Any]) -> Failure:
    if len(message) > MESSAGE_CHARS_MAX:
        message = message[:MESSAGE_CHARS_MAX] + " …"
    return Failure(code, message, codec.encode(details) if details else b"")
