"""Finding, reading and describing `stepflow-config.yml`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepflow.config import (
    KEEP_EVERYTHING,
    BuiltinPlugin,
    Config,
    ConfigInvalid,
    GrpcPlugin,
    McpPlugin,
    MockPlugin,
    RetentionConfig,
    RetryConfig,
    ServerLimits,
    StepflowPlugin,
    config_from_tree,
    default_config,
    discover,
    load_config,
    reload_config,
    resolve_plugin,
)
from stepflow.config.load import FILE_BYTES_MAX, FILE_NAMES, TEST_FILE_NAMES
from stepflow.errors import NotFound
from stepflow.flow import parse_path
from stepflow.retry import Backoff
from stepflow.routing.table import Rule

HERE = Path("/srv/flows")
BUILTIN = {"type": "builtin"}


def of_plugin(plugin: Any, **more: Any) -> Config:
    """A configuration with one plugin `p` on the route `/p`."""
    tree = {"plugins": {"p": plugin}, "routes": {"/p": [{"plugin": "p"}]}, **more}
    return config_from_tree(tree, source="inline", base_dir=HERE)


def of_routes(routes: Any) -> Config:
    tree = {"plugins": {"b": BUILTIN, "c": BUILTIN}, "routes": routes}
    return config_from_tree(tree, source="inline", base_dir=HERE)


def written(folder: Path, text: str, name: str = "stepflow-config.yml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# --- finding ---


def test_no_configuration_is_found_in_empty_folders(tmp_path: Path) -> None:
    assert discover(tmp_path, tmp_path) is None


@pytest.mark.parametrize("name", FILE_NAMES)
def test_each_usual_name_is_found(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "", name)
    assert discover(tmp_path, tmp_path / "elsewhere") == path


def test_the_flows_folder_comes_before_the_current_one(tmp_path: Path) -> None:
    beside_flow, here = tmp_path / "flow", tmp_path / "here"
    beside_flow.mkdir()
    here.mkdir()
    in_here = written(here, "")
    assert discover(beside_flow, here) == in_here
    beside = written(beside_flow, "", "stepflow_config.yaml")
    assert discover(beside_flow, here) == beside


def test_two_configurations_in_one_folder_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "")
    written(tmp_path, "", "stepflow_config.yml")
    with pytest.raises(ConfigInvalid, match=r"stepflow-config\.yml.*stepflow_config\.yml"):
        discover(tmp_path, tmp_path)


@pytest.mark.parametrize("name", TEST_FILE_NAMES)
def test_a_test_configuration_counts_for_tests_only(tmp_path: Path, name: str) -> None:
    usual = written(tmp_path, "")
    for_tests = written(tmp_path, "", name)
    assert discover(tmp_path, tmp_path) == usual
    assert discover(tmp_path, tmp_path, test=True) == for_tests


def test_a_test_configuration_in_the_current_folder_does_not_count(tmp_path: Path) -> None:
    flow_dir = tmp_path / "flow"
    flow_dir.mkdir()
    written(tmp_path, "", TEST_FILE_NAMES[0])
    assert discover(flow_dir, tmp_path, test=True) is None


def test_a_folder_with_the_name_of_a_configuration_is_none(tmp_path: Path) -> None:
    (tmp_path / "stepflow-config.yml").mkdir()
    assert discover(tmp_path, tmp_path) is None


# --- the default ---


def test_without_a_file_builtins_are_at_builtin(tmp_path: Path) -> None:
    config = default_config(tmp_path)
    assert config.plugins == {"builtin": BuiltinPlugin()}
    assert config.routes == {"/builtin": (Rule("builtin"),)}
    assert config.working_directory == tmp_path
    assert config.source is None
    assert config.retry is None


def test_the_default_loads_neither_pydantic_nor_yaml() -> None:
    program = """
