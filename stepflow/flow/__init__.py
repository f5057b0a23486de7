"""The language of flows: reading, checking, normalising, compiling, and evaluating expressions.

From text to trees:
- `document`: JSON and YAML as trees, with the location of every value.
- `yaml_reader`, `yaml_scalars`: YAML 1.2.
- `syntax_slips`: own words for common slips in the syntax of YAML and JSON.

From trees to a `Flow`:
- `model`: `Flow`, a flow as data.
- `format`: the members of a flow document, one table for the parser and the JSON Schema.
- `parse`: fields and their types.
- `members`: typed members of mappings, and unread members.
- `declarations`: schemas, examples, test cases.
- `duration`: durations such as `1.5s`.
- `syntax`: expressions as syntax trees: `$step`, `$input`, `$variable`, `$if`, `$coalesce`, `$literal`.

Checks and changes of a `Flow`:
- `validate`: static checks.
- `types/`: types of expressions, and whether they fit.
- `flow_schema`: the JSON Schema of flow documents.
- `slips`: hints about expressions that are probably not what their author means.
- `overrides`: changes for a single run.
- `canonical`: the normalised document, and the flow id.

From a `Flow` to evaluation:
- `compiled`: a flow ready to run.
- `expr`: compiles an expression into nodes.
- `nodes`: evaluates the nodes, one class per kind of expression.
- `failing`: where in an expression an evaluation failed.
- `references`: the nodes that read steps, the input and variables.
- `values`: values that share the texts of other values.

For all of these:
- `paths`: paths into JSON values.
- `variables`: declared variables and defaults.
- `secrets`: secret values, and their redaction.
- `schema`: checks of values against schemas.
- `schema_cost`, `schema_graph`: the maximal cost of such a check.
- `source`: errors in documents.
- `diagnostics`: findings about a flow.
- `silence`: warnings that a flow's author has silenced.

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
from stepflow.flow.paths import MISSING, Path, parse_path
from stepflow.flow.schema import CheckBudget, InputValidator
from stepflow.flow.secrets import Redactor, SecretMap
from stepflow.flow.source import DocumentInvalid
from stepflow.flow.validate import validate_config, validate_flow
from stepflow.flow.variables import VariableSpec, VariableSpecs
from stepflow.flow.yaml_reader import ComplexKey
from stepflow.json_problems import json_path
from stepflow.redaction import REDACTED
from stepflow.retry import Backoff

__all__ = [
    "MISSING",
    "REDACTED",
    "Backoff",
    "CheckBudget",
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
