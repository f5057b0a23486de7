"""The inputs of a run: checked, hashed, and moved into the record or the blob store.

- Small inputs go into the run's record, larger ones into blobs of one partition each.
- `GivenInputs` are in memory. `StagedInputs` arrive in any number of parts and are put into the blob store as they
  arrive: memory holds one partition, however large the batch is.
- Both give the same record and the same hash for the same inputs.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX
from stepflow.errors import Invalid
from stepflow.flow import CheckBudget, InputValidator
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.off_loop import off_loop
from stepflow.store import TXN_BYTES_MAX

if TYPE_CHECKING:
    import hashlib
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from stepflow.flow import Flow
    from stepflow.mesh.v1 import state_pb2
    from stepflow.store.blobs import BlobStore

ITEMS_PER_PARTITION = 64
RUN_ITEMS_MAX = 100_000

RECORD_INPUTS_BYTES_MAX = 256 * 1024
"""Inputs stored in the run record. Larger inputs go to the blob store, one blob per partition."""

RECORD_BLOBS_BYTES_MAX = TXN_BYTES_MAX // 2
"""Blob ids of inputs stored in the run record, which is written in one transaction."""

PART_BYTES = 512 * 1024
PART_ITEMS = 1_000
"""Inputs of a batch that are checked and staged together."""

_BLOB_ID_BYTES = 66
"""A blob id in a record, with its tag and length."""

assert INLINE_BYTES_MAX < RECORD_INPUTS_BYTES_MAX
assert (RUN_ITEMS_MAX // ITEMS_PER_PARTITION + 1) * _BLOB_ID_BYTES < RECORD_BLOBS_BYTES_MAX


class InputCheck:
    """Checks inputs in order, in any number of parts. The flow's schema is compiled once."""

    def __init__(self, flow: Flow, *, schema: bool) -> None:
        """`schema`: check against the flow's input schema. Raises: Invalid (the schema)."""
        self._validator = InputValidator.for_input(flow) if schema else None
        self._budget = CheckBudget()
        self._count = 0

    def check(self, texts: Sequence[bytes]) -> None:
        """Check the next inputs. Raises: Invalid TOO_MANY_ITEMS, INPUT_TOO_LARGE, INPUT_INVALID."""
        first, self._count = self._count, self._count + len(texts)
        if self._count > RUN_ITEMS_MAX:
            raise Invalid("TOO_MANY_ITEMS", f"{self._count:,} items; the limit of a run is {RUN_ITEMS_MAX:,}")

        for index, text in enumerate(texts, first):
            if len(text) > PAYLOAD_BYTES_MAX:
                message = f"input {index} has {len(text):,} bytes; the limit is {PAYLOAD_BYTES_MAX:,}"
                raise Invalid("INPUT_TOO_LARGE", message, item=index)

        problem = None if self._validator is None else self._validator.first_misfit(texts, self._budget)
        if problem is not None:
            offset, pointer, message = problem
            where = f"input {first + offset}" if self._count > 1 else "the input"
            raise Invalid(
                "INPUT_INVALID",
                f"{where} does not fit the flow's input schema at {pointer or '/'}: {message}",
                item=first + offset,
                pointer=pointer,
            )


