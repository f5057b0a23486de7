"""The language of flows: reading, checking, normalising, compiling, and evaluating expressions.

From text to evaluation:
- `document` (with `yaml_reader`): text to trees, with the location of every value;
- `parse` (with `members`, `declarations`, `duration`; `syntax` for expressions): trees to a `Flow`;
- `validate`, `overrides`, `canonical` (ids): checks, changes and the normalised spelling of a `Flow`;
- `compiled`, `expr`, `nodes`: a `Flow` ready to evaluate.
Also here: `variables`, `secrets`, `schema` (checks of inputs), `paths` (into JSON values), `source` and `diagnostics`
(errors and findings).

Pure: no I/O, no clock, no randomness, and no knowledge of the engine. Text libraries are imported on first use.
"""

from stepflow.flow.canonical import flow_bytes, flow_document, flow_id
from stepflow.flow.compiled import CompiledFlow, CompiledStep, compile_flow
from stepflow.flow.diagnostics import Diagnostic, Diagnostics
from stepflow.flow.document import Tree, parse_tree
from stepflow.flow.duration import parse_duration_ms
from stepflow.flow.expr import Expr, compile_expression
from stepflow.flow.model import Flow, FlowInvalid, OnError, Step
from stepflow.flow.nodes import Env
from stepflow.flow.overrides import apply_overrides
from stepflow.flow.parse import flow_from_tree, parse_flow
from stepflow.flow.paths import MISSING, Path, json_path, parse_path
from stepflow.flow.schema import InputValidator
from stepflow.flow.secrets import REDACTED, Redactor, SecretMap
from stepflow.flow.source import DocumentInvalid
from stepflow.flow.validate import validate_config, validate_flow
from stepflow.flow.variables import VariableSpec, VariableSpecs
from stepflow.flow.yaml_reader import ComplexKey
from stepflow.retry import Backoff

__all__ = [
    "MISSING",
    "REDACTED",
    "Backoff",
    "CompiledFlow",
    "CompiledStep",
    "ComplexKey",
    "Diagnostic",
    "Diagnostics",
    "DocumentInvalid",
    "Env",
    "Expr",
    "Flow",
    "FlowInvalid",
    "InputValidator",
    "OnError",
    "Path",
    "Redactor",
    "SecretMap",
    "Step",
    "Tree",
    "VariableSpec",
    "VariableSpecs",
    "apply_overrides",
    "compile_expression",
    "compile_flow",
    "flow_bytes",
    "flow_document",
    "flow_from_tree",
    "flow_id",
    "json_path",
    "parse_duration_ms",
    "parse_flow",
    "parse_path",
    "parse_tree",
    "validate_config",
    "validate_flow",
]
