"""The JSON Schema (draft 2020-12) of configuration files, made from the models of `file_models`.

Every file that the schema accepts is one that the reader accepts, with these exceptions, which no schema can say: rules
name plugins of the file, two keys of routes may mean one route, and the working directory exists.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from stepflow.config.file_models import PLUGIN_MODELS, FileModel, Model, RuleModel
from stepflow.errors import Code
from stepflow.flow.flow_schema import DIALECT, PATH_PATTERN, backoff_schema, or_null

ROUTE_PATTERN = r"^/[^/{}]*(?:/\{\*[^{}/]+\})?$"


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of configuration files."""
    models: list[type[Model]] = [FileModel, RuleModel, *PLUGIN_MODELS.values()]
    _, found = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = {name: _finished(schema) for name, schema in found["$defs"].items()}

    for kind, model in PLUGIN_MODELS.items():
        definitions[model.__name__]["properties"]["type"] = {"const": kind, "description": "Type of the plugin."}
    definitions["MockModel"]["properties"]["components"] |= _mock_components()
    definitions["RuleModel"] |= {"additionalProperties": {"description": "A parameter for the plugin."}}
    definitions["RuleModel"]["properties"]["conditions"]["items"] = _condition()
    backoff = definitions["RetryModel"]["properties"]["backoff"]
    definitions["RetryModel"]["properties"]["backoff"] = or_null(
        {"description": backoff["description"], **backoff_schema()}
    )

    file = definitions.pop("FileModel")
    file["properties"]["plugins"]["additionalProperties"] = _plugin()
    file["properties"]["routes"] |= {
        "propertyNames": {"pattern": ROUTE_PATTERN},
        "additionalProperties": {"type": "array", "items": {"$ref": "#/$defs/RuleModel"}},
    }
    return {"$schema": DIALECT, **file, "title": "StepFlow configuration", "$defs": dict(sorted(definitions.items()))}


def _finished(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a model without pydantic's titles; its optional members may be null."""
    properties: dict[str, Any] = {}
    for name, member in schema.get("properties", {}).items():
        kept = {key: value for key, value in member.items() if key != "title"}
        if "default" in kept:
            default = _default(kept.pop("default"), kept)
            kept |= {} if default is None else {"default": default}
        is_required = name in schema.get("required", ())
        properties[name] = kept if is_required or {"type": "null"} in kept.get("anyOf", ()) else or_null(kept)

    rest = {key: value for key, value in schema.items() if key not in ("title", "description")}
    return {**rest, "properties": properties, "additionalProperties": False}


def _default(value: Any, member: dict[str, Any]) -> Any:
    """Return a default as files write it, or None if it says nothing."""
    if isinstance(value, int) and "pattern" in member:
        return f"{value // 60_000}m" if value % 60_000 == 0 else f"{value // 1_000}s"
    return None if value in (None, "", [], {}) or isinstance(value, (dict, list)) else value


def _plugin() -> dict[str, Any]:
    chosen = [
        {
            "if": {"properties": {"type": {"const": kind}}, "required": ["type"]},
            "then": {"$ref": f"#/$defs/{model.__name__}"},
        }
        for kind, model in PLUGIN_MODELS.items()
    ]
    types = {"enum": list(PLUGIN_MODELS), "description": "Type of the plugin."}
    return {"type": "object", "properties": {"type": types}, "required": ["type"], "allOf": chosen}


def _condition() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "path": {"type": "string", "pattern": PATH_PATTERN, "description": "Path into the input of the step."},
            "value": {"description": "The value that the input must have there."},
        },
        "required": ["path", "value"],
        "additionalProperties": False,
    }


def _mock_components() -> dict[str, Any]:
    failure = {
        "type": "object",
        "properties": {"code": {"enum": list(Code.__members__)}, "message": {"type": "string"}, "data": {}},
        "required": ["code", "message"],
    }
    behavior = {
        "anyOf": [
            {"type": "object", "properties": {"outcome": {"const": "success"}}, "required": ["outcome", "result"]},
            {
                "type": "object",
                "properties": {"outcome": {"const": "failed"}, "error": failure},
                "required": ["outcome", "error"],
            },
            {"type": "object", "properties": {"error": {"type": "string"}, "outcome": False}, "required": ["error"]},
        ]
    }
    component = {
        "type": "object",
        "properties": {
            "input_schema": {},
            "output_schema": {},
            "behaviors": {"type": "object", "additionalProperties": behavior},
        },
        "required": ["input_schema", "output_schema", "behaviors"],
        "additionalProperties": False,
    }
    return {"propertyNames": {"pattern": "^/"}, "additionalProperties": component}
