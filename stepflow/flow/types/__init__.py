"""Types of flows: what each expression of a flow can be, and whether it fits where it is used.

A type is a JSON Schema. `{}` and true are *any* (unknown); false is *never*. The types of one analysis share a
`TypeScope`, which owns the definitions that their `$ref`s name.

- `scope`: schemas of others as types, `$ref`, alternatives, the projection along a path.
- `make`: types of literals, of objects and lists, and unions.
- `fits`: compares two types: fits, may not fit, cannot fit, unknown.
- `synthesis`: the type of an expression, and the findings about its paths.
- `components`: the schemas of components, and builtins whose output follows from their input.
- `inputs`: the type of a flow's input, from its uses.
- `analysis`: the types of a whole flow, and the findings.
- `notation`: types as short texts, for reports.

Invariants:
- Unknown stays unknown: only a type that is known gives a finding.
- An error means that no value of the type fits; a warning means that some values do not fit.
- Work and size are bounded: schemas come from servers of other people. Beyond a bound, a type is *any*.

Pure, as all of `stepflow/flow`.
"""

from stepflow.flow.types.analysis import FlowTypes, analyse_flow, needed_definitions
from stepflow.flow.types.components import ComponentSchema
from stepflow.flow.types.fits import Fit, Verdict, fits
from stepflow.flow.types.notation import type_text
from stepflow.flow.types.scope import TypeScope

__all__ = [
    "ComponentSchema",
    "Fit",
    "FlowTypes",
    "TypeScope",
    "Verdict",
    "analyse_flow",
    "fits",
    "needed_definitions",
    "type_text",
]
