"""A flow as data: the result of `parse_flow`, and the working form of all other modules.

Invariants of a parsed `Flow`:
- every expression (`Step.input`, `Flow.output`) is well-formed and in its normalised spelling (`syntax.py`);
- `schemas`, `test` and `examples` have the shape of the public format, without unread members;
- trees are immutable by convention, since flows share trees (overrides, aliases).

A parsed flow need not be *valid* (references resolve, ids are unique): see `validate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stepflow.flow.source import DocumentInvalid

if TYPE_CHECKING:
    from stepflow.flow.diagnostics import Diagnostic
    from stepflow.retry import Backoff

Action = Literal["fail", "useDefault", "retry"]


class FlowInvalid(DocumentInvalid):
    """A document that cannot be read as a flow. `field` is the path of the fault, such as `$.steps[0].input`."""


@dataclass(frozen=True, slots=True)
class OnError:
    """Handling of a failed component.

    `default` is plain JSON (never an expression), used by `useDefault`, and by `retry` after its last attempt if
    `has_default`. None means the engine's default for `max_retries`, and the configuration's for `backoff`.
    """

    action: Action = "fail"
    default: Any = None
    has_default: bool = False
    max_retries: int | None = None
    backoff: Backoff | None = None


FAIL = OnError()


@dataclass(frozen=True, slots=True)
class Step:
    """`input` is an expression; `timeout_ms` limits an attempt, `idle_timeout_ms` the time without progress in it."""

    id: str
    component: str
    input: Any = None
    on_error: OnError = FAIL
    must_execute: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    timeout_ms: int | None = None
    idle_timeout_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """`schemas` is empty or `{type: object, $defs?, properties?}`; `test` and `examples` are trees of the format."""

    name: str | None = None
    description: str | None = None
    version: str | None = None
    schemas: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    output: Any = None
    test: dict[str, Any] | None = None
    examples: tuple[dict[str, Any], ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = field(default=(), compare=False)

    def schema(self, part: Literal["input", "output", "variables", "steps"]) -> Any:
        """Return the schema of a part of the flow (an object or a boolean), or None."""
        return self.schemas.get("properties", {}).get(part)

    @property
    def schema_definitions(self) -> dict[str, Any]:
        """The shared `$defs` that schemas of this flow may refer to."""
        definitions: dict[str, Any] = self.schemas.get("$defs", {})
        return definitions

    def all_examples(self) -> list[dict[str, Any]]:
        """Return the examples, and the test cases under other names, as `{name, description?, input}`."""
        found = list(self.examples)
        taken = {example["name"] for example in found}
        for case in (self.test or {}).get("cases", ()):
            if case["name"] not in taken:
                taken.add(case["name"])
                found.append({key: case[key] for key in ("name", "description", "input") if key in case})
        return found
