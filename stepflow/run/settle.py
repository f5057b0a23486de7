"""From the outcome of an attempt to an entry: the end of the step, or a failed attempt with a retry.

The only module that decides whether to retry, and with which back-off; `stepflow.retry.delay_ms` computes the delay:
- UNREACHABLE is retried from the transport budget regardless of `onError`: a rolling restart must not turn results
  into defaults. TIMEOUT is retried likewise, unless `onError` is `useDefault`.
- COMPONENT_FAILED and RESOURCE_UNAVAILABLE are retried only under `onError: retry`, from the step's own budget.
- The delay is at least the pause that the failure's data ask for (`retry_after_ms`), bounded by `RETRY_AFTER_MS_MAX`.
- The failure left after the retries is replaced by the default of `onError`, if any.
Both budgets are counted from the journal, and so survive every owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.codec import Json, decode, encode
from stepflow.errors import Code, Failure
from stepflow.log_lines import TAIL_BYTES_MAX, LogLine, lines_to_pb, tail_of
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.retry import RETRY_AFTER_MS_MAX, RetryClass, backoff_from_proto, delay_ms, retry_class
from stepflow.run.entries import failure_to_pb, payload_of
from stepflow.run.failed_steps import failure_of_attempt
from stepflow.run.secrets import failure_without_secrets, texts_without_secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.flow import OnError
    from stepflow.run.scope import StepRun
    from stepflow.run.state import RunState

PARTITION_TAILS_BYTES_MAX = 64 * 1024
"""Log lines of failures in the journal of a partition; beyond, a failure keeps `SHORT_TAIL_BYTES_MAX` of them."""

SHORT_TAIL_BYTES_MAX = 200

MAX_RETRIES_DEFAULT = 3
"""Retries of a component under `onError: retry` without `maxRetries`."""


def settle(
    state: RunState,
    step: StepRun,
    outcome: Json | Failure,
    *,
    origin: pb.Origin,
    attempt: int,
    started_at_ms: int,
    duration_ms: int,
    host: str,
    now_ms: int,
    of_sub_run: bool = False,
    log_tail: Sequence[LogLine] = (),
) -> pb.Entry:
    """Return the entry for the outcome of an attempt, a failure without marked values. The step must be active.

    `duration_ms` of a call comes from one clock; 0 = unknown. `of_sub_run`: the result is derived, not journaled.
    `log_tail`: the last log lines of the attempt; as many as fit are kept with a final failure.
    """
    entry = pb.Entry(scope=step.item.scope.number, item=step.item.index, step=step.index, at_ms=now_ms)
    if not isinstance(outcome, Failure):
        done = entry.step_completed
        if of_sub_run:
            done.of_sub_run = True
        else:
            done.result.CopyFrom(payload_of(outcome))
        done.attempt, done.started_at_ms, done.host = attempt, started_at_ms, host
        done.duration_ms = duration_ms
        return entry

    outcome = failure_without_secrets(step.item, outcome)
    on_error = step.item.scope.plan.steps[step.index].on_error
    delay = _retry_delay_ms(state, step, on_error, outcome, attempt)
    outcome = failure_of_attempt(state, step, outcome, attempt, host, final=delay is None)
    if delay is not None:
        failed = entry.attempt_failed
        failed.failure.CopyFrom(failure_to_pb(outcome, origin))
        failed.retry_at_ms, failed.delay_ms = now_ms + delay, delay
        failed.attempt, failed.started_at_ms, failed.host = attempt, started_at_ms, host
        failed.duration_ms = duration_ms
        return entry

    done = entry.step_completed
    if on_error.has_default:
        done.result.json = encode(on_error.default)
        done.replaced.CopyFrom(failure_to_pb(outcome, origin))
    else:
        done.failure.CopyFrom(failure_to_pb(outcome, origin))
    done.attempt, done.started_at_ms, done.host = attempt, started_at_ms, host
    done.duration_ms = duration_ms
    if log_tail:
        done.log_tail.extend(_kept_tail(state, step, log_tail))
    return entry


def _kept_tail(state: RunState, step: StepRun, lines: Sequence[LogLine]) -> list[pb.LogLine]:
    """Return the last log lines of a failure, as many as the partition has room for, without marked values."""
    texts = texts_without_secrets(step.item, [line.text for line in lines])
    shown = [LogLine(line.at_ms, line.level, text) for line, text in zip(lines, texts, strict=True)]
    roomy = state.log_tail_bytes < PARTITION_TAILS_BYTES_MAX
    return lines_to_pb(tail_of(shown, TAIL_BYTES_MAX if roomy else SHORT_TAIL_BYTES_MAX))


def _retry_delay_ms(state: RunState, step: StepRun, on_error: OnError, failure: Failure, attempt: int) -> int | None:
    """Return the pause before the next attempt, or None if the failure is final."""
    policy = state.policy
    kind = retry_class(failure.code)

    if kind is RetryClass.TRANSPORT:
        if failure.code is Code.TIMEOUT and on_error.action == "useDefault":
            return None
        if step.transport_failed >= policy.transport_retries_max:
            return None
        count, backoff = step.transport_failed + 1, None

    elif kind is RetryClass.COMPONENT and on_error.action == "retry":
        retries_max = MAX_RETRIES_DEFAULT if on_error.max_retries is None else on_error.max_retries
        if step.component_failed >= retries_max:
            return None
        count, backoff = step.component_failed + 1, on_error.backoff

    else:
        return None

    own_ms = delay_ms(backoff or backoff_from_proto(policy.backoff), count, f"{state.run_id}/{step.key}/{attempt}")
    return max(own_ms, _asked_ms(failure))


def _asked_ms(failure: Failure) -> int:
    """Return the pause that the failed service asked for, in milliseconds; 0 if none."""
    if b'"retry_after_ms"' not in failure.data:
        return 0
    asked = decode(failure.data)
    asked_ms = asked.get("retry_after_ms") if isinstance(asked, dict) else None
    return min(max(asked_ms, 0), RETRY_AFTER_MS_MAX) if type(asked_ms) is int else 0


def find_step(state: RunState, key: str) -> StepRun | None:
    """Return the active step with the idempotency key `key`."""
    for scope in state.scopes:
        prefix = scope.key + "/"
        if not key.startswith(prefix):
            continue

        number, _, step_id = key[len(prefix) :].partition("/")
        index = scope.plan.index_of.get(step_id)
        position = int(number) - scope.first_item if number.isdigit() else -1
        if index is not None and 0 <= position < len(scope.items):
            return scope.items[position].active.get(index)
    return None