import sys, pathlib
from stepflow.config.load import default_config, discover
default_config(pathlib.Path("."))
discover(pathlib.Path("/nowhere"), pathlib.Path("/nowhere"))
heavy = {"pydantic", "yaml", "httpx", "mcp", "grpc", "ruamel", "structlog", "rich"} & sys.modules.keys()
sys.exit(f"loaded: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# --- reading files ---


def test_a_file_gives_plugins_routes_and_retries(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
plugins:
  tools: {type: mcp, command: uvx, args: [some-server, --port, 80], env: {DEBUG: true}}
  builtin: {type: builtin}
routes:
  /tools:
    - plugin: tools
      conditions: [{path: $.kind, value: null}]
      componentAllow: [a, b]
      componentDeny: [b]
      queueName: gpu
  /builtin: [{plugin: builtin}]
retry:
  transportMaxRetries: 0
  backoff: {type: constant, delayMs: 5}
""",
    )
    config = load_config(path)
    assert config.source == path
    assert config.working_directory == tmp_path
    assert config.plugins["tools"] == McpPlugin(
        command="uvx", args=("some-server", "--port", "80"), env={"DEBUG": "true"}
    )
    conditions = ((parse_path("$.kind"), None),)
    allow, deny = frozenset("ab"), frozenset("b")
    assert config.routes["/tools"] == (Rule("tools", conditions, allow, deny, {"queueName": "gpu"}),)
    assert config.retry.transport_max_retries == 0
    assert config.retry.backoff == Backoff("constant", 5, 5)
    assert config.warnings == ()


def test_json_files_are_read_too(tmp_path: Path) -> None:
    path = written(tmp_path, '{"plugins": {"b": {"type": "builtin"}}, "routes": {"/": [{"plugin": "b"}]}}', "c.json")
    assert load_config(path).routes == {"/": (Rule("b"),)}


def test_the_working_directory_starts_at_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    path = written(tmp_path, "workingDirectory: work\nallowedPaths: [../data, /var/lib]\nplugins: {}\nroutes: {}\n")
    config = load_config(path)
    assert config.working_directory == tmp_path / "work"
    assert config.allowed_paths == (tmp_path / "../data", Path("/var/lib"))


def test_a_bare_file_name_still_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "plugins: {}\nroutes: {}\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("stepflow-config.yml").working_directory == tmp_path


def test_a_missing_working_directory_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, "plugins: {}\nroutes: {}\nworkingDirectory: nowhere\n")
    with pytest.raises(ConfigInvalid, match=r"stepflow-config\.yml:3:\d+: workingDirectory: .*nowhere is not a folder"):
        load_config(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        load_config(tmp_path / "none.yml")
    assert caught.value.reason == "CONFIG_NOT_FOUND"


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        load_config(tmp_path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    with path.open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    with pytest.raises(ConfigInvalid, match="the limit is"):
        load_config(path)


def test_a_device_is_read_up_to_the_limit() -> None:
    with pytest.raises(ConfigInvalid, match="the limit is"):
        load_config(Path("/dev/zero"))


def test_a_configuration_that_has_become_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    os.mkfifo(path)
    with pytest.raises(ConfigInvalid, match="not a regular file"):
        reload_config(path)


def test_a_configuration_that_has_become_a_loop_of_links_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.symlink_to(path)
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        reload_config(path)


def test_malformed_yaml_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(written(tmp_path, "plugins:\n  a: {type: [\n"))
    assert "stepflow-config.yml:" in caught.value.message
    assert caught.value.line


@pytest.mark.parametrize("text", ["", "5", "[]", "text"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigInvalid, match="must be a mapping"):
        load_config(written(tmp_path, text))


def test_all_problems_of_a_file_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
plugins:
  a: {type: mcp}
  b: {type: nonsense}
routes:
  /x/y: [{plugin: a}]
  /z: [{plugin: builtin}]
""",
    )
    with pytest.raises(ConfigInvalid) as caught:
        load_config(path)
    lines = caught.value.message.splitlines()
    assert [line.removeprefix(f"{path}:").partition(":")[0] for line in lines] == ["2", "3", "5", "6"]
    assert (caught.value.line, caught.value.field) == (2, "plugins.a")


def test_many_problems_are_counted_instead_of_listed() -> None:
    with pytest.raises(ConfigInvalid, match=r"and 15 more$"):
        config_from_tree(
            {"plugins": {f"p{n}": {"type": "x"} for n in range(25)}, "routes": {}}, source="inline", base_dir=HERE
        )


# --- plugins ---


def test_a_stepflow_server_has_upstreams_keys_and_ours() -> None:
    plugin = of_plugin(
        {
            "type": "stepflow",
            "transport": "stdio",
            "command": "python",
            "args": ["server.py"],
            "env": {"A": "b"},
            "inheritEnv": True,
            "processes": 4,
            "concurrency": 2,
            "startTimeout": "5s",
            "requestTimeout": "500ms",
            "lineBytesMax": 524288,
        }
    ).plugins["p"]
    assert plugin == StepflowPlugin(
        command="python",
        args=("server.py",),
        env={"A": "b"},
        inherit_env=True,
        processes=4,
        concurrency=2,
        start_timeout_ms=5_000,
        request_timeout_ms=500,
        line_bytes_max=524_288,
    )


@pytest.mark.parametrize("kind", [{"type": "stepflow"}, {"type": "mcp"}, {"type": "grpc", "queueName": "q"}])
def test_every_kind_of_server_takes_limits(kind: dict[str, str]) -> None:
    def limits_of(**limits: Any) -> Any:
        return of_plugin({**kind, "command": "x", "limits": limits}).plugins["p"].limits

    assert limits_of(memory="512MiB", openFiles=64) == ServerLimits(memory_bytes=512 * 1024**2, open_files=64)
    assert limits_of(memory="2 GiB") == ServerLimits(memory_bytes=2 * 1024**3)
    assert limits_of() == ServerLimits()
    for limits in ({"memory": "512"}, {"memory": 512}, {"memory": "512MB"}, {"memory": "0MiB"}, {"openFiles": 3}):
        with pytest.raises(ConfigInvalid, match=r"plugins\.p\.limits\.(memory|openFiles)"):
            limits_of(**limits)


def test_an_mcp_server_with_a_url_speaks_http() -> None:
    plugin = of_plugin({"type": "mcp", "url": "https://mcp.example/mcp", "headers": {"X-Key": "$KEY"}}).plugins["p"]
    assert plugin == McpPlugin(transport="streamable-http", url="https://mcp.example/mcp", headers={"X-Key": "$KEY"})


def test_a_grpc_plugin_is_read_with_times_in_milliseconds() -> None:
    plugin = of_plugin({"type": "grpc", "queueName": "q", "queueTimeoutSecs": 2, "executionTimeoutSecs": 3})
    assert plugin.plugins["p"] == GrpcPlugin(queue_name="q", queue_timeout_ms=2_000, execution_timeout_ms=3_000)


def test_builtin_takes_the_address_of_its_language_model() -> None:
    plugin = of_plugin(
        {"type": "builtin", "openai": {"baseUrl": "http://llm", "apiKeyEnv": "K", "model": "m", "timeout": "1m"}}
    ).plugins["p"]
    assert isinstance(plugin, BuiltinPlugin)
    openai = plugin.openai
    assert (openai.base_url, openai.api_key_env, openai.model, openai.timeout_ms) == ("http://llm", "K", "m", 60_000)


def test_null_is_an_absent_key() -> None:
    config = of_plugin(
        {"type": "stepflow", "command": "x", "args": None, "env": None, "processes": None},
        retry=None,
        workingDirectory=None,
        storageConfig=None,
    )
    assert config.plugins["p"] == StepflowPlugin(command="x")
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (5, "must be a mapping"),
        ({}, "needs a `type`"),
        ({"type": "nats", "url": "x"}, "NATS workers are not supported"),
        ({"type": "stdio", "command": "x"}, "`type: stepflow` with `transport: stdio`"),
        ({"type": "step-flow"}, "did you mean `stepflow`"),
        ({"type": "mcp", "args": []}, "needs a `command`"),
        ({"type": "mcp", "transport": "streamable-http"}, "needs a `url`"),
        ({"type": "stepflow"}, "needs a `command`"),
        ({"type": "stepflow", "transport": "http"}, "needs a `url`"),
        ({"type": "stepflow", "transport": "http", "url": "http://x", "command": "y"}, "and not both"),
        ({"type": "stepflow", "transport": "http", "url": "http://x", "blobThreshold": -1}, "plugins.p.blobThreshold"),
        ({"type": "stepflow", "transport": "pipe", "command": "x"}, "plugins.p.transport: must be"),
        ({"type": "stepflow", "transport": "grpc"}, "are `type: grpc`"),
        ({"type": "grpc"}, "plugins.p.queueName: is required"),
        ({"type": "grpc", "queueName": "q", "queueTimeoutSecs": 0}, "queueTimeoutSecs"),
        ({"type": "mcp", "command": "x", "args": "y"}, "plugins.p.args"),
        ({"type": "mcp", "command": "x", "args": [1.5]}, r"plugins.p.args\[0\]: is a number with a fraction"),
        ({"type": "mcp", "command": "x", "env": {"A": ["b"]}}, "plugins.p.env.A"),
        ({"type": "mcp", "command": 5}, "plugins.p.command"),
        ({"type": "mcp", "command": "x", "startTimeout": 5}, "duration like `30s`"),
        ({"type": "mcp", "command": "x", "startTimeout": "5 parsecs"}, "plugins.p.startTimeout"),
        ({"type": "stepflow", "command": "x", "processes": 0}, "plugins.p.processes"),
        ({"type": "mcp", "command": "${X"}, "plugins.p.command: "),
        ({"type": "mcp", "command": "x", "args": ["${}"]}, r"plugins.p.args\[0\]: "),
        ({"type": "mock"}, "plugins.p.components: is required"),
    ],
)
def test_a_wrong_plugin_is_told_with_its_key(plugin: Any, message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        of_plugin(plugin)


def test_plugins_and_routes_are_required() -> None:
    with pytest.raises(ConfigInvalid, match=r"plugins: is required\ninline: routes: is required"):
        config_from_tree({}, source="inline", base_dir=HERE)


def test_a_misspelt_required_key_is_named_with_the_missing_one() -> None:
    with pytest.raises(ConfigInvalid, match=r"routes: is required(.|\n)*did you mean `routes`"):
        config_from_tree({"plugins": {}, "rotues": {}}, source="inline", base_dir=HERE)


# --- mock behaviours ---

MOCK = """
plugins:
  mock:
    type: mock
    components:
      /c:
        input_schema: {type: object}
        output_schema: null
        behaviors:
          {b: 1, a: [2]}: {outcome: success, result: {x: null}}
          text: {outcome: failed, error: {code: INVALID_INPUT, message: no, data: {why: 1}}}
          "6": {error: quoted}
          5: {error: number}
          null: {outcome: success, result: null}
routes: {/mock: [{plugin: mock}]}
"""


def test_mock_behaviours_go_by_json_values(tmp_path: Path) -> None:
    plugin = load_config(written(tmp_path, MOCK)).plugins["mock"]
    assert isinstance(plugin, MockPlugin)
    behaviors = plugin.components["/c"].behaviors
    assert set(behaviors) == {b'{"a":[2],"b":1}', b'"text"', b'"6"', b"5", b"null"}
    assert behaviors[b'{"a":[2],"b":1}'].result == b'{"x":null}'
    assert behaviors[b"null"].result == b"null"
    assert behaviors[b"5"].error == "number"
    failure = behaviors[b'"text"'].failure
    assert failure is not None
    assert (failure.code.name, failure.message, failure.data) == ("INVALID_INPUT", "no", b'{"why":1}')


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"input_schema": {}, "output_schema": {}}, "must be a mapping with"),
        ({"input_schema": {}, "output_schema": {}, "behaviors": []}, "must map inputs"),
        ({"input_schema": {}, "output_schema": {}, "behaviors": {"a": 5}}, "must be `outcome: success`"),
        ({"input_schema": {}, "output_schema": {}, "behaviors": {"a": {"outcome": "skipped"}}}, "must be `outcome"),
        ({"input_schema": {}, "output_schema": {}, "behaviors": {"a": {"outcome": "success"}}}, "must be `outcome"),
    ],
)
def test_a_wrong_mock_component_is_told(component: Any, message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        of_plugin({"type": "mock", "components": {"/c": component}})


@pytest.mark.parametrize(
    ("code", "message"), [(3, "error.code: must be the name"), ("COMPONENT_FAILD", "did you mean `COMPONENT_FAILED`")]
)
def test_a_mock_failure_has_the_name_of_a_code(code: Any, message: str) -> None:
    behaviors = {"a": {"outcome": "failed", "error": {"code": code, "message": "x"}}}
    component = {"input_schema": {}, "output_schema": {}, "behaviors": behaviors}
    with pytest.raises(ConfigInvalid, match=message):
        of_plugin({"type": "mock", "components": {"/c": component}})


def test_a_mock_path_needs_its_slash() -> None:
    with pytest.raises(ConfigInvalid, match="write `/c`"):
        of_plugin({"type": "mock", "components": {"c": {}}})


# --- routes ---


@pytest.mark.parametrize(
    ("key", "prefix"),
    [("/", "/"), ("/b", "/b"), ("/b/{*component}", "/b"), ("/b/{*rest}", "/b"), ("/{*component}", "/")],
)
def test_these_keys_are_routes(key: str, prefix: str) -> None:
    assert of_routes({key: [{"plugin": "b"}]}).routes == {prefix: (Rule("b"),)}


@pytest.mark.parametrize(
    ("key", "way_out"),
    [
        ("", "`/` or one segment"),
        ("b", "write `/b`"),
        ("/m/", "write `/m`"),
        ("/python/core", "write `/python`"),
        ("/a/{*component}/b", "write `/a`"),
        ("/{component}", "is not a route"),
        ("//", "is not a route"),
    ],
)
def test_other_keys_are_refused_with_the_way_out(key: str, way_out: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        of_routes({key: [{"plugin": "b"}]})
    assert way_out in caught.value.message


def test_two_spellings_of_one_route_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="a second time"):
        of_routes({"/b": [{"plugin": "b"}], "/b/{*component}": [{"plugin": "c"}]})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"plugin": "b"}, "must be a list of rules"),
        ([5], r'routes\["/x"\]\[0\]'),
        ([{}], "plugin: is required"),
        ([{"plugin": "bb"}], "no plugin is called `bb`; did you mean `b`"),
        ([{"plugin": "b", "conditions": [5]}], "must be a mapping with `path` and `value`"),
        ([{"plugin": "b", "conditions": [{"path": "$.a"}]}], "must be a mapping with `path` and `value`"),
        ([{"plugin": "b", "conditions": [{"path": "$foo", "value": 1}]}], r"conditions\[0\].path"),
        ([{"plugin": "b", "conditions": [{"path": 1, "value": 1}]}], "must be a text"),
        ([{"plugin": "b", "componentAllow": "x"}], "componentAllow"),
    ],
)
def test_a_wrong_rule_is_told_with_its_place(rules: Any, message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        of_routes({"/x": rules})


# --- warnings ---


def test_unknown_keys_warn_with_a_suggestion_and_change_nothing() -> None:
    config = of_plugin({"type": "mcp", "command": "x", "arg": [1]}, retyr={}, retry={"transportMaxRetrys": 1})
    told = "\n".join(config.warnings)
    assert "retyr: is not a known key and has no effect; did you mean `retry`?" in told
    assert "plugins.p.arg: is not a known key and has no effect; did you mean `args`?" in told
    assert "did you mean `transportMaxRetries`?" in told
    assert config.retry == RetryConfig(transport_max_retries=3)


def test_keys_that_only_upstream_uses_do_not_warn() -> None:
    storage = {"type": "sqlite", "databaseUrl": "x"}
    config = of_plugin(
        BUILTIN,
        storageConfig=storage,
        leaseManager={"type": "etcd", "key_prefix": "x"},
        recovery={"enabled": False},
        blobApi={"enabled": False, "url": None},
    )
    assert config.warnings == ()
    assert config.storage == storage


def test_rule_parameters_that_look_like_slips_warn() -> None:
    rule = {"plugin": "b", "componentalow": ["x"], "params": {"a": 1}, "component": "y", "queueName": "z"}
    config = of_routes({"/x": [rule]})
    told = "\n".join(config.warnings)
    assert "did you mean `componentAllow`?" in told
    assert "params: is passed on as one parameter" in told
    assert "component: does not rename" in told
    assert "queueName" not in told


def test_warnings_name_the_line(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "plugins: {}\nroutes: {}\nstateStore: {}\n"))
    assert len(config.warnings) == 1
    assert config.warnings[0].startswith(f"{tmp_path}/stepflow-config.yml:3:1: stateStore: ")


