"""Everything that users and stored data refer to by name, read from whichever tree is importable.

    PYTHONPATH=TREE python -P tests/support/public_names.py > tests/data/public_names/VERSION.json

The result is a tree of dictionaries. A later version may add members to any of them; it removes none and changes none
(`missing`). The script knows modules that have moved by each of their names, so it reads old trees as well.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

PUBLIC_MODULES = ("stepflow", "stepflow.client", "stepflow.component", "stepflow.errors")
SERVICES = ("control_plane", "executor", "component_host")
CODE = ("stepflow", *SERVICES)
PROTOS = ("stepflow/mesh/v1", "stepflow/etcd/v1", "stepflow/pull/v1")

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")

SAMPLE_ARGUMENTS = {
    "name": "a/name",
    "prefix": "/python",
    "partition": 7,
    "first_seq": 42,
    "created_at_ms": 1_700_000_000_000,
    "key": None,
}
"""Arguments of the functions in `stepflow.store.keys`, by parameter; any other parameter gets its own name."""


def collect() -> dict[str, Any]:
    """Return all names of the importable tree."""
    return {
        "modules": {name: _module_names(importlib.import_module(name)) for name in PUBLIC_MODULES},
        "commands": _commands(),
        "services": {name: _service_options(name) for name in SERVICES},
        "configuration": _configuration(),
        "reasons": dict.fromkeys(sorted(_reasons()), True),
        "failure_codes": {code.name: code.value for code in _named(("stepflow.errors",), "Code")},
        "engine": {"version": _named(("stepflow.run.state", "stepflow.run.model"), "ENGINE_VERSION")},
        "protos": _protos(),
        "keys": _keys(),
    }


def _former_options() -> dict[str, str]:
    """Return options with their former names, which every parser of a command knows; none in an older tree."""
    return getattr(importlib.import_module("stepflow.cli.options"), "OLD_WORDS", {})


def missing(old: Any, new: Any, path: str = "") -> list[str]:
    """Return what `new` lacks or has changed, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name, value in old.items()
            for line in (missing(value, new[name], f"{path}.{name}") if name in new else [f"{path}.{name} is missing"])
        ]
    if path.endswith(".required") and old is True and new is False:
        return []  # it may still be given
    if path == ".engine.version" and new > old:
        return []  # an engine reads the journals of all versions before it
    return [] if old == new else [f"{path} was {old!r} and is {new!r}"]


def _named(modules: Sequence[str], *names: str) -> Any:
    """Return the first of these names that one of these modules has."""
    for module in modules:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for name in names:
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"none of {names} in {tuple(modules)}")


# --- Python -----------------------------------------------------------------------------------------------------------


def _module_names(module: ModuleType) -> dict[str, Any]:
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    return {name: _shape(getattr(module, name)) for name in sorted(names) if not name.startswith("_")}


def _shape(value: Any) -> Any:
    """Return the members of a class, the parameters of a function."""
    if isinstance(value, type):
        members = {name: _member(value, name) for name in sorted(dir(value)) if not name.startswith("_")}
        if issubclass(value, enum.Enum):
            return {"members": {member.name: str(member.value) for member in value}}
        return {"members": members, **({} if _is_made_by_us(value) else _parameters(value))}
    return _parameters(value) if callable(value) else type(value).__name__


def _is_made_by_us(value: type) -> bool:
    """Return True if only the library constructs this class."""
    return issubclass(value, BaseException) or value.__name__.endswith(("Context", "Reply", "Watch"))


def _member(owner: type, name: str) -> Any:
    value = inspect.getattr_static(owner, name)
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    return _parameters(value) if inspect.isfunction(value) else "attribute"


def _parameters(function: Any) -> dict[str, Any]:
    """Return the parameters by name, and the text of all that have no default: a later version may not add one."""
    parameters = [each for each in inspect.signature(function).parameters.values() if not each.name.startswith("_")]
    required = [each.name for each in parameters if each.default is each.empty and each.kind not in VARIADIC]
    return {
        "parameters": {each.name: _parameter(each, position) for position, each in enumerate(parameters)},
        "required": ", ".join(required),
    }


def _parameter(each: inspect.Parameter, position: int) -> str:
    kind = "keyword" if each.kind is each.KEYWORD_ONLY else f"position {position}"
    return kind if each.default is each.empty else f"{kind}, default {_plain(each.default)}"


def _plain(value: Any) -> str:
    """Return a text that is the same in every process and in every tree."""
    return re.sub(r" at 0x[0-9a-f]+|(?<=<)[a-z_.]+\.(?=[A-Z])", "", repr(value))


# --- command lines ----------------------------------------------------------------------------------------------------


def _commands() -> dict[str, Any]:
    import typer

    return _command(typer.main.get_command(importlib.import_module("stepflow.cli.app").app))


