"""The check before a run: whether a flow can work with the components that exist and the values that are given.

- `flow_check`: the whole check, for `validate`, `run`, `submit` and the API.
- `catalogue`: routes, plugins and their components, as far as the caller knows them.
- `components`: findings about components, routes and members, also in literal inner flows.
- `variables`: findings about the values of variables.

Invariants:
- Unknown stays unknown: a plugin without a list gives no error, and an incomplete list gives warnings only.
- An error means that the step fails whenever it runs, or that a value is missing or misspelt.
- Work and findings are bounded.

Pure. The caller fills the catalogue: from a configuration, from started servers, or from what hosts have registered.
"""

from stepflow.check.catalogue import Catalogue, KnownComponent, KnownPlugin
from stepflow.check.flow_check import check_against, check_flow, including_types

__all__ = ["Catalogue", "KnownComponent", "KnownPlugin", "check_against", "check_flow", "including_types"]