# --- retries ---


@pytest.mark.parametrize(
    ("retry", "message"),
    [
        ({"transportMaxRetries": -1}, "retry.transportMaxRetries"),
        ({"transportMaxRetries": "3"}, "retry.transportMaxRetries"),
        ({"backoff": {"type": "linear"}}, "retry.backoff.type: must be one of"),
        ({"backoff": {"type": "constant", "delayMs": -1}}, "retry.backoff.delayMs"),
        ({"backoff": 5}, "retry.backoff"),
        (5, "retry: "),
    ],
)
def test_wrong_retries_are_told(retry: Any, message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        of_plugin(BUILTIN, retry=retry)


def test_an_unknown_member_of_the_back_off_warns() -> None:
    config = of_plugin(BUILTIN, retry={"backoff": {"type": "constant", "minDelayMs": 1}})
    assert config.retry.backoff == Backoff("constant", 1_000, 1_000)
    assert "retry.backoff.minDelayMs: is not a known key" in config.warnings[0]


# --- digest ---


def test_the_digest_ignores_layout_and_notices_values(tmp_path: Path) -> None:
    first = load_config(written(tmp_path, "plugins: {b: {type: builtin}}\nroutes: {/: [{plugin: b}]}\n"))
    again = load_config(
        written(tmp_path, "# the same\nroutes:\n  /:\n    - plugin: b\nplugins:\n  b:\n    type: builtin\n")
    )
    other = load_config(written(tmp_path, "plugins: {b: {type: builtin}}\nroutes: {/b: [{plugin: b}]}\n"))
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert len(first.digest) == 64


def test_the_digest_covers_mock_behaviours(tmp_path: Path) -> None:
    first = load_config(written(tmp_path, MOCK))
    other = load_config(written(tmp_path, MOCK.replace("{b: 1,", "{b: 2,")))
    assert first.digest != other.digest


# --- the documentation ---


def documented() -> list[str]:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "configuration.md").read_text()
    return re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(documented())))
