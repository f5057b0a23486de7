"""`greet` with this project's SDK: over HTTP with `--http`, else over stdio or pull, as the environment says."""

import sys

from lookups import look_up

from stepflow.component import component, serve


@component
def greet(name: str) -> str:
    return look_up(name)


serve(http=True if "--http" in sys.argv else None)
