"""Compares two types: does a value of one fit where the other is wanted?

Four answers. `YES`: each value fits. `MAYBE`: some known values do not fit (one alternative of a union, an optional
member). `NO`: no value fits. `UNKNOWN`: a type is *any* at the deciding place, or says what is not interpreted here.

- An integer fits a number. A list is compared by its items, an object by its members.
- A wanted `anyOf` or `oneOf` is satisfied by any option, an `allOf` by all parts.
- `enum` and `const` are compared if both types have them. Other rules about values count only for constants.

Limits: `not`, `if`, `patternProperties` and `dependentSchemas` of the wanted type are unknown. The work is bounded by
that of the scope.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from stepflow.flow.types.make import NEVER, is_any
from stepflow.flow.types.notation import type_text
from stepflow.flow.types.scope import is_plain
from stepflow.json_problems import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepflow.flow.types.scope import TypeScope
    from stepflow.json_problems import Part

PROBLEMS_MAX = 20
"""Problems of one comparison."""

_DEPTH_MAX = 60


class Verdict(IntEnum):
    """An answer. Of the parts of a value, the greatest one counts."""

    YES = 0
    UNKNOWN = 1
    MAYBE = 2
    NO = 3


@dataclass(frozen=True, slots=True)
class TypeProblem:
    """What does not fit: a path into the value, a sentence without it, and `MAYBE` or `NO`.

    `is_open`: a value of the offered type may have more members than its schema names. `missing` is the required
    member that is missing, "" for another problem.
    """

    path: tuple[Part, ...]
    text: str
    verdict: Verdict
    is_open: bool = False
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """An answer with its reasons; `problems` is empty for `YES` and `UNKNOWN`."""

    verdict: Verdict
    problems: tuple[TypeProblem, ...] = ()


def fits(scope: TypeScope, offered: Any, wanted: Any) -> Fit:
    """Compare the type of a value with the type that is wanted for it."""
    return _Comparison(scope).compare(offered, wanted, ())


YES, UNKNOWN = Fit(Verdict.YES), Fit(Verdict.UNKNOWN)

_UNREAD = ("not", "if", "patternProperties", "dependentSchemas", "dependencies", "unevaluatedProperties", "contains")


@dataclass(slots=True)
class _Comparison:
    scope: TypeScope
    depth: int = 0
    open: set[tuple[str | None, str | None]] = field(default_factory=set)
    """Pairs of references that are being compared: a recursive type fits itself."""

    def compare(self, offered: Any, wanted: Any, path: tuple[Part, ...]) -> Fit:
        if is_any(wanted) or offered is NEVER or offered is wanted:
            return YES
        if self.depth > _DEPTH_MAX or not self.scope.spend():
            return UNKNOWN
        if wanted is NEVER:
            return _no(path, "no value is accepted here")

        pair = (_reference(offered), _reference(wanted))
        if all(pair) and (pair[0] == pair[1] or pair in self.open):
            return YES

        self.depth += 1
        self.open.add(pair)
        try:
            return self.by_alternatives(offered, wanted, path)
        finally:
            self.depth -= 1
            self.open.discard(pair)

    def by_alternatives(self, offered: Any, wanted: Any, path: tuple[Part, ...]) -> Fit:
        """Compare each alternative of the offered type."""
        options = self.scope.alternatives(offered)
        found = [self.to_wanted(option, self.scope.target(wanted), path) for option in options]
        if len(found) < 2:
            return found[0] if found else YES

        worst = _worst(fit.verdict for fit in found)
        if worst is Verdict.NO and any(fit.verdict is not Verdict.NO for fit in found):
            worst = Verdict.MAYBE
        if worst < Verdict.MAYBE:
            return Fit(worst)
        problems = [problem for fit in found for problem in fit.problems]
        return _fit(worst, [replace(one, verdict=min(worst, one.verdict)) for one in problems])

    def to_wanted(self, offered: Any, wanted: Any, path: tuple[Part, ...]) -> Fit:
        """Compare a type without alternatives with each part of the wanted type: all must hold."""
        if is_any(wanted):
            return YES
        if wanted is NEVER:
            return _no(path, "no value is accepted here")
        if is_any(offered):
            return UNKNOWN

        found: list[Fit] = [self.compare(offered, part, path) for part in wanted.get("allOf", ())]
        found += [self.to_some(offered, wanted[keyword], path) for keyword in ("anyOf", "oneOf") if keyword in wanted]

        kinds = wanted.get("type")
        if isinstance(kinds, list):
            plain = {key: value for key, value in wanted.items() if key not in ("anyOf", "oneOf", "allOf")}
            found.append(self.to_some(offered, [{**plain, "type": kind} for kind in kinds], path))
        else:
            found.append(self.to_plain(offered, wanted, path))
        return _all(found)

    def to_some(self, offered: Any, options: list[Any], path: tuple[Part, ...]) -> Fit:
        """Compare with alternatives: one must hold."""
        found = [self.compare(offered, option, path) for option in options]
        best = min((fit.verdict for fit in found), default=Verdict.UNKNOWN)
        if best < Verdict.MAYBE:
            return Fit(best)

        # The nearest alternative explains best: the one of the same type.
        near = [
            fit
            for fit, option in zip(found, options, strict=True)
            if fit.verdict is best and offered.get("type") in self.kinds(option)
        ]
        if len(near) == 1:
            return near[0]
        text = f"{self.text(offered)} does not fit {self.text({'anyOf': options})}"
        return _fit(best, [TypeProblem(path, text, best)])

    def kinds(self, type_: Any) -> set[str]:
        return {option["type"] for option in self.scope.alternatives(type_) if not is_any(option)}

    def text(self, type_: Any) -> str:
        return type_text(type_, self.scope)

    def to_plain(self, offered: dict[str, Any], wanted: dict[str, Any], path: tuple[Part, ...]) -> Fit:
        """Compare `type` and the keywords beside it."""
        kind, wanted_kind = offered["type"], wanted.get("type")
        if wanted_kind is not None and kind != wanted_kind and not _is_number_for(offered, wanted_kind):
            return _no(path, f"{self.text(offered)} does not fit {self.text(wanted)}")

        found = [_values(offered, wanted, path), Fit(Verdict.UNKNOWN) if _is_unread(wanted) else YES]
        if kind == "object":
            found.append(self.objects(offered, wanted, path))
        elif kind == "array":
            found.append(self.lists(offered, wanted, path))
        return _all(found)

    def objects(self, offered: dict[str, Any], wanted: dict[str, Any], path: tuple[Part, ...]) -> Fit:
        have, want = offered.get("properties", {}), wanted.get("properties", {})
        sure = offered.get("required", ())
        others, wanted_others = offered.get("additionalProperties", True), wanted.get("additionalProperties", True)
        is_known = is_plain(offered)
        found: list[Fit] = []

        for name in wanted.get("required", ()):
            if name in have:
                found.append(YES if name in sure else UNKNOWN)
            elif others is NEVER or (have and others is True and is_known):
                text = f"`{shown(name)}` is required, and missing"
                problem = TypeProblem(path, text, Verdict.NO, is_open=others is not NEVER, missing=name)
                found.append(Fit(Verdict.NO, (problem,)))
            else:
                found.append(UNKNOWN)

        for name, member in have.items():
            if name in want:
                fit = self.compare(member, want[name], (*path, name))
            elif "patternProperties" in wanted or "unevaluatedProperties" in wanted:
                fit = UNKNOWN
            elif wanted_others is NEVER and member is not NEVER:
                fit = _no((*path, name), f"`{shown(name)}` is not a member here{_known_names(want)}")
            else:
                fit = self.compare(member, wanted_others, (*path, name))
            found.append(fit if name in sure else _softened(fit))

        if isinstance(others, dict) and not is_any(others):
            found += [
                _softened(self.compare(others, member, (*path, name)))
                for name, member in want.items()
                if name not in have
            ]
            if wanted_others is not NEVER:
                found.append(_softened(self.compare(others, wanted_others, path)))
        return _all(found)

    def lists(self, offered: dict[str, Any], wanted: dict[str, Any], path: tuple[Part, ...]) -> Fit:
        first, rest = offered.get("prefixItems", []), offered.get("items", True)
        wanted_first, wanted_rest = wanted.get("prefixItems", []), wanted.get("items", True)

        found = [
            self.compare(item, wanted_first[at] if at < len(wanted_first) else wanted_rest, (*path, at))
            for at, item in enumerate(first)
        ]
        if rest is not NEVER:
            found += [self.compare(rest, item, (*path, at)) for at, item in enumerate(wanted_first[len(first) :])]
            found.append(self.compare(rest, wanted_rest, (*path, 0) if not first else path))
        return _all(found)


def _reference(type_: Any) -> str | None:
    return type_.get("$ref") if isinstance(type_, dict) else None


def _is_number_for(offered: dict[str, Any], wanted_kind: Any) -> bool:
    if offered["type"] == "integer":
        return bool(wanted_kind == "number")
    value = offered.get("const")
    return wanted_kind == "integer" and isinstance(value, float) and value.is_integer()


def _is_unread(wanted: dict[str, Any]) -> bool:
    return any(keyword in wanted for keyword in _UNREAD)


def _values(offered: dict[str, Any], wanted: dict[str, Any], path: tuple[Part, ...]) -> Fit:
    """Compare `enum` and `const`, and a constant with limits."""
    have, want = _allowed(offered), _allowed(wanted)
    if have is None:
        return YES if want is None else UNKNOWN

    if want is not None:
        count = sum(any(_same(value, one) for one in want) for value in have)
        if count < len(have):
            verdict = Verdict.MAYBE if count else Verdict.NO
            text = "is not one of " + ", ".join(map(_value_text, want[:8])) + (", …" if len(want) > 8 else "")
            return _fit(verdict, [TypeProblem(path, f"the value {text}", verdict)])
    for value in have:
        if problem := _limit(value, wanted):
            verdict = Verdict.NO if len(have) == 1 else Verdict.MAYBE
            return _fit(verdict, [TypeProblem(path, problem, verdict)])
    return YES


def _allowed(type_: dict[str, Any]) -> list[Any] | None:
    if "const" in type_:
        return [type_["const"]]
    values = type_.get("enum")
    return values if isinstance(values, list) else None


def _same(left: Any, right: Any) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _value_text(value: Any) -> str:
    return f"`{shown(value)}`" if isinstance(value, str) else shown(str(value)) if value is not None else "null"


_LIMITS = (
    ("minimum", operator.ge, "at least"),
    ("maximum", operator.le, "at most"),
    ("exclusiveMinimum", operator.gt, "more than"),
    ("exclusiveMaximum", operator.lt, "less than"),
)


def _limit(value: Any, wanted: dict[str, Any]) -> str:
    """Return which limit a constant breaks, "" if none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        for keyword, holds, words in _LIMITS:
            limit = wanted.get(keyword)
            if isinstance(limit, (int, float)) and not isinstance(limit, bool) and not holds(value, limit):
                return f"must be {words} {limit}"
    if isinstance(value, str):
        least, most = wanted.get("minLength"), wanted.get("maxLength")
        if isinstance(least, int) and len(value) < least:
            return f"must have at least {least} characters"
        if isinstance(most, int) and len(value) > most:
            return f"must have at most {most} characters"
    return ""


def _known_names(properties: dict[str, Any]) -> str:
    return "; known: " + ", ".join(f"`{shown(name)}`" for name in list(properties)[:10]) if properties else ""


def _no(path: tuple[Part, ...], text: str) -> Fit:
    return Fit(Verdict.NO, (TypeProblem(path, text, Verdict.NO),))


def _softened(fit: Fit) -> Fit:
    """Return the answer for a part that a value need not have."""
    if fit.verdict is not Verdict.NO:
        return fit
    return Fit(Verdict.MAYBE, tuple(replace(one, verdict=Verdict.MAYBE) for one in fit.problems))


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, default=Verdict.YES)


def _all(found: list[Fit]) -> Fit:
    """Join the answers for the parts of a value."""
    return _fit(_worst(fit.verdict for fit in found), [problem for fit in found for problem in fit.problems])


def _fit(verdict: Verdict, problems: list[TypeProblem]) -> Fit:
    return Fit(verdict, tuple(dict.fromkeys(problems))[:PROBLEMS_MAX])
