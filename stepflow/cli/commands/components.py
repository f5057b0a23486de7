"""The components of a config's plugins, and their paths in flows: `stepflow components list --config FILE`.

`stepflow list-components` is the former word for it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from stepflow.cli import console
from stepflow.cli.options import ConfigOption

if TYPE_CHECKING:
    from stepflow.config import Config

_FORMATS = ("pretty", "json", "yaml")


class ListedComponent(Protocol):
    """The fields of a component host's `ComponentInfo`, which `stepflow` does not import."""

    @property
    def component(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def description(self) -> str | None: ...
    @property
    def input_schema(self) -> Any: ...
    @property
    def output_schema(self) -> Any: ...


def list_components(
    config: ConfigOption = None,
    output_format: Annotated[
        str, typer.Option("--format", metavar="|".join(_FORMATS), help="Format of the list.")
    ] = "pretty",
    schemas: Annotated[
        str | None,
        typer.Option(metavar="true|false", help="Print the schemas. Default: false for pretty, else true."),
    ] = None,
    hide_unreachable: Annotated[
        str, typer.Option(metavar="true|false", help="Leave out components of plugins that no route uses.")
    ] = "true",
) -> None:
    """List the components that the config's plugins offer: the former `stepflow components list --config FILE`.

    Starts the configured component servers, lists their components, and stops them. The exit code is 1 when a server
    fails to start; the components of the others are listed.
    """
    console.check_choice("--format", output_format, _FORMATS)
    with_schemas = output_format != "pretty" if schemas is None else _flag("--schemas", schemas)
    hide = _flag("--hide-unreachable", hide_unreachable)
    list_configured(config, output_format, with_schemas=with_schemas, hide_unreachable=hide)


def list_configured(
    config: Path | None, output_format: str, *, with_schemas: bool, hide_unreachable: bool = True, plugin: str = ""
) -> None:
    """Start the servers of a config, and list their components; `plugin`: only those of this plugin.

    Raises: typer.Exit, a server failed to start (1).
    """
    from stepflow.cli.input.documents import read_config
    from stepflow.cli.interruptible import run_or_exit
    from stepflow.cli.output import to_yaml
    from stepflow.embedded.mesh import list_components as ask

    loaded = read_config(config)
    found, failures = run_or_exit(ask(loaded))
    components = describe(found, loaded, with_schemas=with_schemas, hide_unreachable=hide_unreachable)
    components = [tree for tree in components if plugin in ("", tree["plugin"])]

    if output_format == "pretty":
        console.show(_pretty(components))
    elif output_format == "yaml":
        console.out(to_yaml({"components": components}))
    else:
        import msgspec

        console.out(msgspec.json.format(msgspec.json.encode({"components": components}), indent=2) + b"\n")

    for failure in failures.values():
        console.error(failure)
    if failures:
        raise typer.Exit(console.EXIT_FAILED)


def _flag(option: str, value: str) -> bool:
    console.check_choice(option, value, ("true", "false"))
    return value == "true"


def describe(
    found: Iterable[tuple[str, ListedComponent]], config: "Config", *, with_schemas: bool, hide_unreachable: bool
) -> list[dict[str, Any]]:
    """Return a tree per component, sorted by component id; `routes` are the full paths that reach the component.

    Conditions and allow and deny lists are ignored: they depend on the input of a call.
    """
    prefixes: dict[str, list[str]] = {}
    for prefix, rules in config.routes.items():
        for plugin in dict.fromkeys(rule.plugin for rule in rules):
            prefixes.setdefault(plugin, []).append(prefix.rstrip("/"))

    trees = []
    for plugin, info in sorted(found, key=lambda pair: (pair[1].component, pair[0])):
        if hide_unreachable and plugin not in prefixes:
            continue
        tree: dict[str, Any] = {"component": info.component, "path": info.path}
        if info.description is not None:
            tree["description"] = info.description
        if with_schemas and info.input_schema is not None:
            tree["input_schema"] = info.input_schema
        if with_schemas and info.output_schema is not None:
            tree["output_schema"] = info.output_schema
        tree["plugin"] = plugin
        tree["routes"] = [prefix + info.path for prefix in prefixes.get(plugin, ())]
        trees.append(tree)
    return trees


def _pretty(components: list[dict[str, Any]]) -> str:
    if not components:
        return "No components found"
    from stepflow.cli.output import to_yaml

    lines = []
    for tree in components:
        routes = ", ".join(tree["routes"]) or "(no route)"
        lines.append(f"{routes}  [{tree['plugin']}]")
        lines += [f"    {line}" for line in (tree.get("description") or "").strip().splitlines()]
        for name in ("input_schema", "output_schema"):
            if name in tree:
                lines.append(f"    {name}:")
                lines += [f"      {line}" for line in to_yaml(tree[name]).splitlines()]
    return "\n".join(lines)
