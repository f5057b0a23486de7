"""Completion of command lines by the shell: run ids, flows, component paths, plugins.

- Commands take these functions as `autocompletion`; shared options get theirs by `attach`. Typer calls them, in a
  process that the shell starts for each Tab.
- Fast: a mesh is asked for `MESH_S` at most, the folder of runs is read through its index, and no server is started.
- Silent: on any error nothing is offered. The shell then completes file names.
- Names and descriptions come from others, and shells evaluate what they are offered: values that a shell would not take
  literally are left out, and help texts lose the characters that it would interpret.

Every command imports this module: the only imports at the top are of the standard library and typer.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import typer

if TYPE_CHECKING:
    from stepflow.cli.display.trees import AnyRun
    from stepflow.client import Client
    from stepflow.config import Config

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "stepflow"
REQUEST = "_STEPFLOW_COMPLETE"
"""The environment variable with which a shell asks for completions."""

MESH_S = 1.0
"""How long a mesh may take to answer."""

OFFERED_MAX = 100
"""Values offered at most: the newest runs, the first flows."""

READ_FILES_MAX = 50
READ_BYTES_MAX = 256 * 1024
"""Flow files of the folder that are searched for component paths, and the part of each that is read."""

HELP_CHARS_MAX = 100
"""A longer help text is cut."""

Offer = list[tuple[str, str]]
"""Values with their help texts."""

_T = TypeVar("_T")

_QUOTES = str.maketrans({"\\": "/", "$": None, **dict.fromkeys("\"'`", "\N{RIGHT SINGLE QUOTATION MARK}")})
"""zsh evaluates help texts between quotes."""


def script(shell: str) -> str:
    """Return the script that a shell evaluates to complete this program. Raises: Usage."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # without `__all__` there

    from stepflow.cli.console import check_choice

    check_choice("SHELL", shell, SHELLS)
    return get_completion_script(prog_name=PROGRAM, complete_var=REQUEST, shell=shell)


def prepare() -> bool:
    """Prepare this process if a shell asks it for completions; return False for any other process.

    stderr goes nowhere: it would be written across the command line.
    """
    if REQUEST not in os.environ:
        return False
    from typer.completion import completion_init  # type: ignore[attr-defined]  # likewise

    completion_init()
    sys.modules["rich"] = None  # type: ignore[assignment]  # typer would format each help text with it: 0.1 s
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  # a descriptor is needed, no path
        os.dup2(nowhere.fileno(), 2)
    return True


def attach(option: Any, complete: Callable[[typer.Context, str], Offer]) -> None:
    """Let a shared option or argument of `stepflow.cli.options`, an `Annotated` type, be completed.

    Not there, because the functions of this module use what imports the options.
    """
    get_args(option)[1].autocompletion = complete


def silent(complete: Callable[[typer.Context, str], Offer]) -> Callable[[typer.Context, str], Offer]:
    """Make a completion function return nothing instead of raising, and nothing that a shell would execute."""

    def offered(ctx: typer.Context, incomplete: str) -> Offer:
        try:
            return [(value, _help(text)) for value, text in complete(ctx, incomplete) if _is_literal(value)]
        except Exception:  # for a person who types, no completion is better than a traceback
            return []

    return offered


@silent
def complete_run(ctx: typer.Context, incomplete: str) -> Offer:
    """Offer `last` and the ids of the newest runs, of the mesh or the folder that the command would use."""
    from stepflow.ids import LAST

    offered: Offer = [(LAST, "the newest run")]
    for run, status in islice(_runs(ctx, incomplete), OFFERED_MAX):
        offered.append((run.run_id, _describe(run, status)))
    return offered


@silent
def complete_flow(ctx: typer.Context, incomplete: str) -> Offer:
    """Offer the flows that the mesh stores, by name and by tag, and with them the flow files of the folder.

    Without stored flows nothing is offered: the shell completes paths better.
    """
    if incomplete.startswith((".", "/", "~")):
        return []
    stored = complete_flow_name(ctx, incomplete)
    return stored and stored + [(path.name, "file") for path in _flow_files() if path.name.startswith(incomplete)]


@silent
def complete_flow_name(ctx: typer.Context, incomplete: str) -> Offer:
    """Offer the flows that the mesh stores: `NAME` and `NAME@TAG`."""

    async def ask(client: "Client") -> Offer:
        from stepflow.cli.remote import first

        offered: Offer = []
        async for flow in first(client.list_flows(incomplete.partition("@")[0]), OFFERED_MAX):
            offered.append((flow.name, f"{len(flow.versions)} versions"))
            offered += [(f"{flow.name}@{tag}", f"version {v.version}") for v in flow.versions for tag in v.labels]
        return offered

    return _ask_mesh(ctx, ask)


@silent
def complete_flow_without_tag(ctx: typer.Context, incomplete: str) -> Offer:
    """Offer the names of the flows that the mesh stores."""
    return [offered for offered in complete_flow_name(ctx, incomplete) if "@" not in offered[0]]


