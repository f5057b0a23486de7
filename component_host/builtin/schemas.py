"""Descriptions and schemas of the builtin components, as listings show them.

Components of the run engine (`eval`, `map`, `iterate`, `sleep`, `wait_for_signal`) are included, for listings.
"""

from __future__ import annotations

from typing import Any

from component_host.backend import ComponentInfo


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _output(required: list[str], **properties: Any) -> dict[str, Any]:
    """Return the schema of an output with these members and no others: a path to another one is an error of a flow."""
    return {**_object(required, **properties), "additionalProperties": False}


def _one_of_type(*types: str, description: str) -> dict[str, Any]:
    return {"type": list(types), "description": description}


_ANY: dict[str, Any] = {}
_COUNT = {"type": "integer", "minimum": 0}
_BLOB_ID = {"type": "string", "pattern": "^[0-9a-fA-F]{64}$", "description": "SHA-256 of the content, in hexadecimal"}
_FLOW = {"type": "object", "description": "A flow; wrap it in `$literal`, or the outer flow evaluates its expressions"}
_MESSAGE = _output(
    ["role", "content"],
    role={"type": "string", "enum": ["system", "user", "assistant"]},
    content={"type": "string"},
)
_FLOW_RESULT = {
    "type": "object",
    "properties": {
        "outcome": {"type": "string", "enum": ["success", "failed"]},
        "result": {"description": "Output of the flow, if successful"},
        "error": _object(["code", "message"], code={"type": "string"}, message={"type": "string"}, data=_ANY),
    },
    "required": ["outcome"],
    "additionalProperties": False,
}

BUILTINS = (
    ComponentInfo("/noop", "/noop", "Returns its input unchanged.", _ANY, _ANY),
    ComponentInfo(
        "/sleep",
        "/sleep",
        "Waits; holds no slot meanwhile and survives a restart.",
        _object(["duration_ms"], duration_ms=_COUNT, passthrough={"description": "Returned with the duration"}),
        _output(["duration_ms"], duration_ms=_COUNT, passthrough=_ANY),
    ),
    ComponentInfo(
        "/wait_for_signal",
        "/wait_for_signal",
        "Waits for a signal of this name to the run; holds no slot meanwhile and survives a restart.",
        _object(
            ["name"],
            name={"type": "string", "minLength": 1, "maxLength": 128},
            timeout_ms={**_COUNT, "description": "Default: no timeout"},
        ),
        _output(
            ["payload", "timed_out"],
            payload={"description": "Payload of the signal; null after the timeout"},
            timed_out={"type": "boolean"},
        ),
    ),
    ComponentInfo(
        "/create_messages",
        "/create_messages",
        "Makes a list of chat messages from a prompt and optional system instructions.",
        _object(
            ["user_prompt"],
            user_prompt={"type": "string"},
            system_instructions=_one_of_type("string", "null", description="Becomes the first message"),
        ),
        _output(["messages"], messages={"type": "array", "items": _MESSAGE}),
    ),
    ComponentInfo(
        "/openai",
        "/openai",
        "Asks an OpenAI-compatible service for a chat completion. Other members of the input are passed on.",
        _object(
            ["messages"],
            messages={"type": "array", "items": {"type": "object"}},
            model=_one_of_type("string", "null", description="Default: the configuration's model"),
            temperature=_one_of_type("number", "null", description="Default: the service's"),
            max_tokens={"type": ["integer", "null"], "minimum": 1},
            api_key={"type": ["string", "null"], "description": "Default: the operator's key", "is_secret": True},
        ),
        _output(
            ["response", "message", "finish_reason", "usage", "model", "id"],
            response={"type": "string", "description": "Text of the first choice; empty if it only calls tools"},
            message={"type": "object", "description": "The first choice's message, with `tool_calls`"},
            finish_reason=_one_of_type("string", "null", description="Why the model stopped"),
            usage=_one_of_type("object", "null", description="Tokens"),
            model=_one_of_type("string", "null", description="The model that answered"),
            id=_one_of_type("string", "null", description="The service's id of the completion"),
            choices={"type": "array", "description": "All choices, if there are several (`n`)"},
        ),
    ),
    ComponentInfo(
        "/put_blob",
        "/put_blob",
        "Stores a JSON value and returns its id.",
        _object(["data", "blob_type"], data=_ANY, blob_type={"type": "string", "enum": ["data", "flow", "binary"]}),
        _output(["blob_id"], blob_id=_BLOB_ID),
    ),
    ComponentInfo(
        "/get_blob",
        "/get_blob",
        "Returns a stored JSON value.",
        _object(["blob_id"], blob_id=_BLOB_ID),
        _output(["data"], data=_ANY),
    ),
    ComponentInfo(
        "/load_file",
        "/load_file",
        "Reads a JSON, YAML or text file below the working directory or one of `allowedPaths`.",
        _object(
            ["path"],
            path={"type": "string", "description": "Relative to the working directory"},
            format={"type": ["string", "null"], "enum": ["json", "yaml", "text", None]},
        ),
        _output(
            ["data", "metadata"],
            data=_ANY,
            metadata=_output(
                ["resolved_path", "size_bytes", "format"],
                resolved_path={"type": "string"},
                size_bytes=_COUNT,
                format={"type": "string", "enum": ["json", "yaml", "text"]},
            ),
        ),
    ),
    ComponentInfo(
        "/eval",
        "/eval",
        "Runs a stored flow on one input.",
        _object(["flow_id", "input"], flow_id=_BLOB_ID, input=_ANY),
        _output(["result", "run_id"], result=_FLOW_RESULT, run_id={"type": "string"}),
    ),
    ComponentInfo(
        "/map",
        "/map",
        "Runs a flow on each item of a list.",
        _object(
            ["workflow", "items"],
            workflow=_FLOW,
            items={"type": "array"},
            max_concurrency={"type": ["integer", "null"], "minimum": 1, "description": "Items in flight at once"},
        ),
        _output(
            ["results", "successful", "failed"],
            results={"type": "array", "items": _FLOW_RESULT},
            successful=_COUNT,
            failed=_COUNT,
        ),
    ),
    ComponentInfo(
        "/iterate",
        "/iterate",
        "Runs a flow repeatedly, each time on the `next` of the former output, until the output has `result`.",
        _object(
            ["flow", "initial_input"],
            flow=_FLOW,
            initial_input=_ANY,
            max_iterations={"type": "integer", "minimum": 0, "default": 1000},
        ),
        _output(
            ["result", "iterations", "terminated"],
            result=_ANY,
            iterations=_COUNT,
            terminated={"type": "boolean", "description": "True if `max_iterations` was reached"},
        ),
    ),
)
