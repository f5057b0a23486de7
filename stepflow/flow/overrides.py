"""Changes to a flow for a single run: `{steps: {<step id>: {$type: merge_patch, value: …}}}`.

A patch is a JSON merge patch (RFC 7396) on the normalised document of the step; the result is parsed again.
Expressions are objects and merge member by member, so a patch that replaces a reference sets its old key to null.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stepflow import codec
from stepflow.errors import Invalid
from stepflow.flow.canonical import step_document
from stepflow.flow.model import Flow, FlowInvalid, Step
from stepflow.flow.parse import parse_step
from stepflow.flow.source import describe
from stepflow.flow.syntax import suggestion
from stepflow.flow.validate import validate_flow


def apply_overrides(flow: Flow, overrides: object) -> Flow:
    """Return a copy of the flow with its steps patched.

    Raises:
        Invalid: OVERRIDES_INVALID (not of the shape above), OVERRIDES_STEP_UNKNOWN, OVERRIDES_UNSUPPORTED
            (`json_patch`), OVERRIDES_STEP_INVALID (a patched step cannot be read) or OVERRIDES_FLOW_INVALID (the
            patched flow has fatal diagnostics).
    """
    codec.check_depth(overrides, "overrides")
    patches = _patches(overrides)
    if not patches:
        return flow

    known = {step.id for step in flow.steps}
    for step_id in patches:
        if step_id not in known:
            hint = suggestion(step_id, tuple(known))
            raise Invalid("OVERRIDES_STEP_UNKNOWN", f"overrides: there is no step `{step_id}` in the flow{hint}")

    steps = tuple(_patched(step, patches[step.id]) if step.id in patches else step for step in flow.steps)
    patched = replace(flow, steps=steps)
    fatal = [item for item in validate_flow(patched) if item.level == "fatal"]
    if fatal:
        raise Invalid("OVERRIDES_FLOW_INVALID", f"overrides make the flow invalid: {fatal[0].formatted}")
    return patched


def merge_patch(target: Any, patch: Any) -> Any:
    """Return `target` with an RFC 7396 patch applied."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def _patches(overrides: object) -> dict[str, Any]:
    """Return the patch of each step. Raises: Invalid (the shape)."""
    if not isinstance(overrides, dict) or "steps" not in overrides:
        raise _invalid("must be a mapping with `steps`: {steps: {<step id>: {value: {…}}}}")
    steps = overrides["steps"]
    if not isinstance(steps, dict):
        raise _invalid(f"`steps` must be a mapping of step ids, not {describe(steps)}")
    return {step_id: _patch(step_id, override) for step_id, override in steps.items()}


def _patch(step_id: str, override: object) -> Any:
    if not isinstance(override, dict) or "value" not in override:
        raise _invalid(f"step `{step_id}`: must be a mapping with `value`, the patch")
    kind = override.get("$type", "merge_patch")
    if kind == "json_patch":
        raise Invalid("OVERRIDES_UNSUPPORTED", f"overrides: step `{step_id}`: only `merge_patch` can be applied")
    if kind != "merge_patch":
        raise _invalid(f"step `{step_id}`: `$type` must be `merge_patch`")
    return override["value"]


def _patched(step: Step, patch: Any) -> Step:
    document = merge_patch(step_document(step), patch)
    try:
        codec.check_depth(document, "the patched step")
        return parse_step(document, source=f"overrides: step `{step.id}`")
    except FlowInvalid as error:
        raise Invalid("OVERRIDES_STEP_INVALID", error.message, step=step.id, field=error.field) from None


def _invalid(problem: str) -> Invalid:
    return Invalid("OVERRIDES_INVALID", f"overrides: {problem}")
