"""`stepflow-config.yml`: plugins, routes, retries. Import from here.

`model` has the records, `variables` replaces `$VAR`, `load` finds and reads files
(with `file_models`, `reader`).
"""

from stepflow.config.load import config_from_tree, default_config, discover, load_config
from stepflow.config.model import (
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
    RetryConfig,
    ServerLimits,
    StepflowPlugin,
    mock_key,
)
from stepflow.config.variables import resolve_plugin

__all__ = [
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
    "RetryConfig",
    "ServerLimits",
    "StepflowPlugin",
    "config_from_tree",
    "default_config",
    "discover",
    "load_config",
    "mock_key",
    "resolve_plugin",
]
