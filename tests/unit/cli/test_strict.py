"""An option or argument that is given but empty is an error, in every command."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from stepflow.cli import console
from stepflow.cli.__main__ import main
from stepflow.cli.app import app


def parameters() -> list[tuple[list[str], Any]]:
    """Return each command's path with each of its parameters that take a text."""
    found: list[tuple[list[str], Any]] = []
    todo: list[tuple[list[str], Any]] = [([], typer.main.get_command(app))]
    while todo:
        path, command = todo.pop()
        takes_text = [p for p in command.params if not (getattr(p, "is_flag", False) or getattr(p, "count", False))]
        found += [(path, parameter) for parameter in takes_text]
        todo += [([*path, name], below) for name, below in getattr(command, "commands", {}).items()]
    return found


@pytest.mark.parametrize("empty", ["", "  "])
@pytest.mark.parametrize(
    ("path", "parameter"), parameters(), ids=lambda value: "-".join(value) if isinstance(value, list) else value.name
)
def test_every_option_and_argument_refuses_an_empty_text(
    path: list[str], parameter: Any, empty: str, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [empty] if parameter.param_type_name == "argument" else [parameter.opts[0], empty]
    assert main([*path, *given]) == console.EXIT_USAGE
    assert "error[OPTION_EMPTY]" in capfd.readouterr().err


def test_an_empty_text_behind_an_equals_sign_is_refused_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--flow", "flow.yaml", "--key="]) == console.EXIT_USAGE
    assert "--key is given but empty" in capfd.readouterr().err


def test_an_argument_is_named_as_in_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    main(["flows", "show", ""])
    assert ": NAME[@TAG] is given but empty" in capfd.readouterr().err


def test_an_option_without_its_value_is_still_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "get", "", "--store"]) == console.EXIT_USAGE
    assert "OPTION_EMPTY" not in capfd.readouterr().err


def test_a_flow_name_with_an_empty_label_deletes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["flows", "delete", "greet@", "--server", "localhost:1"]) != console.EXIT_OK
    assert "error[LABEL_INVALID]" in capfd.readouterr().err