def in_parts(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the inputs in parts of bounded size, for `InputCheck` and `StagedInputs`."""
    part: list[bytes] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= PART_BYTES or len(part) == PART_ITEMS:
            yield part
            part, size = [], 0
    if part:
        yield part


class GivenInputs:
    """The inputs of a request that is in memory."""

    def __init__(self, blobs: BlobStore, run_id: str, texts: Sequence[bytes]) -> None:
        self.lengths: Sequence[int] = [len(text) for text in texts]
        self._blobs = blobs
        self._run_id = run_id
        self._texts = texts

    async def parts(self) -> AsyncIterator[Sequence[bytes]]:
        """Yield the inputs in order."""
        yield self._texts

    async def store(self, record: state_pb2.RunRecord) -> None:
        """Put the inputs into the record, or into blobs that the record names. Raises: StepflowError."""
        if sum(self.lengths) <= RECORD_INPUTS_BYTES_MAX:
            record.inputs.extend(pb.Payload(json=text) for text in self._texts)
        else:
            await _store_blobs(record, self, self._blobs, self._run_id)


class StagedInputs:
    """Inputs that arrive in parts: `add` all of them, then `finish`.

    They are put into the run's scope of the blob store. Repeating them puts the same blobs again.
    """

    def __init__(self, blobs: BlobStore, run_id: str) -> None:
        self.lengths = array("L")
        self._blobs = blobs
        self._run_id = run_id
        self._bytes = 0

        self._waiting: list[bytes] = []
        """Added and not in a blob: inputs of the next partition, or all as long as they fit the record."""
        self._staged: list[str] = []
        """Blobs of consecutive inputs, each a JSON array."""
        self._bare: set[int] = set()
        """Positions in `_staged` of blobs that are an input itself: its array would exceed the limit of a blob."""

    async def add(self, texts: Sequence[bytes]) -> None:
        """Add the next inputs, which are checked. Raises: StepflowError (of the blob store)."""
        for text in texts:
            self.lengths.append(len(text))
            self._bytes += len(text)
            self._waiting.append(text)
            if self._bytes > RECORD_INPUTS_BYTES_MAX:
                await self._stage_full()

    async def finish(self) -> None:
        """Stage the last inputs, unless all fit the record. Raises: StepflowError."""
        while self._waiting and self._bytes > RECORD_INPUTS_BYTES_MAX:
            await self._stage(self._count_fitting())

    async def parts(self) -> AsyncIterator[Sequence[bytes]]:
        """Yield the inputs in order, read back from the blob store. Raises: StepflowError."""
        for position, blob in enumerate(self._staged):
            content, _ = await self._blobs.get(blob, scope=self._run_id)
            if position in self._bare:
                yield [content]
            else:
                yield [bytes(raw) for raw in msgspec.json.decode(content, type=list[msgspec.Raw])]
        if self._waiting:
            yield self._waiting

    async def store(self, record: state_pb2.RunRecord) -> None:
        """Put the inputs into the record, or let the record name their blobs. Raises: StepflowError."""
        if not self._staged:
            record.inputs.extend(pb.Payload(json=text) for text in self._waiting)
        elif record.items_per_partition == ITEMS_PER_PARTITION:
            record.partition_inputs.extend(self._staged)  # the inputs of each partition fitted one blob
        else:
            await _store_blobs(record, self, self._blobs, self._run_id)

    async def _stage_full(self) -> None:
        """Put the waiting inputs into blobs, as far as they fill blobs."""
        while (count := self._count_fitting()) == ITEMS_PER_PARTITION or count < len(self._waiting):
            await self._stage(count)

    def _count_fitting(self) -> int:
        """Return how many of the waiting inputs go into the next blob."""
        size = 1
        for count, text in enumerate(self._waiting[:ITEMS_PER_PARTITION]):
            size += len(text) + 1
            if size > PAYLOAD_BYTES_MAX:
                return max(1, count)
        return min(len(self._waiting), ITEMS_PER_PARTITION)

    async def _stage(self, count: int) -> None:
        texts = self._waiting[:count]
        if _needs_own_blob(len(texts[0])):
            self._bare.add(len(self._staged))
            self._staged.append(await self._blobs.put(texts[0], scope=self._run_id))
        else:
            self._staged.append(await self._blobs.put(_array(texts), scope=self._run_id))
        del self._waiting[:count]


RunInputs: TypeAlias = GivenInputs | StagedInputs


async def hash_inputs(digest: hashlib._Hash, inputs: RunInputs) -> None:
    """Add the inputs to the hash of a request. Their division into parts leaves no trace."""
    async for texts in inputs.parts():
        await off_loop(sum(map(len, texts)), _update, digest, texts, items=len(texts))


def partition_size(lengths: Sequence[int]) -> int:
    """Return the items per partition: the default, halved until the inputs of each partition fit one blob.

    Raises: Invalid TOO_MANY_ITEMS, the run would have more partitions than its record can name.
    """
    size = ITEMS_PER_PARTITION
    while size > 1 and any(
        sum(part := lengths[start : start + size]) + len(part) + 1 > PAYLOAD_BYTES_MAX
        for start in range(0, len(lengths), size)
    ):
        size //= 2

    if -(-len(lengths) // size) * _BLOB_ID_BYTES > RECORD_BLOBS_BYTES_MAX:
        raise Invalid(
            "TOO_MANY_ITEMS",
            f"{len(lengths):,} items, some so large that a partition holds {size} of them; submit the large inputs as "
            "a batch of their own",
        )
    return size


async def _store_blobs(record: state_pb2.RunRecord, inputs: RunInputs, blobs: BlobStore, run_id: str) -> None:
    """Put the inputs of each partition into a blob, or each input into its own if one needs that."""
    if any(map(_needs_own_blob, inputs.lengths)):
        async for texts in inputs.parts():
            for text in texts:
                record.inputs.add(blob=await blobs.put(text, scope=run_id))
        return

    size = record.items_per_partition
    rest: list[bytes] = []
    async for texts in inputs.parts():
        rest += texts
        full = len(rest) - len(rest) % size
        for start in range(0, full, size):
            record.partition_inputs.append(await blobs.put(_array(rest[start : start + size]), scope=run_id))
        del rest[:full]
    if rest:
        record.partition_inputs.append(await blobs.put(_array(rest), scope=run_id))


def _needs_own_blob(length: int) -> bool:
    """Return True for an input whose array, with the brackets, would exceed the limit of a blob."""
    return length + 2 > PAYLOAD_BYTES_MAX


def _array(texts: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(texts) + b"]"


def _update(digest: hashlib._Hash, texts: Sequence[bytes]) -> None:
    for text in texts:
        digest.update(b"%d:" % len(text))
        digest.update(text)


__all__ = [
    "GivenInputs",
    "InputCheck",
    "RunInputs",
    "StagedInputs",
    "hash_inputs",
    "in_parts",
    "partition_size",
]
