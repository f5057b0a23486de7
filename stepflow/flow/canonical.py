"""The normalised document of a flow, and its hash, the flow id.

Promises:
- equal flows have equal bytes: fields in a fixed order, empty and default fields left out, durations in the largest
  whole unit, back-offs complete;
- within expressions, literals, schemas and metadata, members keep the author's order;
- parsing the bytes gives an equal flow, except for warnings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow import codec
from stepflow.retry import backoff_to_tree

if TYPE_CHECKING:
    from stepflow.flow.model import Flow, OnError, Step


def flow_document(flow: Flow) -> dict[str, Any]:
    """Return the normalised document. Inner trees are shared with the flow and must not be changed."""
    return _present(
        name=flow.name,
        description=flow.description,
        version=flow.version,
        schemas=flow.schemas or None,
        steps=[step_document(step) for step in flow.steps] or None,
        output=flow.output,
        test=_plain_keys(flow.test) or None,
        examples=list(flow.examples) or None,
        metadata=flow.metadata or None,
    )


def step_document(step: Step) -> dict[str, Any]:
    """Return the normalised document of a step."""
    return _present(
        id=step.id,
        component=step.component,
        input=step.input,
        onError=_on_error_document(step.on_error),
        mustExecute=step.must_execute or None,
        metadata=step.metadata or None,
        timeout=_duration(step.timeout_ms),
        idleTimeout=_duration(step.idle_timeout_ms),
    )


def flow_bytes(flow: Flow) -> bytes:
    """Return the normalised document as compact JSON, the stored form of a flow."""
    return codec.encode(flow_document(flow))


def flow_id(flow: Flow) -> str:
    """Return the id of a flow: the blob id of the stored bytes."""
    return codec.blob_id(flow_bytes(flow))


def _plain_keys(tree: Any) -> Any:
    """Return the tree with complex keys (of mock behaviours in `test.config`) as their JSON texts."""
    if isinstance(tree, dict):
        return {str(key): _plain_keys(value) for key, value in tree.items()}
    return [_plain_keys(value) for value in tree] if isinstance(tree, list) else tree


def _present(**members: Any) -> dict[str, Any]:
    return {key: value for key, value in members.items() if value is not None}


def _on_error_document(on_error: OnError) -> dict[str, Any] | None:
    if on_error.action == "fail":
        return None
    default = _present(action="useDefault", defaultValue=on_error.default)
    if on_error.action == "useDefault":
        return default
    return _present(
        action="retry",
        maxRetries=on_error.max_retries,
        backoff=on_error.backoff and backoff_to_tree(on_error.backoff),
        then=default if on_error.has_default else None,
    )


def _duration(duration_ms: int | None) -> str | None:
    if duration_ms is None:
        return None
    for unit, unit_ms in (("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if duration_ms % unit_ms == 0:
            return f"{duration_ms // unit_ms}{unit}"
    return f"{duration_ms}ms"
