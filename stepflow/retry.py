"""Delays of retries, and the budget that pays for the retry of each failure code.

Owns the back-off of `retry.backoff` in the configuration and of `onError.backoff` in a flow: its form in documents and
messages, and the delay of attempt k (`delay_ms`). `doubling` gives the pauses of reconnects and restarts.

- The delay is a function of run, step and attempt (the jitter is a hash), so a replay agrees.
- A delay is the back-off's, plus a share of at most `JITTER_MAX`; without jitter it fits `DELAY_MS_MAX`.

Pure. Not here: the choice to retry a step and the count of its budgets (`stepflow.run.settle`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args

from stepflow.errors import Code, Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stepflow.mesh.v1 import retry_pb2

BackoffKind = Literal["constant", "exponential", "fibonacci"]

JITTER_MAX = 0.2
"""Largest share added to a delay, so that steps that failed together do not retry together."""

DELAY_MS_MAX = 2**32 - 1
"""Limit of `retry_pb2.Backoff`, 49 days."""

RETRY_AFTER_MS_MAX = 3_600_000
"""Longest pause that a service may ask for."""

FACTOR_MAX = 1000.0
"""Larger factors are typing errors: every back-off reaches its maximum long before."""


def doubling(first_s: float, last_s: float) -> Iterator[float]:
    """Yield pauses in seconds that double from `first_s` up to `last_s`, which then repeats.

    For reconnects and restarts inside a service; steps use `Backoff`. Begin a new iterator after a success.
    """
    delay_s = first_s
    while True:
        yield delay_s
        delay_s = min(2 * delay_s, last_s)


class RetryClass(Enum):
    """The budget for the retry of a failure."""

    TRANSPORT = "transport"
    """The call was lost: retried automatically, `retry.transportMaxRetries` times."""
    COMPONENT = "component"
    """The component failed: retried if the step's `onError` asks for it."""
    NEVER = "never"


_CLASSES = {
    Code.UNREACHABLE: RetryClass.TRANSPORT,
    Code.TIMEOUT: RetryClass.TRANSPORT,
    Code.COMPONENT_FAILED: RetryClass.COMPONENT,
    Code.RESOURCE_UNAVAILABLE: RetryClass.COMPONENT,
}


