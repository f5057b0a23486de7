"""What `stepflow dev --reload` does with a change, where no host has to be asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from stepflow.config import load_config
from stepflow.dev.reload import Reloader

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.dev.mesh import DevMesh

FIXED_PORT = """
plugins:
  tools: {type: mcp, transport: streamable-http, command: python, args: [tools.py], url: "http://127.0.0.1:8080/mcp"}
  hosted: {type: mcp, transport: stdio, command: uvx, args: [some-server]}
routes:
  /tools: [{plugin: tools}]
  /hosted: [{plugin: hosted}]
"""


class NoMesh:
    """A mesh that must not be asked."""

    services = ()

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of the mesh was used")


def reloader(folder: Path, told: list[str]) -> Reloader:
    (folder / "stepflow-config.yml").write_text(FIXED_PORT)
    (folder / "tools.py").write_text("x = 1\n")
    config = load_config(folder / "stepflow-config.yml")
    return Reloader(cast("DevMesh", NoMesh()), config, told.append, lambda text: told.append(f"warning: {text}"))


def test_a_server_that_must_end_before_its_successor_is_not_ended_for_a_file_with_a_syntax_error(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    reloading = reloader(tmp_path, told)
    (tmp_path / "tools.py").write_text("x = 1\ndef f(:\n")
    asyncio.run(reloading._react({tmp_path / "tools.py"}))
    assert told[0].endswith("tools.py changed: restarting tools …")
    assert told[1].startswith(f"warning: tools was not restarted: {tmp_path / 'tools.py'}:2: ")


def test_a_configuration_that_is_broken_or_gone_reaches_no_host(tmp_path: Path) -> None:
    told: list[str] = []
    reloading = reloader(tmp_path, told)
    path = tmp_path / "stepflow-config.yml"
    path.write_text(FIXED_PORT.replace("type: mcp", "type: mpc", 1))
    asyncio.run(reloading._react({path}))
    path.unlink()
    asyncio.run(reloading._react({path}))
    assert "stays in force" in told[0]
    assert f"{path}:3:" in told[0]
    assert "stays in force" in told[1]
    assert "does not exist" in told[1]


def test_it_says_what_is_watched_and_what_cannot_be(tmp_path: Path) -> None:
    watched, blind = reloader(tmp_path, []).describe()
    assert watched.endswith("stepflow-config.yml, the files of tools")
    assert blind == "no local files: hosted (stepflow components restart PLUGIN)"