@silent
def complete_component(ctx: typer.Context, incomplete: str) -> Offer:  # noqa: ARG001  # typer leaves out what does not begin so
    """Offer the paths of components: of the mesh, if a server is named; else those that are known without a server.

    These are the builtins and mocks of the configuration, and what the flow files of the folder call.
    """
    if _server(ctx):
        return list(dict.fromkeys(_ask_mesh(ctx, _components_of_mesh)))

    offered = dict(_known_components(_config(ctx)))
    for path in _paths_in_flows():
        offered.setdefault(path, "")
    return sorted(offered.items())


@silent
def complete_plugin(ctx: typer.Context, incomplete: str) -> Offer:  # noqa: ARG001  # likewise
    """Offer the plugins of the mesh, or of the configuration in this folder if no mesh answers."""
    try:
        return list(dict.fromkeys(_ask_mesh(ctx, _plugins_of_mesh)))
    except Exception:
        return [(name, "") for name in sorted(_config(ctx).plugins)]


def _is_literal(value: str) -> bool:
    """Return True for a word that every shell takes as it is, and that no command takes for an option."""
    import re

    return re.fullmatch(r"[\w./][\w./@%+=:,{}-]*", value) is not None


def _help(text: str) -> str:
    from stepflow.printable import printable

    return printable(text[:HELP_CHARS_MAX], one_line=True).translate(_QUOTES)


def _runs(ctx: typer.Context, incomplete: str) -> "Iterator[tuple[AnyRun, str]]":
    """Yield runs that may be meant, the newest first."""
    from stepflow.cli.target import choose_folder, choose_target

    names = {parameter.name for parameter in ctx.command.params}
    store: Path | None = ctx.params.get("store")
    if "store" not in names:
        return iter(_ask_mesh(ctx, _newest_of_mesh))
    folder = choose_target(_server(ctx), store, quiet=True).folder if "server" in names else choose_folder(store)
    if folder is None:
        return iter(_ask_mesh(ctx, _newest_of_mesh))

    from stepflow.cli.run_list import list_known
    from stepflow.embedded.runs_folder import LocalRuns

    return (found for found in list_known(LocalRuns(folder)) if found[0].run_id.startswith(incomplete))


async def _newest_of_mesh(client: "Client") -> "list[tuple[AnyRun, str]]":
    from stepflow.cli.remote import first

    return [(run, run.status) async for run in first(client.list_runs(page_size=OFFERED_MAX), OFFERED_MAX)]


def _describe(run: "AnyRun", status: str) -> str:
    from stepflow.cli.display.runs import run_name
    from stepflow.cli.display.texts import clock

    return " ".join(filter(None, (status, run_name(run), clock(run.created_at_ms))))


async def _components_of_mesh(client: "Client") -> Offer:
    # The mesh does not tell its routes; a plugin usually has one of its own name.
    return [(f"/{each.plugin}{each.path}", _sentence(each.description)) for each in await client.components()]


async def _plugins_of_mesh(client: "Client") -> Offer:
    return [(plugin.plugin, plugin.state) for host in (await client.cluster()).hosts for plugin in host.plugins]


def _known_components(config: "Config") -> Iterator[tuple[str, str]]:
    from stepflow.embedded.known_components import components_without_servers

    prefixes: dict[str, list[str]] = {}
    for prefix, rules in config.routes.items():
        for rule in rules:
            prefixes.setdefault(rule.plugin, []).append(prefix.rstrip("/"))
    for plugin, components in components_without_servers(config).items():
        for component in components:
            for prefix in prefixes.get(plugin, ()):
                yield prefix + component.path, _sentence(component.description)


def _paths_in_flows() -> Iterator[str]:
    """Yield what the flow files of this folder call, found without parsing them."""
    import re

    for path in _flow_files():
        with path.open("rb") as file:
            text = file.read(READ_BYTES_MAX).decode(errors="replace")
        for found in re.finditer(r"""["']?component["']?\s*:\s*["']?(/[\w.{}/-]+)""", text):
            yield found.group(1)


def _flow_files() -> list[Path]:
    found = (path for path in Path().iterdir() if path.suffix in (".yaml", ".yml", ".json") and path.is_file())
    return sorted(islice(found, READ_FILES_MAX))


def _config(ctx: typer.Context) -> "Config":
    from stepflow.cli.input.documents import read_config

    return read_config(ctx.params.get("config"))


def _server(ctx: typer.Context) -> str | None:
    return ctx.params.get("server")


def _ask_mesh(ctx: typer.Context, work: "Callable[[Client], Awaitable[_T]]") -> _T:
    import asyncio

    from stepflow.cli import remote
    from stepflow.cli.target import choose_mesh

    async def connected() -> _T:
        server = choose_mesh(_server(ctx), quiet=True)
        async with asyncio.timeout(MESH_S), remote.connect(server, MESH_S) as client:
            return await work(client)

    return asyncio.run(connected())


def _sentence(description: str | None) -> str:
    """Return the first line of a description."""
    return (description or "").strip().partition("\n")[0]


__all__ = [
    "SHELLS",
    "attach",
    "complete_component",
    "complete_flow",
    "complete_flow_name",
    "complete_flow_without_tag",
    "complete_plugin",
    "complete_run",
    "prepare",
    "script",
    "silent",
]
