"""Disputes about the owner of a partition, decided by the store.

- The host believes the highest epoch that an executor names: of two owners the later one has it. A claim with a lower
  epoch therefore comes from a former owner, or a peer has named an epoch that no owner has.
- The epoch of an owner is the create revision of its assignment, so the store can tell the two cases apart.
- Only a disputed claim costs a request to the store; calls of other partitions do not wait.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from stepflow.errors import Invalid, StepflowError
from stepflow.retry import doubling
from stepflow.store import keys
from stepflow.store.lease import LEASE_TTL_S
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from component_host.call_table import CallTable, PartitionEntry
    from stepflow.mesh.v1 import host_pb2
    from stepflow.store import Store

log = get_logger(__name__)

ASK_S_MIN = 0.05
ASK_S_MAX = 1.0
"""Pauses between two tries to ask a store that does not answer, doubling."""

UNDECIDED_S_MAX = LEASE_TTL_S
"""A store away for longer ends the session of this host, too; the claim counts as refuted then."""


class Claim(NamedTuple):
    """An executor's claim to own a partition."""

    executor_id: str
    run_id: str
    partition: int
    epoch: int
    entry: PartitionEntry


class IsOwner(Protocol):
    """Tells whether an executor has the assignment that gives it this epoch. Raises: StepflowError."""

    async def __call__(self, executor_id: str, run_id: str, partition: int, epoch: int, /) -> bool: ...


def owners_in(store: Store) -> IsOwner:
    """Return the judge over a store."""

    async def is_owner(executor_id: str, run_id: str, partition: int, epoch: int, /) -> bool:
        assignment = await store.get(keys.assigned(executor_id, run_id, partition))
        return assignment is not None and assignment.create_revision == epoch

    return is_owner


class ClaimingStream(Protocol):
    """The stream of an executor, as used by disputes."""

    executor_id: str
    closed: bool


StreamT = TypeVar("StreamT", bound=ClaimingStream)


class Disputes:
    """The disputes of one host. Without a judge the highest epoch is believed: no stranger is in the process."""

    def __init__(self, table: CallTable) -> None:
        self.is_owner: IsOwner | None = None
        self._table = table
        self._tasks: set[asyncio.Task[None]] = set()

    def settle_call(
        self, stream: StreamT, request: host_pb2.Call, decided: Callable[[StreamT, host_pb2.Call], None]
    ) -> bool:
        """Settle the dispute about a call, then call `decided`; return False without a judge."""
        if self.is_owner is None:
            return False
        entry = self._table.partition(request.root_run_id, request.partition)
        claim = Claim(stream.executor_id, request.root_run_id, request.partition, request.epoch, entry)
        self._spawn(stream, [claim], partial(decided, stream, request))
        return True

    def settle_attach(self, stream: ClaimingStream, asked: host_pb2.Attach, decided: Callable[[], None]) -> bool:
        """Settle the disputes about a question, then call `decided`; return False if there is nothing to settle."""
        if self.is_owner is None:
            return False
        claims = [
            Claim(stream.executor_id, run.run_id, run.partition, run.epoch, entry)
            for run in asked.runs
            if run.epoch < (entry := self._table.partition(run.run_id, run.partition)).epoch
        ]
        if claims:
            self._spawn(stream, claims, decided)
        return bool(claims)

    async def close(self) -> None:
        """Leave all disputes undecided. Idempotent."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, stream: ClaimingStream, claims: Sequence[Claim], decided: Callable[[], None]) -> None:
        task = asyncio.get_running_loop().create_task(self._settle(stream, claims, decided), name="disputed epochs")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, stream: ClaimingStream, claims: Sequence[Claim], decided: Callable[[], None]) -> None:
        """Correct the epochs of the partitions whose owners claim them."""
        for claim in claims:
            believed = claim.entry.epoch
            # A later owner may have come during the question: its epoch must not be undone.
            if await self._holds(claim) and claim.entry.epoch == believed:
                log.warning("an epoch that no owner has is ignored", run_id=claim.run_id, epoch=believed)
                claim.entry.epoch = claim.epoch
        if not stream.closed:
            decided()

    async def _holds(self, claim: Claim) -> bool:
        """Return True if the store confirms a claim."""
        assert self.is_owner is not None
        try:
            async with asyncio.timeout(UNDECIDED_S_MAX):
                for pause_s in doubling(ASK_S_MIN, ASK_S_MAX):
                    try:
                        return await self.is_owner(*claim[:4])
                    except Invalid:  # no key of the store
                        return False
                    except StepflowError as error:
                        log.debug("owner not known yet", run_id=claim.run_id, reason=error.reason)
                    await asyncio.sleep(pause_s)
        except TimeoutError:
            log.warning("the store does not tell the owner", run_id=claim.run_id)
        except Exception as error:
            log_defect(log, "the owner could not be asked for", error)
        return False


__all__ = ["Claim", "Disputes", "IsOwner", "owners_in"]
