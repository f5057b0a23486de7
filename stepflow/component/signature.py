"""`RegisteredComponent`: a function, its parameters as parts of a call, and the schemas of input and output.

Parameters, in any order:
- at most one annotated `Context`;
- one for each name in the braces of the path, filled with the matched text;
- the input: a single parameter named `input`, or of an object type (dataclass, TypedDict, Struct, pydantic model,
  dict), takes the whole input; otherwise each parameter takes one member of the input object.

Hints are resolved by `prepare` when the server starts, not when the module loads: a function may refer to types
defined further down. A bad hint is reported with file and line.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from stepflow.component.context import Context
from stepflow.component.errors import InvalidInput
from stepflow.errors import Invalid

if TYPE_CHECKING:
    import inspect
    import re
    from collections.abc import Callable

    from stepflow.component.context import CallFacts
    from stepflow.component.shapes import Shape

Mode = Literal["async", "thread", "inline"]


class RegisteredComponent:
    """A registered function. `prepare` fills the schemas, and must precede `arguments`.

    A plain class: a dataclass would add a millisecond to the start of every component server.
    """

    __slots__ = (
        "_context_name",
        "_input",
        "_may_be_null",
        "_path_names",
        "_prepared",
        "_whole_name",
        "description",
        "function",
        "input_schema",
        "mode",
        "output_schema",
        "path",
        "pattern",
    )

    def __init__(
        self,
        path: str,
        function: Callable[..., Any],
        mode: Mode,
        description: str | None,
        pattern: re.Pattern[str] | None,
    ) -> None:
        """`pattern` belongs to a path with braces."""
        self.path = path
        self.function = function
        self.mode = mode
        self.description = description
        self.pattern = pattern
        self.input_schema: dict[str, Any] | None = None
        self.output_schema: dict[str, Any] | None = None

        self._path_names: tuple[str, ...] = ()
        self._context_name: str | None = None
        self._whole_name: str | None = None
        """The parameter that takes the whole input."""
        self._input: Shape | None = None
        self._may_be_null = False
        """Every member has a default, so null stands for an empty object."""
        self._prepared = False

    def prepare(self) -> None:
        """Resolve the type hints. Idempotent. Raises: Invalid (a hint without JSON form, with file and line)."""
        if not self._prepared:
            self._read_signature()
            self._prepared = True

    def arguments(self, call: CallFacts) -> dict[str, Any]:
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

        # 1. Resolve and check the hints.
        hints = self._resolved_hints()
        parameters = dict(inspect.signature(self.function).parameters)
        path_names = set(self.pattern.groupindex) if self.pattern else set()
        self._path_names = tuple(name for name in parameters if name in path_names)
        for name, parameter in parameters.items():
            self._check_parameter(name, parameter, hints.get(name, Any))

        # 2. Find the Context.
        contexts = [name for name in parameters if _is_context(hints.get(name))]
        if len(contexts) > 1:
            raise self._invalid(f"has two Context parameters, `{contexts[0]}` and `{contexts[1]}`")
        self._context_name = contexts[0] if contexts else None

        # 3. All other parameters are input.
        members = {
            name: hints.get(name, Any) for name in parameters if name not in path_names and name != self._context_name
        }
        defaults = {
            name: parameters[name].default
            for name in members
            if parameters[name].default is not inspect.Parameter.empty
        }
        self._read_shapes(members, defaults, hints)

    def _read_shapes(self, members: dict[str, Any], defaults: dict[str, Any], hints: dict[str, Any]) -> None:
        from stepflow.component.shapes import UnsupportedHintError, object_of, output_schema_of, shape_of

        part = "its input"
        try:
            if len(members) == 1 and _takes_all(*next(iter(members.items()))):
                self._whole_name, hint = next(iter(members.items()))
                self._input = shape_of(hint)
            elif members:
                self._input = object_of(f"{self.function.__name__}_input", members, defaults)
                self._may_be_null = len(defaults) == len(members)
            self.input_schema = self._input.schema if self._input else {}

            part = "the return value"
            if "return" in hints:
                self.output_schema = output_schema_of(hints["return"])
        except UnsupportedHintError as problem:
            raise self._invalid(f"has a type hint without JSON form, in {part}: {problem}") from None

    def _resolved_hints(self) -> dict[str, Any]:
        # `Context` may be imported under TYPE_CHECKING only
        known = {"Context": Context, **getattr(self.function, "__globals__", {})}

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
        return Invalid("COMPONENT_INVALID", f"{location_of(self.function)}: component {self.path} {problem}")


def location_of(function: Callable[..., Any]) -> str:
    """Return `file:line` of a function."""
    import inspect

    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _is_context(hint: Any) -> bool:
    return hint is Context or Context in typing.get_args(hint)


def _takes_all(name: str, hint: Any) -> bool:
    """Return True if a sole input parameter takes the whole input rather than a member."""
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