def retry_class(code: Code) -> RetryClass:
    """Return the budget for a failure with this code."""
    return _CLASSES.get(code, RetryClass.NEVER)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays before retries. `constant` uses `min_delay_ms` alone; only `exponential` uses `factor`."""

    kind: BackoffKind = "fibonacci"
    min_delay_ms: int = 1_000
    max_delay_ms: int = 10_000
    factor: float = 2.0

    def __post_init__(self) -> None:
        assert self.kind in get_args(BackoffKind)
        assert 0 <= self.min_delay_ms <= DELAY_MS_MAX
        assert 0 <= self.max_delay_ms <= DELAY_MS_MAX
        assert 1.0 <= self.factor <= FACTOR_MAX


DEFAULT_BACKOFF = Backoff()


def base_delay_ms(backoff: Backoff, k: int) -> int:
    """Return the delay before retry `k` (1-based), without jitter."""
    assert k >= 1
    if backoff.kind == "constant":
        return backoff.min_delay_ms
    if backoff.kind == "exponential":
        return _exponential(backoff, k)
    return _fibonacci(backoff, k)


def delay_ms(backoff: Backoff, k: int, seed: str) -> int:
    """Return the delay before retry `k` (1-based), with a jitter determined by `seed`.

    `seed` names the run, the step execution and the attempt.
    """
    base = base_delay_ms(backoff, k)
    digest = hashlib.blake2b(seed.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return base + int(base * JITTER_MAX * share)


def _exponential(backoff: Backoff, k: int) -> int:
    try:
        delay = backoff.min_delay_ms * backoff.factor ** (k - 1)
    except OverflowError:
        return backoff.max_delay_ms if backoff.min_delay_ms else 0
    return int(min(delay, backoff.max_delay_ms))


def _fibonacci(backoff: Backoff, k: int) -> int:
    if not backoff.min_delay_ms:
        return 0
    current, following = 1, 1
    for _ in range(k - 1):
        if backoff.min_delay_ms * current >= backoff.max_delay_ms:
            break  # the sequence only grows
        current, following = following, current + following
    return min(backoff.min_delay_ms * current, backoff.max_delay_ms)


BACKOFF_MEMBERS: Mapping[str, frozenset[str]] = {
    "constant": frozenset(("type", "delayMs")),
    "exponential": frozenset(("type", "minDelayMs", "maxDelayMs", "factor")),
    "fibonacci": frozenset(("type", "minDelayMs", "maxDelayMs")),
}
"""The members of a back-off of each type."""

assert set(BACKOFF_MEMBERS) == set(get_args(BackoffKind))


def backoff_from_tree(tree: Any) -> Backoff:
    """Read `{type: …, …}` as people write it; members left out or null have the defaults.

    Raises:
        Invalid: BACKOFF_INVALID; `details["field"]` is the member at fault (empty: the whole), and
            `details["problem"]` the problem without the location, for callers that add their own.
    """
    if not isinstance(tree, dict):
        raise _invalid("", f"must be an object with a `type`, not {_kind_of(tree)}")
    kind = tree.get("type")
    if not isinstance(kind, str) or kind not in BACKOFF_MEMBERS:
        raise _invalid("type", "must be one of `constant`, `exponential`, `fibonacci`")

    members = BACKOFF_MEMBERS[kind]
    for name in tree:
        if name not in members:
            raise _invalid(str(name), f"is not a member of a {kind} back-off, which has {_listing(members)}")

    if kind == "constant":
        delay = _delay(tree, "delayMs", 1_000)
        return Backoff("constant", delay, delay)
    minimum = _delay(tree, "minDelayMs", DEFAULT_BACKOFF.min_delay_ms)
    maximum = _delay(tree, "maxDelayMs", DEFAULT_BACKOFF.max_delay_ms)
    if kind == "fibonacci":
        return Backoff("fibonacci", minimum, maximum)
    return Backoff("exponential", minimum, maximum, _factor(tree))


def backoff_to_tree(backoff: Backoff) -> dict[str, Any]:
    """Return the tree from which `backoff_from_tree` reads this back-off."""
    if backoff.kind == "constant":
        return {"type": "constant", "delayMs": backoff.min_delay_ms}
    tree: dict[str, Any] = {
        "type": backoff.kind,
        "minDelayMs": backoff.min_delay_ms,
        "maxDelayMs": backoff.max_delay_ms,
    }
    if backoff.kind == "exponential":
        tree["factor"] = backoff.factor
    return tree


def _delay(tree: dict[str, Any], name: str, default: int) -> int:
    value = tree.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= DELAY_MS_MAX:
        raise _invalid(name, f"must be a whole number of milliseconds from 0 to {DELAY_MS_MAX:,}")
    return value


def _factor(tree: dict[str, Any]) -> float:
    value = tree.get("factor")
    if value is None:
        return DEFAULT_BACKOFF.factor
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= FACTOR_MAX:
        raise _invalid("factor", f"must be a number from 1 to {FACTOR_MAX:g}")
    return float(value)


def _invalid(field: str, problem: str) -> Invalid:
    where = f"`{field}` of a back-off" if field else "a back-off"
    return Invalid("BACKOFF_INVALID", f"{where} {problem}", field=field, problem=problem)


def _listing(members: frozenset[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(members))


def _kind_of(tree: Any) -> str:
    if tree is None:
        return "null"
    return {bool: "a boolean", str: "a string", list: "a list"}.get(type(tree), "a number")


def backoff_to_proto(backoff: Backoff) -> retry_pb2.Backoff:
    """Return the message stored in a run's policy."""
    from stepflow.mesh.v1 import retry_pb2

    return retry_pb2.Backoff(
        kind=f"KIND_{backoff.kind.upper()}",
        min_delay_ms=backoff.min_delay_ms,
        max_delay_ms=backoff.max_delay_ms,
        factor=backoff.factor,
    )


def backoff_from_proto(message: retry_pb2.Backoff) -> Backoff:
    """Read a back-off of a run's policy or of a request; an unset one (kind unspecified) is the default.

    Raises:
        Invalid: BACKOFF_INVALID, a kind or factor unknown to this version.
    """
    if message.kind == message.KIND_UNSPECIFIED:
        return DEFAULT_BACKOFF
    kinds: dict[int, BackoffKind] = {
        message.KIND_CONSTANT: "constant",
        message.KIND_EXPONENTIAL: "exponential",
        message.KIND_FIBONACCI: "fibonacci",
    }

    kind = kinds.get(message.kind)
    if kind is None:
        raise _invalid("kind", f"is {message.kind}, which this version does not know")

    factor = message.factor or DEFAULT_BACKOFF.factor
    if not math.isfinite(factor) or not 1 <= factor <= FACTOR_MAX:
        raise _invalid("factor", f"must be a number from 1 to {FACTOR_MAX:g}")
    return Backoff(kind, message.min_delay_ms, message.max_delay_ms, factor)
