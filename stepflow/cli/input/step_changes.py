"""`--set STEP.PATH=VALUE` as overrides: a merge patch for each step that is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.cli.console import Usage
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping


def with_changes(overrides: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides with changes by path; the changes count. Raises: Usage (a path), Invalid (the overrides)."""
    tree: dict[str, Any] = dict(overrides) if isinstance(overrides, dict) else {}
    steps = tree.get("steps", {})
    if not isinstance(overrides, dict) or not isinstance(steps, dict):
        raise _invalid("must be a mapping with `steps`: {steps: {<step id>: {value: {…}}}}")

    steps = tree["steps"] = dict(steps)
    for text, value in changes.items():
        step_id, *names = _names(text)
        override = steps.get(step_id, {})
        if not isinstance(override, dict):
            raise _invalid(f"step `{step_id}`: must be a mapping with `value`, the patch")
        steps[step_id] = {**override, "value": _with_member(override.get("value"), names, value)}
    return tree


def _names(text: str) -> list[str]:
    """Return the step id and the members of STEP.PATH. Raises: Usage."""
    from stepflow.codec import JSON_DEPTH_MAX
    from stepflow.flow.format import STEP
    from stepflow.flow.format import names as members_of
    from stepflow.flow.paths import parse_path
    from stepflow.flow.syntax import suggestion

    try:
        parts = parse_path(text).parts
    except Invalid as error:
        raise Usage("OPTION_INVALID", f"--set {text[:80]}: {error.message}") from None

    if len(parts) > JSON_DEPTH_MAX:
        raise Usage("OPTION_INVALID", f"--set {text[:80]}: a path has at most {JSON_DEPTH_MAX} parts")
    names = [part for part in parts if isinstance(part, str)]
    if len(names) < len(parts):
        hint = "a change cannot reach into a list: give the whole list, as JSON"
        raise Usage("OPTION_INVALID", f"--set {text[:80]}: {hint}")
    if len(names) < 2:
        hint = "name a step and a member of it, as in --set ask.input.model=small"
        raise Usage("OPTION_INVALID", f"--set {text[:80]}: {hint}")

    members = members_of(STEP)
    if names[1] not in members:
        hint = suggestion(names[1], members) or "; write STEP.input.NAME for a member of its input"
        raise Usage("OPTION_INVALID", f"--set {text[:80]}: a step has no member `{names[1][:80]}`{hint}")
    return names


def _with_member(tree: Any, names: list[str], value: Any) -> Any:
    """Return a merge patch with one member more, at a path."""
    if not names:
        return value
    members = dict(tree) if isinstance(tree, dict) else {}
    name, *below = names
    return {**members, name: _with_member(members.get(name), below, value)}


def _invalid(problem: str) -> Invalid:
    return Invalid("OVERRIDES_INVALID", f"overrides: {problem}")
