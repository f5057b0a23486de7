"""Problems and warnings of one reading, each with its line in the file.

- Reading goes on after a problem, so that one message holds all problems of a file.
- `read_model` applies a model and warns about unknown keys at any depth; `warn_unknown` does so for a plain mapping.
- Warnings end up in `Config.warnings`; the commands print them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from stepflow.config.file_models import Model
from stepflow.config.model import ConfigInvalid, DocumentPath, key_text
from stepflow.flow.document import Tree
from stepflow.flow.syntax import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

M = TypeVar("M", bound=Model)
T = TypeVar("T")

PROBLEMS_SHOWN_MAX = 10
"""Problems quoted in one message; the rest is counted."""


class Unreadable(Exception):  # a signal within this package, not an error for users
    """Values that cannot be read, each with the reason."""

    def __init__(self, problems: list[tuple[DocumentPath, str]]) -> None:
        super().__init__(problems)
        self.problems = problems

    @classmethod
    def at(cls, path: DocumentPath, message: str) -> Unreadable:
        return cls([(path, message)])


class Problems:
    """The problems and warnings of one file; `source` names it in messages."""

    def __init__(self, tree: Any, source: str) -> None:
        self._document = tree if isinstance(tree, Tree) else None
        self._source = source
        self._problems: list[tuple[DocumentPath, str]] = []
        self._warnings: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._problems)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._warnings)

    def add(self, path: DocumentPath, message: str) -> None:
        self._problems.append((path, message))

    def attempt(self, read: Callable[..., T], *arguments: Any) -> T | None:
        """Call `read`; note its problems and return None if the value is unreadable."""
        try:
            return read(*arguments)
        except Unreadable as error:
            self._problems.extend(error.problems)
            return None

    def read_model(self, model: type[M], tree: Any, path: DocumentPath, *, extras: bool = False) -> M:
        """Validate `tree` and warn about its unknown keys, unless `extras` allows them. Raises: Unreadable."""
        try:
            read = model.model_validate(tree)
        except ValidationError as invalid:
            if isinstance(tree, dict) and not extras:
                self.warn_unknown(tree, model.keys(), path)  # a misspelt key often explains the missing one
            errors = invalid.errors(include_url=False, include_input=False, include_context=False)
            raise Unreadable(
                [((*path, *error["loc"]), _message(error["type"], error["msg"])) for error in errors]
            ) from None

        if not extras:
            self._warn_extras(read, path)
        return read

    def _warn_extras(self, read: Model, path: DocumentPath) -> None:
        """Warn about unknown keys, at any depth."""
        self.warn_unknown(read.model_extra or {}, read.keys(), path)
        for name, info in type(read).model_fields.items():
            below = getattr(read, name)
            if isinstance(below, Model):
                self._warn_extras(below, (*path, info.alias or name))

    def warn_unknown(self, tree: Mapping[str, Any], known: Collection[str], path: DocumentPath) -> None:
        for name in tree:
            if name not in known:
                hint = suggestion(name, tuple(known))
                self.warn((*path, name), f"is not a known key and has no effect{hint}")

    def warn(self, path: DocumentPath, message: str) -> None:
        self._warnings.append(self._line(path, message))

    def error(self) -> ConfigInvalid:
        """Return the error that lists all problems, then the warnings: a warning often explains a problem."""
        assert self._problems
        lines = [self._line(*problem) for problem in self._problems[:PROBLEMS_SHOWN_MAX]]
        if len(self._problems) > len(lines):
            lines.append(f"and {len(self._problems) - len(lines)} more")
        lines.extend(self._warnings[:PROBLEMS_SHOWN_MAX])

        first = self._problems[0][0]
        line, column = self._document.nearest(first) if self._document is not None else (None, None)
        return ConfigInvalid("\n".join(lines), source=self._source, field=key_text(first), line=line, column=column)

    def _line(self, path: DocumentPath, message: str) -> str:
        where = self._source
        if self._document is not None:
            line, column = self._document.nearest(path)
            where = f"{where}:{line}:{column}"
        return f"{where}: {key_text(path)}: {message}" if path else f"{where}: {message}"


def _message(kind: str, message: str) -> str:
    """Word pydantic's messages like the others."""
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind == "model_type":
        return "must be a mapping"
    return message.replace("Input should be", "must be").replace("a valid dictionary", "a mapping")


def quoted(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)
