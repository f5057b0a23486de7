"""A flow as data: what `parse_flow` makes of a document, and what everything else works on.

Invariants of a `Flow` that parsing made:
- every expression (`Step.input`, `Flow.output`) is well-formed and in its normalised spelling (`syntax.py`);
- `schemas`, `test` and `examples` have the shape of the public format; what was not read is not there;
- trees are shared between flows (overrides, aliases): nobody changes them.

Nothing here says that a flow is *valid* (references resolve, ids are unique): see `validate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stepflow.flow.document import DocumentInvalid

if TYPE_CHECKING:
    from stepflow.flow.diagnostics import Diagnostic
    from stepflow.retry import Backoff

Action = Literal["fail", "useDefault", "retry"]


class FlowInvalid(DocumentInvalid):
    """A document that cannot be read as a flow. `field` is the place at fault, like `$.steps[0].input`."""


@dataclass(frozen=True, slots=True)
class OnError:
    """What a failure of the component turns into.

    `default` is plain JSON (never an expression), used by `useDefault`, and by `retry` after its last attempt when
    `has_default`. `max_retries` None: the engine's default; `backoff` None: that of the configuration.
    """

    action: Action = "fail"
    default: Any = None
    has_default: bool = False
    max_retries: int | None = None
    backoff: Backoff | None = None


FAIL = OnError()


@dataclass(frozen=True, slots=True)
class Step:
    """`input` is an expression; `timeout_ms` caps one attempt, `idle_timeout_ms` the silence within it."""

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
        """Return the examples, and every test case whose name is not taken, as `{name, description?, input}`."""
        found = list(self.examples)
        taken = {example["name"] for example in found}
        for case in (self.test or {}).get("cases", ()):
            if case["name"] not in taken:
                taken.add(case["name"])
                found.append({key: case[key] for key in ("name", "description", "input") if key in case})
        return found
