"""The `@component` decorator and what it remembers.

A component has a path (`/greet`, `/core/{*rest}`) and one function, whose parameters are, in any order:
- at most one annotated `Context`;
- one for each name in the path's braces, which gets the matched text;
- the input: one parameter that is called `input` or is of an object type (dataclass, TypedDict, Struct, pydantic
  model, dict) takes it whole; otherwise the parameters are the members of the input object.

Hints are resolved when the server starts, not when the module loads, so that a function may refer to what is defined
below it; a bad one is reported then, with file and line.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import msgspec

from stepflow.component.context import Context, InvalidInput
from stepflow.errors import Invalid

if TYPE_CHECKING:
    import inspect

    from stepflow.component.server import Call
    from stepflow.component.shapes import Shape

F = TypeVar("F", bound=Callable[..., Any])
Mode = Literal["async", "thread", "inline"]

_SEGMENT = re.compile(r"\{\*?([A-Za-z_]\w*)\}")


@dataclass(slots=True)
class Component:
    """A registered function. After `prepare` its schemas are known and it can be called."""

    path: str
    function: Callable[..., Any]
    mode: Mode
    description: str | None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    pattern: re.Pattern[str] | None = None
    _path_names: tuple[str, ...] = ()
    _context_name: str | None = None
    _whole_name: str | None = None
    _input: Shape | None = None
    _may_be_null: bool = False
    _prepared: bool = field(default=False, repr=False)

    def prepare(self) -> None:
        """Resolve the type hints; safe to repeat. Raises: Invalid (a hint without JSON form, named with its place)."""
        if not self._prepared:
            self._read_signature()
            self._prepared = True

    def arguments(self, call: Call) -> dict[str, Any]:
        """Convert a call's input into the function's keyword arguments. Raises: InvalidInput."""
        text = call.params.input
        if self._input is None:
            arguments: dict[str, Any] = {}
        elif self._whole_name is not None:
            arguments = {self._whole_name: self._input.decode(text)}
        elif self._may_be_null and bytes(text) == b"null":
            arguments = {}
        else:
            arguments = self._input.decode(text)
        for name in self._path_names:
            if name not in call.path_params:
                raise InvalidInput(f"the path parameter `{name}` of {self.path} is missing")
            arguments[name] = call.path_params[name]
        if self._context_name is not None:
            arguments[self._context_name] = Context(call)
        return arguments

    def describe(self) -> dict[str, Any]:
        """Return the protocol's ComponentInfo."""
        info = {
            "component": self.path,
            "description": self.description,
            "input_schema": self.input_schema,
            "output_schema": self.output_schema,
        }
        return {name: value for name, value in info.items() if value is not None}

    def _read_signature(self) -> None:
        import inspect

        from stepflow.component.shapes import UnsupportedHintError, object_of, output_schema_of, shape_of

        hints = self._hints()
        parameters = dict(inspect.signature(self.function).parameters)
        path_names = set(self.pattern.groupindex) if self.pattern else set()
        self._path_names = tuple(name for name in parameters if name in path_names)
        for name, parameter in parameters.items():
            self._check_parameter(name, parameter, hints.get(name, Any))
        contexts = [name for name in parameters if _is_context(hints.get(name))]
        if len(contexts) > 1:
            raise self._invalid(f"has two Context parameters, `{contexts[0]}` and `{contexts[1]}`")
        self._context_name = contexts[0] if contexts else None
        members = {
            name: hints.get(name, Any) for name in parameters if name not in path_names and name != self._context_name
        }
        defaults = {
            name: parameters[name].default
            for name in members
            if parameters[name].default is not inspect.Parameter.empty
        }
        what = "its input"
        try:
            if len(members) == 1 and _takes_all(*next(iter(members.items()))):
                self._whole_name, hint = next(iter(members.items()))
                self._input = shape_of(hint)
            elif members:
                self._input = object_of(f"{self.function.__name__}_input", members, defaults)
                self._may_be_null = len(defaults) == len(members)
            self.input_schema = self._input.schema if self._input else {}
            what = "what it returns"
            if "return" in hints:
                self.output_schema = output_schema_of(hints["return"])
        except UnsupportedHintError as problem:
            raise self._invalid(f"has a type hint that JSON cannot carry, in {what}: {problem}") from None

    def _hints(self) -> dict[str, Any]:
        known = {"Context": Context, **getattr(self.function, "__globals__", {})}  # it may be imported for typing only
        try:
            return typing.get_type_hints(self.function, globalns=known, include_extras=True)
        except NameError as error:
            raise self._invalid(
                f"has a type hint that cannot be resolved ({error}): define or import the type at module level, "
                "outside of `if TYPE_CHECKING`"
            ) from None
        except TypeError as error:
            raise self._invalid(f"has a bad type hint: {error}") from None

    def _check_parameter(self, name: str, parameter: inspect.Parameter, hint: Any) -> None:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise self._invalid(f"takes `*{name}`: name the parameters, or take `input: dict` for any object")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise self._invalid(f"has the positional-only parameter `{name}`: components are called by name")
        if name in self._path_names and hint not in (str, Any):
            raise self._invalid(f"annotates the path parameter `{name}` with another type than str")

    def _invalid(self, problem: str) -> Invalid:
        return Invalid("COMPONENT_INVALID", f"{place_of(self.function)}: component {self.path} {problem}")


