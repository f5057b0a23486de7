"""`stepflow-config.yml`: plugins, routes, retries. Import from here.

- `model`: the records of a configuration.
- `load`: finds and loads a file.
- `plain_reader`: the same for plain files, without pydantic.
- `reader`: from the tree of a file to a `Config`.
- `route_reader`: the section `routes`.
- `file_models`: the keys of a file, as pydantic models.
- `file_schema`: the JSON Schema of a file, made from the models.
- `problems`: problems and warnings of one reading (unknown keys), with their lines.
- `restart_ways`: which plugins have servers to restart, and how.
- `variables`: replaces `$VAR` in the texts of a plugin.
"""

from stepflow.config.load import config_from_tree, config_schema, default_config, discover, load_config, reload_config
from stepflow.config.model import (
    KEEP_EVERYTHING,
    NO_LIMITS,
    BuiltinPlugin,
    Config,
    ConfigInvalid,
    GrpcPlugin,
    McpPlugin,
    MockBehavior,
    MockComponent,
    MockPlugin,
    OpenAISettings,
    PluginConfig,
    RetentionConfig,
    RetryConfig,
    ServerLimits,
    StepflowPlugin,
    mock_key,
)
from stepflow.config.variables import resolve_plugin, values_used

__all__ = [
    "KEEP_EVERYTHING",
    "NO_LIMITS",
    "BuiltinPlugin",
    "Config",
    "ConfigInvalid",
    "GrpcPlugin",
    "McpPlugin",
    "MockBehavior",
    "MockComponent",
    "MockPlugin",
    "OpenAISettings",
    "PluginConfig",
    "RetentionConfig",
    "RetryConfig",
    "ServerLimits",
    "StepflowPlugin",
    "config_from_tree",
    "config_schema",
    "default_config",
    "discover",
    "load_config",
    "mock_key",
    "reload_config",
    "resolve_plugin",
    "values_used",
]
