"""Checks of values against the JSON Schemas of flows and of the tools of MCP servers.

Promises:
- a message names the violated rule and the member, but never quotes a value, which may be secret;
- references outside the schema are never fetched;
- a schema is measured before being compiled (`schema_cost`), and a value is checked only if the work is in proportion
  to the size of the value.

A check is native code and holds the interpreter's lock, so neither a thread nor a signal can interrupt a check. A
helper process with a time limit could, but the engine decides without waiting, and with a time limit a replay might
decide differently from the first run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from stepflow import codec
from stepflow.errors import Invalid
from stepflow.flow.schema_cost import SQUARE_CAP, SchemaCost, ValueSize, measure_schema, measure_value, size_of_text
from stepflow.flow.schema_graph import SCHEMA_TOO_LARGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stepflow.flow.model import Flow

_VALUE = "the value"

MESSAGE_CHARS_MAX = 500
"""Messages quote schemas and names of members, which can be long."""

CHECK_UNITS_MIN = 5_000_000
CHECK_UNITS_PER_BYTE = 20
"""Limit on the work for all values together, a constant plus a share per byte. A unit takes 4 ns, at worst 20 ns."""

ERROR_UNITS_MAX = 5_000
"""Above this bound an error is reported without a pointer: it may have a part for each unit, of 0.1 ms each."""

PATTERN_BYTES_MAX = 1024 * 1024
PATTERN_BYTES_LIGHT = 64 * 1024
"""Size of a compiled regular expression."""

HEAVY_PATTERNS_MAX = 10
"""Patterns over `PATTERN_BYTES_LIGHT`, which take up to 20 ms each to compile."""

_PATTERN_UNITS_LIGHT = 4
_PATTERN_UNITS_HEAVY = 160


class InputValidator:
    """Checks values against one schema. Compiling takes a millisecond, so keep it for all items of a run."""

    __slots__ = ("_backtracks", "_cost", "_is_cheap", "_validator")

    def __init__(
        self, schema: Any, definitions: Mapping[str, Any] | None = None, *, check_formats: bool | None = None
    ) -> None:
        """Measure and compile `schema`; its `#/$defs/…` may refer to `definitions`.

        `check_formats`: True if `format` is a rule; None follows the schema's draft.

        Raises:
            Invalid: SCHEMA_INVALID, SCHEMA_TOO_LARGE.
        """
        import jsonschema_rs

        own = schema.get("$defs", {}) if isinstance(schema, dict) else None
        if definitions and isinstance(own, dict):
            schema = {**schema, "$defs": {**definitions, **own}}

        patterns = _Patterns()
        self._cost: SchemaCost = measure_schema(schema, patterns.units)
        self._backtracks = patterns.backtracks
        per_byte = self._cost.units_per_byte(backtracks=self._backtracks)
        self._is_cheap = (
            per_byte is not None and per_byte <= CHECK_UNITS_PER_BYTE
        )  # the common case: values need no measurement

        try:
            self._validator = jsonschema_rs.validator_for(
                schema,
                mask=_VALUE,
                retriever=_fetch_nothing,
                formats={"regex": _accept},  # to compile a user's pattern may take any time
                validate_formats=check_formats,
                pattern_options=_pattern_options(PATTERN_BYTES_MAX),
            )
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            problem = getattr(error, "message", None) or str(error)
            raise Invalid("SCHEMA_INVALID", f"the schema is not a valid JSON Schema: {_shortened(problem)}") from None

    @classmethod
    def for_input(cls, flow: Flow) -> InputValidator | None:
        """Return the validator of a flow's declared input, or None without a declaration. Raises: Invalid."""
        schema = flow.schema("input")
        return None if schema is None else cls(schema, flow.schema_definitions)

    def check(self, tree: Any) -> tuple[str, str] | None:
        """Return JSON pointer (empty: the root) and description of the first violation, or None if `tree` is valid.

        Raises:
            Invalid: SCHEMA_TOO_LARGE, the check would take too long.
        """
        problem = self.misfit(tree)
        return None if problem is None else problem[:2]

    def misfit(self, tree: Any) -> tuple[str, str, str] | None:
        """Like `check`, with the violated keyword as a third part, empty if unknown."""
        if not self._is_cheap:
            size = measure_value(tree)
            units = self._cost.units(size, backtracks=self._backtracks)
            allowed = CHECK_UNITS_MIN + CHECK_UNITS_PER_BYTE * (size.nodes + size.chars)
            if units > allowed:
                raise _too_long(units, allowed)
        return self._misfit(tree)

    def first_misfit(self, texts: Iterable[bytes], budget: CheckBudget | None = None) -> tuple[int, str, str] | None:
        """Check JSON texts under a common limit. Return index, pointer and description of the first violation, or None.

        `budget`: shared with other calls, for texts that arrive in parts.

        Raises:
            Invalid: SCHEMA_TOO_LARGE, the checks would take too long.
        """
        budget = budget or CheckBudget()
        for index, text in enumerate(texts):
            tree = codec.decode(text)
            if not self._is_cheap:
                budget.allowed += CHECK_UNITS_PER_BYTE * len(text)
                units = self._cost.units(size_of_text(len(text)), backtracks=self._backtracks)
                if budget.spent + units > budget.allowed:
                    units = self._cost.units(measure_value(tree), backtracks=self._backtracks)
                budget.spent += units
                if budget.spent > budget.allowed:
                    raise _too_long(budget.spent, budget.allowed)

            problem = self._misfit(tree)
            if problem is not None:
                return index, problem[0], problem[1]
        return None

    def _misfit(self, tree: Any) -> tuple[str, str, str] | None:
        if self._validator.is_valid(tree):
            return None
        if not self._can_explain(measure_value(tree)):
            return "", f"{_VALUE} does not fit the schema, which has too many alternatives to say where", ""

        import jsonschema_rs

        try:
            self._validator.validate(tree)
        except jsonschema_rs.ValidationError as error:
            pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in error.instance_path)
            return _shortened(pointer), _shortened(error.message), error.kind.name
        return None

    def _can_explain(self, size: ValueSize) -> bool:
        """Return True if an error of alternatives, which contains the errors of every alternative, stays small."""
        overlap = self._cost.overlaps.at(size.depth)
        errors = overlap * size.nodes if self._cost.has_alternatives_with_children else overlap
        return errors <= ERROR_UNITS_MAX