def test_every_documented_configuration_loads_without_warnings(tmp_path: Path, number: int) -> None:
    config = load_config(written(tmp_path, documented()[number]))
    assert config.warnings == ()
    for name in config.plugins:
        resolve_plugin(config, name, {})


def test_every_type_of_plugin_is_documented(tmp_path: Path) -> None:
    configs = [load_config(written(tmp_path, text)) for text in documented()]
    types = {plugin.type for config in configs for plugin in config.plugins.values()}
    assert types == {"builtin", "mock", "mcp", "stepflow", "grpc"}


# --- retention ---


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        (None, KEEP_EVERYTHING),
        ({}, KEEP_EVERYTHING),
        ({"age": "7d"}, RetentionConfig(age_ms=7 * 86_400_000)),
        ({"age": "90s", "bytes": "10GiB"}, RetentionConfig(age_ms=90_000, size_bytes=10 << 30)),
        ({"age": "3650 d"}, RetentionConfig(age_ms=3_650 * 86_400_000)),
        ({"age": None, "bytes": "1 MiB"}, RetentionConfig(size_bytes=1 << 20)),
    ],
)
def test_retention_is_read_and_keeps_everything_by_default(retention: Any, expected: RetentionConfig) -> None:
    config = of_plugin(BUILTIN, retention=retention)
    assert config.retention == expected
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("retention", "message"),
    [
        ("7d", "retention: must be a mapping"),
        ("{age: 7}", "retention.age: must be a duration like `30s`"),
        ("{age: 0s}", "retention.age: a duration is a positive number"),
        ("{age: 40000d}", "retention.age: .* at most 36,500 days"),
        ("{age: -1d}", "retention.age: a duration is"),
        ("{age: inf}", "retention.age: a duration is"),
        ("{bytes: 1073741824}", "retention.bytes: must be a size like `512MiB`"),
        ("{bytes: 10GB}", "retention.bytes: must be a size like `512MiB`"),
        ("{bytes: 0GiB}", "retention.bytes: must be a size like `512MiB`"),
        ("{age: x, bytes: y}", r"retention.age: [\s\S]*retention.bytes: "),
    ],
)
def test_wrong_retention_is_told_with_its_line_and_field(tmp_path: Path, retention: str, message: str) -> None:
    path = tmp_path / "stepflow-config.yml"
    path.write_text(f"plugins: {{b: {{type: builtin}}}}\nroutes: {{/b: [{{plugin: b}}]}}\nretention: {retention}\n")
    with pytest.raises(ConfigInvalid, match=f"stepflow-config.yml:3:[0-9]+: {message}") as invalid:
        load_config(path)
    assert invalid.value.line == 3
    assert invalid.value.field.startswith("retention")


def test_a_misspelt_key_of_the_retention_warns() -> None:
    config = of_plugin(BUILTIN, retention={"ages": "7d"})
    assert config.retention == KEEP_EVERYTHING
    assert "retention.ages: is not a known key and has no effect; did you mean `age`?" in config.warnings[0]
