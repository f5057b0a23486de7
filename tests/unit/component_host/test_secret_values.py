"""Which values of the environment a host hides for a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from component_host.secret_values import secret_values
from stepflow.config import config_from_tree

if TYPE_CHECKING:
    from pathlib import Path

ENVIRON = {
    "DB_PASS": "pass-of-nobody",
    "GITHUB_PAT": "pat-of-nobody",
    "SERVICE_TOKEN": "token-of-nobody",
    "REGION": "eu-central-1",
    "HOME": "/home/of-nobody",
    "LONG": "/" + "x" * 10_000,
}


def hidden(tmp_path: Path, environ: dict[str, str] | None = None, **plugin: Any) -> set[str]:
    tree = {"plugins": {"p": {"type": "stepflow", "transport": "stdio", "command": "c", **plugin}}, "routes": {}}
    return secret_values(config_from_tree(tree, source="test", base_dir=tmp_path), "p", environ or ENVIRON)


def test_values_that_the_configuration_names_are_hidden_whatever_they_are_called(tmp_path: Path) -> None:
    found = hidden(tmp_path, args=["--a=$DB_PASS", "${NONE:-${REGION}}"], env={"X": "$HOME"})
    assert found == {"pass-of-nobody", "eu-central-1", "/home/of-nobody", "token-of-nobody"}


def test_defaults_are_configuration_and_not_hidden(tmp_path: Path) -> None:
    assert hidden(tmp_path, args=["${NONE:-default-of-nobody}"]) == {"token-of-nobody"}


def test_a_literal_value_under_a_secret_looking_name_is_hidden(tmp_path: Path) -> None:
    assert hidden(tmp_path, env={"API_KEY": "key-of-nobody"}) == {"key-of-nobody", "token-of-nobody"}


def test_a_server_that_inherits_the_environment_knows_all_values_but_ordinary_ones(tmp_path: Path) -> None:
    environ = {**ENVIRON, "WORKSPACE": str(tmp_path), "FOLDERS": f"{tmp_path}:/nowhere"}
    assert hidden(tmp_path, environ, inheritEnv=True) == {
        "pass-of-nobody",
        "pat-of-nobody",
        "token-of-nobody",
        "eu-central-1",
        ENVIRON["LONG"],
    }
