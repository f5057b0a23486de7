"""Commands that refuse an option or an argument that is given but empty.

`--run-id "$ID"` with an unset variable would lose idempotency, and an empty path is the working directory. No option
has a use for an empty text.
"""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from stepflow.cli.console import Usage
from stepflow.cli.options import OLD_WORDS


class StrictCommand(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_empty(self, ctx, args)
        return super().parse_args(ctx, args)

    def make_parser(self, ctx: Any) -> Any:
        """Return a parser that also knows the former names of options."""
        parser = super().make_parser(ctx)
        taken = {name for parameter in self.params for name in parameter.opts}
        for parameter in (each for each in self.params if isinstance(each, TyperOption)):
            old = next((OLD_WORDS[name] for name in parameter.opts if name in OLD_WORDS), None)
            if old is None or old in taken:
                continue
            if parameter.is_flag:
                parser.add_option(parameter, [old], parameter.name, action="store_const", const=True)
            else:
                parser.add_option(parameter, [old], parameter.name, action="store", nargs=1)
        return parser

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the pieces of the usage line. A flow may come by a former option, but it must come."""
        required = {"[FLOW]": "{FLOW}", "[FLOW...]": "{FLOW...}", "[FLOW|DIR...]": "{FLOW|DIR...}"}
        return [required.get(piece, piece) for piece in super().collect_usage_pieces(ctx)]


class StrictGroup(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_empty(self, ctx, args)
        return super().parse_args(ctx, args)


class StrictTyper(typer.Typer):
    """A `Typer` whose commands and groups are strict."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=StrictGroup, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=StrictCommand, **options)


def refuse_empty(command: Any, ctx: Any, args: list[str]) -> None:
    """Raises: Usage OPTION_EMPTY; a usage error of the parser."""
    if not any(not word.strip() or word.endswith("=") for word in args):
        return
    given, _, order = command.make_parser(ctx).parse_args(list(args))
    for parameter in order:
        values = given.get(parameter.name)
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if isinstance(value, str) and not value.strip():
                hint = "leave it out, or set the shell variable that it comes from"
                raise Usage("OPTION_EMPTY", f"{_shown(parameter)} is given but empty; {hint}")


def _shown(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        return str(parameter.opts[0])
    name = str(parameter.human_readable_name).removesuffix("...")
    return name[1:-1] if name.startswith("[") else name


__all__ = ["StrictTyper"]
