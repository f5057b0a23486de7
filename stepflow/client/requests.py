"""Encoding: Python values and flow files to messages of the API."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stepflow.codec import Json
from stepflow.errors import Invalid, NotFound
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import flows_pb2, retry_pb2, runs_pb2, values_pb2
from stepflow.retry import backoff_from_tree, backoff_to_proto

if TYPE_CHECKING:
    from collections.abc import Sequence


class _NotGiven(str):
    """An empty text that can be told from one that a caller passes."""

    __slots__ = ()


NOT_GIVEN = _NotGiven()
"""Default of an optional text."""

_FLOW_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Named:
    """A stored flow by name, with a label or a version number; the newest version without one."""

    name: str
    label: str = NOT_GIVEN


Document: TypeAlias = Mapping[str, Any] | Path | bytes
"""A flow itself: the tree, a file (YAML or JSON), or JSON text."""

FlowLike: TypeAlias = Document | Named | str
"""A flow, or a reference to a stored flow: an id, a name, or `name@label`."""


def value_message(value: Any, name: str) -> values_pb2.Value:
    """Encode a value; errors call it `name`. Raises: Invalid `VALUE_INVALID`."""
    return values_pb2.Value(json=value_text(value, name))


def value_text(value: Any, name: str) -> bytes:
    """Encode a value as one line of JSON, a `Json` as it is. Raises: Invalid `VALUE_INVALID`, which names `name`."""
    if isinstance(value, Json):
        return value.raw
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid("VALUE_INVALID", f"{name} is not JSON: {error}") from None


def document_message(flow: Document) -> values_pb2.Value:
    """Encode a flow. Raises: Invalid; NotFound (no such file)."""
    if isinstance(flow, bytes):
        return values_pb2.Value(json=flow)
    if isinstance(flow, Path):
        return _file_message(flow)
    return value_message(flow, "the flow")


def _file_message(path: Path) -> values_pb2.Value:
    """Read and check a flow file, so that errors have line and column."""
    from stepflow.flow import flow_bytes, parse_flow

    try:
        text = path.read_bytes()
    except OSError as error:
        raise NotFound("FILE_NOT_FOUND", f"cannot read {path}: {error.strerror}", path=str(path)) from None

    flow = parse_flow(text, source=str(path), format="json" if path.suffix == ".json" else "yaml")
    return values_pb2.Value(json=flow_bytes(flow))


def flow_reference(flow: FlowLike) -> flows_pb2.FlowReference:
    if isinstance(flow, Named):
        label = given(flow.label, "LABEL_INVALID", "the label")
        return flows_pb2.FlowReference(named=flows_pb2.NamedFlow(name=flow.name, label=label))
    if not isinstance(flow, str):
        return flows_pb2.FlowReference(document=document_message(flow))
    if _FLOW_ID.fullmatch(flow):
        return flows_pb2.FlowReference(flow_id=flow)

    name, label = split_name(flow)
    return flows_pb2.FlowReference(named=flows_pb2.NamedFlow(name=name, label=label))


def split_name(text: str) -> tuple[str, str]:
    """Return name and label of `name` or `name@label`. Raises: Invalid LABEL_INVALID, an empty label."""
    name, separator, label = text.rpartition("@")
    return (name, given(label, "LABEL_INVALID", f"the label in {text!r}")) if separator else (text, NOT_GIVEN)


def given(text: str | None, reason: str, what: str) -> str:
    """Return an optional text of a caller, empty if it was not given.

    Raises: Invalid with `reason`, given but empty: mostly from a variable that is not set.
    """
    if text is None or text is NOT_GIVEN:
        return ""
    if not text.strip():
        raise Invalid(reason, f"{what} is given but empty; leave it out, or set the variable that it comes from")
    return text


def submission(
    flow: FlowLike,
    inputs: Sequence[Any],
    run_id: str | None,
    variables: Mapping[str, Any] | None = None,
    overrides: Any = None,
    concurrency_max: int | None = None,
    *,
    check_input: bool = True,
    labels: Mapping[str, Any] | None = None,
    retry: Mapping[str, Any] | None = None,
    check: bool = True,
) -> runs_pb2.SubmitRunRequest:
    """Build the request for a run; a missing `run_id` is generated. Raises: Invalid; NotFound (no such file)."""
    request = runs_pb2.SubmitRunRequest(
        run_id=given(run_id, "RUN_ID_INVALID", "the run id") or new_run_id(),
        flow=flow_reference(flow),
        inputs=[value_message(value, f"input {index}") for index, value in enumerate(inputs)],
        concurrency_max=concurrency_max or 0,
        input_unchecked=not check_input,
        no_check=not check,
    )

    for name, value in (variables or {}).items():
        request.variables[name].CopyFrom(value_message(value, f"variable {name}"))
    if overrides is not None:
        request.overrides.CopyFrom(value_message(overrides, "overrides"))
    try:
        request.labels.update(dict(labels or {}))
    except ValueError as error:
        raise Invalid("LABELS_INVALID", f"labels are not JSON: {error}") from None
    if retry is not None:
        request.retry.CopyFrom(_retry_policy(retry))

    return request


def validation(
    flow: FlowLike, variables: Mapping[str, Any] | None, overrides: Any, *, type_check: bool, strict: bool
) -> flows_pb2.ValidateFlowRequest:
    """Build the request for a check. Raises: Invalid; NotFound (no such file)."""
    request = flows_pb2.ValidateFlowRequest(
        flow=flow_reference(flow), all_variables=variables is not None, type_check=type_check, strict=strict
    )
    for name in variables or ():  # only the names count, and values may be secrets
        request.variables[name].json = b"null"
    if overrides is not None:
        request.overrides.CopyFrom(value_message(overrides, "overrides"))
    return request


def _retry_policy(tree: Mapping[str, Any]) -> retry_pb2.RetryPolicy:
    policy = retry_pb2.RetryPolicy()
    for name, value in tree.items():
        if name == "backoff":
            policy.backoff.CopyFrom(backoff_to_proto(backoff_from_tree(value)))
        elif name == "transportMaxRetries" and type(value) is int and 0 <= value < 2**32:
            policy.transport_retries_max = value
        else:
            raise Invalid(
                "RETRY_INVALID", f"retry accepts `transportMaxRetries` (a count) and `backoff`, not {name!r}: {value!r}"
            )

    return policy