class Registry:
    """Components by path, in the order of their definition."""

    def __init__(self) -> None:
        self._by_path: dict[str, Component] = {}
        self._patterns: list[tuple[re.Pattern[str], Component]] = []

    def add(self, added: Component) -> None:
        """Raises: Invalid (another function has the path)."""
        other = self._by_path.get(added.path)
        # the same function again: a module that is both `__main__` and imported
        if other is not None and place_of(other.function) != place_of(added.function):
            raise Invalid(
                "COMPONENT_DUPLICATE",
                f"{place_of(added.function)}: {added.path} is defined already, at {place_of(other.function)}; "
                'give one of them another name: @component("other_name")',
            )
        self._by_path[added.path] = added
        patterned = sorted((each for each in self._by_path.values() if each.pattern), key=_generality)
        self._patterns = [(each.pattern, each) for each in patterned if each.pattern]

    def components(self) -> list[Component]:
        return list(self._by_path.values())

    def find(self, path: str) -> tuple[Component, Mapping[str, str]] | None:
        """Return the component for a path, and what its braces matched; more literal patterns win."""
        exact = self._by_path.get(path)
        if exact is not None:
            return exact, {}
        for pattern, candidate in self._patterns:
            if match := pattern.fullmatch(path):
                return candidate, match.groupdict()
        return None


REGISTRY = Registry()
"""What `@component` fills and `serve()` serves."""


@overload
def component(target: F, /) -> F: ...
@overload
def component(
    target: str | None = None, /, *, name: str | None = None, description: str | None = None, inline: bool = False
) -> Callable[[F], F]: ...
def component(
    target: Any = None, /, *, name: str | None = None, description: str | None = None, inline: bool = False
) -> Any:
    """Make a function a component; the function itself stays as it is.

    The name is the function's, or the one given (`@component("text/split")`); braces make a pattern
    (`@component("core/{*rest}")`). The description is the docstring. An async function runs on the event loop, a sync
    one in a thread; `inline=True` is for a sync function that takes microseconds and waits for nothing: it runs on
    the loop, and everything else waits for it.

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
) -> Component:
    """Describe a function as a component, without registering it. Raises: Invalid."""
    import inspect

    if isinstance(function, type) or not hasattr(function, "__name__"):
        raise Invalid("COMPONENT_INVALID", f"@component is for functions, not for {function!r}")
    path = "/" + (name if name is not None else function.__name__).strip("/")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise Invalid("COMPONENT_INVALID", f"{place_of(function)}: component {path} yields; it must return one value")
    is_async = inspect.iscoroutinefunction(function)
    if is_async and inline:
        raise Invalid(
            "COMPONENT_INVALID",
            f"{place_of(function)}: component {path} is async and runs on the loop anyway; inline is for sync ones",
        )
    return Component(
        path=path,
        function=function,
        mode="async" if is_async else "inline" if inline else "thread",
        description=description if description is not None else inspect.getdoc(function),
        pattern=_pattern(path, function),
    )


def place_of(function: Callable[..., Any]) -> str:
    """Return `file:line` of a function."""
    import inspect

    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _pattern(path: str, function: Callable[..., Any]) -> re.Pattern[str] | None:
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
        raise _bad_path(path, function, "a name in braces stands twice") from None


def _bad_path(path: str, function: Callable[..., Any], problem: str) -> Invalid:
    return Invalid("COMPONENT_INVALID", f"{place_of(function)}: the component path {path} is not valid: {problem}")


def _generality(candidate: Component) -> tuple[bool, int, int]:
    return "{*" in candidate.path, candidate.path.count("{"), -len(candidate.path)


def _is_context(hint: Any) -> bool:
    return hint is Context or Context in typing.get_args(hint)


def _takes_all(name: str, hint: Any) -> bool:
    if name == "input":
        return True
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    hint = typing.get_origin(hint) or hint
    if not isinstance(hint, type):
        return False
    return (
        issubclass(hint, (dict, Mapping, msgspec.Struct))  # a TypedDict is a dict
        or hasattr(hint, "__dataclass_fields__")
        or hasattr(hint, "__pydantic_core_schema__")
    )
