"""The options common to several commands."""

import inspect
from dataclasses import fields

import pytest

from stepflow.cli.commands.run import run
from stepflow.cli.commands.submit import submit
from stepflow.cli.options import InputOptions, RunOptions, ValueOptions, VariableOptions, with_run_options

SHARED = [member.name for member in fields(RunOptions)]


@pytest.mark.parametrize("command", [run, submit], ids=lambda command: command.__name__)
def test_run_and_submit_have_the_shared_options_in_one_order(command: object) -> None:
    names = list(inspect.signature(command).parameters)  # type: ignore[arg-type]  # a function
    first = names.index(SHARED[0])
    assert names[first : first + len(SHARED)] == SHARED
    assert "given" not in names


def test_a_command_gets_the_shared_options_as_one_value() -> None:
    seen: list[RunOptions] = []

    @with_run_options
    def command(*, given: RunOptions, other: int) -> None:
        seen.append(given)
        assert other == 1

    given = RunOptions(input_json="1", variables_yaml="a: 1", var=["b=2"], env_variables=True, overrides_json="{}")
    command(**{name: getattr(given, name) for name in SHARED}, other=1)
    assert seen == [given]
    assert given.of_input == InputOptions(json="1")
    assert given.of_variables == VariableOptions(ValueOptions(yaml="a: 1", pairs=("b=2",)), from_environment=True)
    assert given.of_overrides == ValueOptions(json="{}")
