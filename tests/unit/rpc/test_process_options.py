"""The options of the services."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import argparse

SERVICES = ("control_plane", "executor", "component_host")
NEEDED = ["--etcd", "e:1", "--blobs", "b"]


def parser_of(service: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = importlib.import_module(f"{service}.__main__").parser()
    return made


@pytest.mark.parametrize("service", SERVICES)
def test_every_option_of_a_service_refuses_an_empty_text(service: str, capfd: pytest.CaptureFixture[str]) -> None:
    parser = parser_of(service)
    names = [action.option_strings[-1] for action in parser._actions if action.option_strings and action.nargs is None]
    assert "--tls-ca" in names
    for name in names:
        for words in ([name, ""], [name, " "], [f"{name}="]):
            with pytest.raises(SystemExit) as ended:
                parser.parse_args([*NEEDED, *words])
            assert ended.value.code == 2
            assert f"{name} is given but empty" in capfd.readouterr().err


@pytest.mark.parametrize("service", SERVICES)
def test_options_with_values_are_read_as_before(service: str) -> None:
    assert parser_of(service).parse_args([*NEEDED, "--listen=h:1"]).listen == "h:1"
