"""The `@component` decorator, and the registry of decorated functions.

A component has a path (`/greet`, `/core/{*rest}`) and one function; `signature.py` has the rules for parameters. Paths
are unique in a registry: a second function with the same path is refused, with both locations.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from stepflow.component.signature import RegisteredComponent, location_of
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

F = TypeVar("F", bound=Callable[..., Any])

LISTED_MAX = 10
"""Components named in an error text where no name is similar."""

_SEGMENT = re.compile(r"\{\*?([A-Za-z_]\w*)\}")


class Registry:
    """Components by path, in definition order."""

    def __init__(self) -> None:
        self._by_path: dict[str, RegisteredComponent] = {}
        self._patterns: list[tuple[re.Pattern[str], RegisteredComponent]] = []
        """Most literal pattern first."""

    def add(self, added: RegisteredComponent) -> None:
        """Register a component. Raises: Invalid COMPONENT_DUPLICATE (another function has the path)."""
        other = self._by_path.get(added.path)

        # A module loaded twice, as `__main__` and by import, registers the same function twice.
        if other is not None and location_of(other.function) != location_of(added.function):
            raise Invalid(
                "COMPONENT_DUPLICATE",
                f"{location_of(added.function)}: {added.path} is defined already, at {location_of(other.function)}; "
                'give one of them another name: @component("other_name")',
            )

        self._by_path[added.path] = added
        patterned = sorted((each for each in self._by_path.values() if each.pattern), key=_generality)
        self._patterns = [(each.pattern, each) for each in patterned if each.pattern]

    def components(self) -> list[RegisteredComponent]:
        return list(self._by_path.values())

    def find(self, path: str) -> tuple[RegisteredComponent, Mapping[str, str]] | None:
        """Return the component for a path and the texts matched by the braces; more literal patterns win."""
        exact = self._by_path.get(path)
        if exact is not None:
            return exact, {}

        for pattern, candidate in self._patterns:
            if match := pattern.fullmatch(path):
                return candidate, match.groupdict()
        return None

    def suggestion_for(self, path: str) -> str:
        """Return `; did you mean …?`, or a list of the few components, or "": the end of an error text."""
        import difflib

        known = list(self._by_path)
        if close := difflib.get_close_matches(path, known, n=1):
            return f"; did you mean {close[0]}?"
        return f"; there are {', '.join(known)}" if 0 < len(known) <= LISTED_MAX else ""


REGISTRY = Registry()
"""Filled by `@component`, served by `serve()`."""


@overload
def component(target: F, /) -> F: ...
@overload
def component(
    target: str | None = None, /, *, name: str | None = None, description: str | None = None, inline: bool = False
) -> Callable[[F], F]: ...
def component(
    target: Any = None, /, *, name: str | None = None, description: str | None = None, inline: bool = False
) -> Any:
    """Register a function as a component and return the function unchanged.

    The component's name is the function's, or the given text (`@component("text/split")`); braces make a pattern
    (`@component("core/{*rest}")`). The description is the docstring. An async function runs on the event loop, a sync
    function in a thread. `inline=True` runs a sync function on the loop: for functions of a few microseconds that
    never wait, since all other calls stand still meanwhile.

    Raises:
        Invalid: a bad or taken name, or a function that cannot be a component.
    """
    if isinstance(target, str):
        name = target
        target = None

    def register(function: Any) -> Any:
        REGISTRY.add(define(function, name=name, description=description, inline=inline))
        return function

    return register if target is None else register(target)


def define(
    function: Callable[..., Any], *, name: str | None = None, description: str | None = None, inline: bool = False
) -> RegisteredComponent:
    """Describe a function as a component, without registration. Raises: Invalid."""
    import inspect

    if isinstance(function, type) or not hasattr(function, "__name__"):
        raise Invalid("COMPONENT_INVALID", f"@component is for functions, not for {function!r}")

    path = "/" + (name if name is not None else function.__name__).strip("/")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise Invalid("COMPONENT_INVALID", f"{location_of(function)}: component {path} yields; return one value")

    is_async = inspect.iscoroutinefunction(function)
    if is_async and inline:
        raise Invalid(
            "COMPONENT_INVALID",
            f"{location_of(function)}: component {path} is async and always runs on the loop; remove inline=True",
        )

    return RegisteredComponent(
        path=path,
        function=function,
        mode="async" if is_async else "inline" if inline else "thread",
        description=description if description is not None else inspect.getdoc(function),
        pattern=_pattern(path, function),
    )


def _pattern(path: str, function: Callable[..., Any]) -> re.Pattern[str] | None:
    """Compile a path with braces; None for a literal path. Raises: Invalid."""
    segments = path[1:].split("/")
    parts = []
    for index, segment in enumerate(segments):
        match = _SEGMENT.fullmatch(segment)
        last = index == len(segments) - 1

        if not segment or (match is None and ("{" in segment or "}" in segment)):
            raise _bad_path(path, function, "a segment is text, `{name}`, or at the end `{*name}`")
        if match is None:
            parts.append(re.escape(segment))
        elif segment.startswith("{*"):
            if not last:
                raise _bad_path(path, function, f"`{segment}` takes the rest, so it must be last")
            parts.append(f"(?P<{match[1]}>.+)")
        else:
            parts.append(f"(?P<{match[1]}>[^/]+)")

    if "{" not in path:
        return None
    try:
        return re.compile("/" + "/".join(parts))
    except re.error:
        raise _bad_path(path, function, "two braces have the same name") from None


def _bad_path(path: str, function: Callable[..., Any], problem: str) -> Invalid:
    return Invalid("COMPONENT_INVALID", f"{location_of(function)}: the component path {path} is not valid: {problem}")


def _generality(candidate: RegisteredComponent) -> tuple[bool, int, int]:
    """Sort key of patterns: fewer and narrower braces first, then longer paths."""
    return "{*" in candidate.path, candidate.path.count("{"), -len(candidate.path)
