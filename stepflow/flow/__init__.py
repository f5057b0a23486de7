"""The language: what a flow says, whether it is sound, and what its expressions are worth.

Reading down: text → `document` (trees with places) → `parse` (a `Flow`; `syntax` for its expressions) → `validate`,
`overrides`, `canonical` (ids) → `compiled`/`expr` (ready to evaluate); beside them `variables`, `secrets`, `schema`.

Pure: no I/O, no clock, no randomness, and nothing of the engine. Text libraries are imported when first needed.
"""

from stepflow.flow.canonical import flow_bytes, flow_document, flow_id
from stepflow.flow.compiled import CompiledFlow, CompiledStep, compile_flow
from stepflow.flow.diagnostics import Diagnostic, Diagnostics
from stepflow.flow.document import ComplexKey, DocumentInvalid, Tree, parse_tree
from stepflow.flow.expr import Env, Expr, compile_expression
from stepflow.flow.model import Flow, FlowInvalid, OnError, Step
from stepflow.flow.overrides import apply_overrides
from stepflow.flow.parse import flow_from_tree, parse_duration_ms, parse_flow
from stepflow.flow.paths import MISSING, Path, json_path, parse_path
from stepflow.flow.schema import InputValidator
from stepflow.flow.secrets import REDACTED, Redactor, SecretMap
from stepflow.flow.validate import validate_config, validate_flow
from stepflow.flow.variables import VariableSpec, VariableSpecs
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