class CheckBudget:
    """The work allowed and spent for values that are checked together."""

    __slots__ = ("allowed", "spent")

    def __init__(self) -> None:
        self.allowed, self.spent = CHECK_UNITS_MIN, 0


class _Patterns:
    """Costs of the patterns of a schema. Time is linear, except for patterns with look-around or back-references."""

    def __init__(self) -> None:
        self.backtracks = False
        self._units: dict[str, int] = {}
        self._heavy = 0

    def units(self, pattern: str) -> int:
        """Return the units per character. Raises: Invalid (too many large patterns)."""
        units = self._units.get(pattern)
        if units is None:
            units = self._units[pattern] = self._measured(pattern)
        if units == _PATTERN_UNITS_HEAVY:
            self._heavy += 1
            if self._heavy > HEAVY_PATTERNS_MAX:
                raise Invalid(
                    SCHEMA_TOO_LARGE,
                    f"more than {HEAVY_PATTERNS_MAX} patterns of the schema repeat large classes of characters; "
                    "shorten the repetitions",
                )
        return units

    def _measured(self, pattern: str) -> int:
        import jsonschema_rs

        if _compiles(pattern, jsonschema_rs.RegexOptions(size_limit=PATTERN_BYTES_LIGHT)):
            return _PATTERN_UNITS_LIGHT
        if _compiles(pattern, jsonschema_rs.RegexOptions(size_limit=PATTERN_BYTES_MAX)):
            return _PATTERN_UNITS_HEAVY
        self.backtracks = True
        light = _compiles(pattern, _pattern_options(PATTERN_BYTES_LIGHT))
        return _PATTERN_UNITS_LIGHT if light else _PATTERN_UNITS_HEAVY


def _compiles(pattern: str, options: Any) -> bool:
    import jsonschema_rs

    try:
        jsonschema_rs.validator_for({"pattern": pattern}, retriever=_fetch_nothing, pattern_options=options)
    except ValueError:
        return False
    return True


def _pattern_options(size_limit: int) -> Any:
    import jsonschema_rs

    return jsonschema_rs.FancyRegexOptions(backtrack_limit=SQUARE_CAP, size_limit=size_limit)


def _accept(_text: str) -> bool:
    return True


def _too_long(units: int, allowed: int) -> Invalid:
    return Invalid(
        SCHEMA_TOO_LARGE,
        f"checking a value of this size against the schema may take {min(units, 10**12):,} steps; the limit is "
        f"{allowed:,}. Use fewer nested `$ref`s, alternatives, large patterns or `unevaluated…`, or turn the check off",
    )


def _shortened(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 1] + "…"


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError(f"`{uri}` lies outside the flow; copy it under `schemas.$defs`")