def _command(command: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"options": {}, "arguments": {}}
    known = _former_options()
    for each in command.params:
        choices = getattr(each.type, "choices", None)
        shape = {
            "default": None if callable(each.default) else _plain(each.default),
            "required": each.required,
            "multiple": getattr(each, "multiple", False),
            "flag": getattr(each, "is_flag", False),
            "environment": each.envvar,
            "choices": dict.fromkeys(map(str, choices or ()), True),
        }
        if each.param_type_name == "option":
            former = [known[name] for name in each.opts if name in known]
            found["options"].update(dict.fromkeys([*former, *each.opts, *each.secondary_opts], shape))
        else:
            found["arguments"][each.name] = {**shape, "nargs": each.nargs}
    below = getattr(command, "commands", None)
    return found if below is None else {**found, "commands": {name: _command(each) for name, each in below.items()}}


def _service_options(name: str) -> dict[str, Any]:
    parser = importlib.import_module(f"{name}.__main__").parser()
    return {
        option: {
            "default": _plain(action.default),
            "required": action.required,
            "choices": dict.fromkeys(map(str, action.choices or ()), True),
            "flag": action.nargs == 0,
        }
        for action in parser._actions
        for option in action.option_strings
    }


# --- configuration ----------------------------------------------------------------------------------------------------


def _configuration() -> dict[str, Any]:
    models = ("stepflow.config.file_models", "stepflow.config_models")
    config = ("stepflow.config.load", "stepflow.config.model", "stepflow.config")
    plugins = _named(models, "PLUGIN_MODELS")
    names = (*_named(config, "FILE_NAMES"), *_named(config, "TEST_FILE_NAMES"))
    return {
        "file": _keys_of(_named(models, "FileModel", "File")),
        "rule": _keys_of(_named(models, "RuleModel", "RuleEntry")),
        "plugins": {name: _keys_of(model) for name, model in plugins.items()},
        "file_names": dict.fromkeys(names, True),
    }


def _keys_of(model: Any) -> dict[str, Any]:
    from pydantic import BaseModel

    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found[info.alias or name] = _keys_of(info.annotation)
        else:
            found[info.alias or name] = "required" if info.is_required() else _plain(info.default)
    return found


# --- reasons ----------------------------------------------------------------------------------------------------------


def _reasons() -> set[str]:
    """Return all upper-case words with an underscore that are texts: reasons of errors, and environment variables."""
    root = Path(importlib.import_module("stepflow").__file__ or "").parents[1]
    return {word for folder in CODE for path in _sources(root / folder) for word in _reasons_in(path)}


def _sources(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.py") if not path.stem.endswith(("_pb2", "_pb2_grpc")))


def _reasons_in(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    exported = {id(name) for node in ast.walk(tree) if _is_export_list(node) for name in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in exported:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and REASON.fullmatch(node.value):
            yield node.value


def _is_export_list(node: ast.AST) -> bool:
    """Return True for `__all__ = [...]`, whose texts are names of constants."""
    return isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets)


# --- wire and keys ----------------------------------------------------------------------------------------------------


def _protos() -> dict[str, Any]:
    """Return the generated files by name."""
    from google.protobuf import descriptor_pb2

    root = Path(importlib.import_module("stepflow").__file__ or "").parents[1]
    found = {}
    for name in (path.relative_to(root) for folder in PROTOS for path in sorted((root / folder).glob("*_pb2.py"))):
        module = importlib.import_module(".".join(name.with_suffix("").parts))
        file = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        found[file.name] = {
            "package": file.package,
            "messages": {each.name: _message(each) for each in file.message_type},
            "enums": {each.name: _enum(each) for each in file.enum_type},
            "services": {each.name: {method.name: _method(method) for method in each.method} for each in file.service},
        }
    return found


def _message(message: Any) -> dict[str, Any]:
    """Return the fields by number, as text: all of a message that the wire and JSON have."""
    return {
        "fields": {str(field.number): _field(message, field) for field in message.field},
        "messages": {each.name: _message(each) for each in message.nested_type},
        "enums": {each.name: _enum(each) for each in message.enum_type},
    }


def _field(message: Any, field: Any) -> str:
    label = field.Label.Name(field.label).removeprefix("LABEL_").lower()
    kind = field.type_name or field.Type.Name(field.type).removeprefix("TYPE_").lower()
    oneof = f", one of {message.oneof_decl[field.oneof_index].name}" if field.HasField("oneof_index") else ""
    return f"{field.name}: {label} {kind}{oneof}"


def _enum(each: Any) -> dict[str, str]:
    return {str(value.number): value.name for value in each.value}


def _method(method: Any) -> str:
    asked = f"{'stream ' * method.client_streaming}{method.input_type}"
    return f"{asked} -> {'stream ' * method.server_streaming}{method.output_type}"


def _keys() -> dict[str, Any]:
    """Return every key for the sample arguments, and every constant that keys begin with."""
    module = importlib.import_module("stepflow.store.keys")
    constants = {name: value for name, value in vars(module).items() if name.isupper()}
    makers = {
        name: value(*[SAMPLE_ARGUMENTS.get(each, each) for each in inspect.signature(value).parameters])
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith(("_", "parse_")) and name != "tail"
    }
    prefix = _named(("stepflow.store.etcd.config", "stepflow.store.etcd_config"), "DEFAULT_PREFIX")
    return {"constants": constants, "makers": makers, "default_prefix": prefix}


if __name__ == "__main__":
    json.dump(collect(), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
