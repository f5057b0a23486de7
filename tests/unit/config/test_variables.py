"""Environment variables in the settings of plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepflow.config import (
    BuiltinPlugin,
    Config,
    ConfigInvalid,
    McpPlugin,
    MockPlugin,
    StepflowPlugin,
    config_from_tree,
    resolve_plugin,
)
from stepflow.config.variables import TemplateInvalid, UnsetVariable, check_template, substitute


def of_plugin(plugin: Any) -> Config:
    """A configuration with one plugin `p` on the route `/p`."""
    tree = {"plugins": {"p": plugin}, "routes": {"/p": [{"plugin": "p"}]}}
    return config_from_tree(tree, source="inline", base_dir=Path("/srv/flows"))


ENVIRON = {"A": "apple", "EMPTY": "", "NESTED": "$A"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("$A", "apple"),
        ("${A}", "apple"),
        ("x-${A}-$A.y", "x-apple-apple.y"),
        ("$A_B${A}", None),
        ("${NONE:default}", "default"),
        ("${NONE:-default}", "default"),
        ("${NONE:--dash}", "-dash"),
        ("${NONE:}", ""),
        ("${NONE:-}", ""),
        ("${NONE:http://host:80}", "http://host:80"),
        ("${EMPTY:-default}", ""),
        ("${A:unused}", "apple"),
        ("${A:$NONE}", "apple"),
        ("${NONE:$A}", "apple"),
        ("${NONE:${ALSO:-${A}}}", "apple"),
        ("${NONE:$ALSO}", None),
        ("$NONE", None),
        ("${NONE}", None),
        ("$NESTED", "$A"),
        (r"\$A", "$A"),
        (r"\${A}", "${A}"),
        (r"\\$A", "\\apple"),
        (r"${NONE:a\}b}", "a}b"),
        (r"c:\temp\new", r"c:\temp\new"),
        ("costs 5$", "costs 5$"),
        ("$5 $", "$5 $"),
        ("{A}", "{A}"),
    ],
)
def test_variables_are_replaced(text: str, result: str | None) -> None:
    check_template(text)
    if result is None:
        with pytest.raises(UnsetVariable):
            substitute(text, ENVIRON)
    else:
        assert substitute(text, ENVIRON) == result


@pytest.mark.parametrize("text", ["${", "${A", "${}", "${1}", "${A-b}", "${A b}", "${A:b", "${A:${B}", "${:x}"])
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(TemplateInvalid):
        check_template(text)
    with pytest.raises(TemplateInvalid):
        substitute(text, ENVIRON)


def test_defaults_nest_only_so_deep() -> None:
    with pytest.raises(TemplateInvalid, match="nested deeper"):
        check_template("${A:" * 2_000 + "}" * 2_000)


def test_variables_are_replaced_in_every_text_of_a_plugin() -> None:
    config = of_plugin(
        {
            "type": "stepflow",
            "command": "${PYTHON:-python}",
            "args": ["$A", "plain"],
            "env": {"KEY": "${A}"},
            "url": "http://$A",
            "headers": {"X": "$A"},
        }
    )
    assert resolve_plugin(config, "p", ENVIRON) == StepflowPlugin(
        command="python", args=("apple", "plain"), env={"KEY": "apple"}, url="http://apple", headers={"X": "apple"}
    )


@pytest.mark.parametrize(
    "plugin",
    [
        {"type": "mcp", "command": "x", "args": ["$A"]},
        {"type": "grpc", "queueName": "q", "args": ["$A"]},
        {"type": "stepflow", "command": "x", "args": ["$A"]},
    ],
)
def test_every_type_of_plugin_has_variables(plugin: Any) -> None:
    replaced = resolve_plugin(of_plugin(plugin), "p", ENVIRON)
    assert not isinstance(replaced, (BuiltinPlugin, MockPlugin))
    assert replaced.args == ("apple",)


def test_the_address_of_a_language_model_may_be_a_variable() -> None:
    replaced = resolve_plugin(of_plugin({"type": "builtin", "openai": {"baseUrl": "http://$A"}}), "p", ENVIRON)
    assert isinstance(replaced, BuiltinPlugin)
    assert replaced.openai.base_url == "http://apple"


def test_an_unset_variable_names_plugin_key_and_variable() -> None:
    config = of_plugin({"type": "mcp", "command": "x", "args": ["ok", "$TOKEN"], "env": {"B": "$TOKEN"}})
    with pytest.raises(ConfigInvalid) as caught:
        resolve_plugin(config, "p", {"A": "secret"})
    assert caught.value.field == "plugins.p.args[1]"
    assert "`TOKEN` is not set" in caught.value.message
    assert "secret" not in caught.value.message


def test_a_configuration_loads_without_the_variables_of_its_plugins() -> None:
    config = of_plugin({"type": "mcp", "command": "x", "env": {"B": "$NOT_SET_ANYWHERE"}})
    assert config.plugins["p"] == McpPlugin(command="x", env={"B": "$NOT_SET_ANYWHERE"})


def test_values_of_variables_do_not_show_in_a_printed_plugin() -> None:
    config = of_plugin({"type": "mcp", "command": "x", "env": {"B": "$A"}, "url": "http://u", "headers": {"X": "$A"}})
    assert "apple" not in repr(resolve_plugin(config, "p", ENVIRON))


def test_wrong_values_are_not_repeated_in_errors() -> None:
    with pytest.raises(ConfigInvalid) as caught:
        of_plugin({"type": "mcp", "command": "x", "env": {"KEY": ["hunter2"]}, "args": {"hunter2": 1}})
    assert "hunter2" not in caught.value.message
