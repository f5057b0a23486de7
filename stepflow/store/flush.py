"""Submissions to a `FencedWriter`, and the gathering of several into one transaction.

Two limits bound a transaction (`FLUSH_OPS_MAX`, `FLUSH_BYTES_MAX`). A single larger submission goes alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from stepflow.errors import Invalid
from stepflow.store.checks import check_branch, check_key
from stepflow.store.protocol import TXN_BYTES_MAX, TXN_OPS_MAX, Compare, Delete, Put

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.errors import StepflowError

FLUSH_OPS_MAX = 120
"""Operations, and compares, of one gathered transaction, session and cursor not counted."""

FLUSH_BYTES_MAX = 256 * 1024
"""Keys and values of one gathered transaction; etcd keeps the last 10,000 transactions in memory."""

SUBMISSION_OPS_MAX = TXN_OPS_MAX - 1
"""Operations of one submission; above `FLUSH_OPS_MAX` it goes alone."""

SUBMISSION_COMPARES_MAX = TXN_OPS_MAX - 2

ENVELOPE_BYTES = 4096
"""Allowance for session and cursor in a transaction: their keys, three to five times."""

SUBMISSION_BYTES_MAX = TXN_BYTES_MAX - ENVELOPE_BYTES

assert FLUSH_OPS_MAX < SUBMISSION_COMPARES_MAX < SUBMISSION_OPS_MAX < TXN_OPS_MAX
assert FLUSH_BYTES_MAX < SUBMISSION_BYTES_MAX

WriteOp: TypeAlias = Put | Delete


@dataclass(slots=True, eq=False)
class Submission:
    """Operations to be written together, and their callbacks."""

    ops: tuple[WriteOp, ...]
    compares: tuple[Compare, ...]
    on_commit: Callable[[], None]
    on_reject: Callable[[StepflowError], None] | None
    size: int
    keys: frozenset[str]


@dataclass(slots=True)
class Flush:
    """Submissions gathered for one transaction."""

    submissions: list[Submission] = field(default_factory=list)
    ops: int = 0
    compares: int = 0
    bytes: int = 0
    keys: set[str] = field(default_factory=set)

    def takes(self, submission: Submission) -> bool:
        """Return True if the submission may join the gathered ones."""
        if not self.submissions:
            return True
        return (
            self.ops + len(submission.ops) <= FLUSH_OPS_MAX
            and self.compares + len(submission.compares) <= FLUSH_OPS_MAX
            and self.bytes + submission.size <= FLUSH_BYTES_MAX
            and self.keys.isdisjoint(submission.keys)
            # Compares see the state before the whole transaction, so it must not write their keys.
            and not any(compare.key in self.keys for compare in submission.compares)
        )

    def add(self, submission: Submission) -> None:
        self.submissions.append(submission)
        self.ops += len(submission.ops)
        self.compares += len(submission.compares)
        self.bytes += submission.size
        self.keys |= submission.keys


def refusal(submission: Submission, cursor: str) -> Invalid | None:
    """Return the error of a submission that no store would accept, or None."""
    if len(submission.ops) > SUBMISSION_OPS_MAX or len(submission.compares) > SUBMISSION_COMPARES_MAX:
        return Invalid(
            "TXN_TOO_MANY_OPS",
            f"{len(submission.ops)} operations under {len(submission.compares)} compares at once; "
            f"the limits are {SUBMISSION_OPS_MAX} and {SUBMISSION_COMPARES_MAX}",
        )

    if cursor in submission.keys:
        return Invalid("DUPLICATE_KEY", "the cursor is written by the writer only", key=cursor)
    if len(submission.keys) < len(submission.ops):
        return Invalid("DUPLICATE_KEY", "one submission changes a key twice")
    try:
        check_branch(submission.ops)
        for compare in submission.compares:
            check_key(compare.key)
    except Invalid as error:
        return error

    if submission.size > SUBMISSION_BYTES_MAX:
        return Invalid(
            "TXN_TOO_LARGE",
            f"{submission.size:,} bytes at once; the limit is {SUBMISSION_BYTES_MAX:,}",
            size=submission.size,
            bytes_max=SUBMISSION_BYTES_MAX,
        )
    return None
