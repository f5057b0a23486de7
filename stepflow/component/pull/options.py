"""Options of a pull worker: arguments of `serve()` first, then the environment, then defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

TASKS_URL_DEFAULT = "localhost:7837"
QUEUE_DEFAULT = "python"
CONCURRENCY_DEFAULT = 16
GRACE_S_DEFAULT = 10.0

NUMBER_MAX = 1e9
"""Larger numbers in the environment are typing errors."""

PATIENCE_S = 30.0
"""Time without a connection after which a worker started by a runtime ends, as no other process would stop it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """The source of tasks, and the number of tasks at a time. Addresses are HOST:PORT."""

    tasks_url: str
    queue: str
    concurrency: int
    blob_url: str = ""
    """Empty: the task's orchestrator keeps the blobs."""
    grace_s: float = GRACE_S_DEFAULT
    """Time for running calls after a signal."""
    patience_s: float | None = None
    """Time without a connection before the worker ends; None: unlimited."""


def pull_options(
    environ: Mapping[str, str], *, pull: str | None = None, queue: str | None = None, concurrency: int | None = None
) -> PullOptions:
    """Combine the arguments of `serve()` with the environment. Raises: Invalid COMPONENT_INVALID."""
    if concurrency is None:
        concurrency = int(_number(environ, "STEPFLOW_MAX_CONCURRENT", CONCURRENCY_DEFAULT, at_least=1))
    elif concurrency < 1:
        raise Invalid("COMPONENT_INVALID", f"serve(concurrency={concurrency}): at least one call is needed")

    return PullOptions(
        tasks_url=host_port(pull or environ.get("STEPFLOW_TASKS_URL") or TASKS_URL_DEFAULT),
        queue=queue or environ.get("STEPFLOW_QUEUE_NAME") or QUEUE_DEFAULT,
        concurrency=concurrency,
        blob_url=host_port(environ.get("STEPFLOW_BLOB_URL", "")),
        grace_s=_number(environ, "STEPFLOW_SHUTDOWN_GRACE_SECS", GRACE_S_DEFAULT, at_least=0),
        patience_s=PATIENCE_S if pull is None else None,
    )


def host_port(url: str) -> str:
    """Strip `http://HOST:PORT`, the form used by workers in other languages, to HOST:PORT."""
    return url.removeprefix("http://").rstrip("/")


def _number(environ: Mapping[str, str], name: str, default: float, *, at_least: float) -> float:
    text = environ.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = float("nan")

    if not at_least <= number < NUMBER_MAX:
        raise Invalid(
            "COMPONENT_INVALID", f"the environment variable {name} is {text!r}: a number from {at_least:g} is needed"
        )
    return number
