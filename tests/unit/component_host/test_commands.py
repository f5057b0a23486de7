"""The command of a server that is not found: what the error tells to write instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from component_host.supervision.spec import ProcessSpec, resolve_command
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from pathlib import Path


def advice(folder: Path, command: str, *args: str) -> str:
    fields: dict[str, Any] = {"env": {}, "inherit_env": False, "environ": {"PATH": "/usr/bin:/bin"}}
    spec = ProcessSpec(plugin="p", command=command, args=args, working_directory=str(folder), **fields)
    with pytest.raises(Invalid) as error:
        resolve_command(spec)
    assert error.value.reason == "COMMAND_NOT_FOUND"
    return error.value.message


@pytest.mark.parametrize(
    ("command", "args", "better"),
    [
        ("python server.py", (), "write `command: python` and `args: [server.py]`"),
        ("python ./server.py", (), "write `command: python` and `args: [./server.py]`"),
        ("uv run server.py", ("--x",), "write `command: uv` and `args: [run, server.py, …]`"),
        ("node -r x server.js", (), 'write `command: node` and `args: ["-r", x, server.js]`'),
        ("server.py", (), "write `command: python` and `args: [server.py]`"),
        ("./server.py", (), "write `command: python` and `args: [./server.py]`"),
    ],
)
def test_words_that_belong_in_the_arguments_are_told(
    tmp_path: Path, command: str, args: tuple[str, ...], better: str
) -> None:
    (tmp_path / "server.py").write_text("")
    message = advice(tmp_path, command, *args)
    assert message.endswith(better)
    assert ("one program" in message) is (" " in command)


@pytest.mark.parametrize("command", ["no-such-program", "./no-such.py", "gone.py"])
def test_a_plain_program_that_is_missing_is_to_be_installed(tmp_path: Path, command: str) -> None:
    assert "install it, or correct `command`" in advice(tmp_path, command)
