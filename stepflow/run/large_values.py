"""Large values of a run, moved to the blob store so that a run keeps none in memory until its end. Pure.

The caller puts the blob, then notes it here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.codec import Json
from stepflow.flow.values import Stored

if TYPE_CHECKING:
    from stepflow.run.scope import Item
    from stepflow.run.state import RunState


def large_inputs(state: RunState, bytes_max: int) -> list[tuple[int, bytes]]:
    """Return number and text of the inputs in memory that are larger than `bytes_max`."""
    return [(index, value.raw) for index, value in enumerate(state.root.inputs) if len(value.raw) > bytes_max]


def note_input_stored(state: RunState, index: int, blob: str, blob_bytes: int) -> None:
    """Replace an input by its blob. Before the first entry: items take their inputs over."""
    state.root.inputs[index] = Stored(blob, blob_bytes)


def take_large_outcomes(state: RunState) -> list[tuple[Item, Json]]:
    """Return the items with a large outcome in memory, each with the outcome, and clear the list."""
    items, state.large_outcomes = state.large_outcomes, []
    return [(item, item.outcome) for item in items if isinstance(item.outcome, Json)]


def note_outcome_stored(item: Item, blob: str, blob_bytes: int) -> None:
    """Replace the outcome of an item by its blob."""
    item.outcome = Stored(blob, blob_bytes)


def take_unstored(state: RunState) -> list[Stored]:
    """Return the new values to move to the blob store, and clear the list."""
    values, state.unstored = state.unstored, []
    return values


def note_value_stored(value: Stored) -> None:
    """Drop the bytes of a new value, now in the blob store."""
    value.pending = False
    value.unload()


__all__ = [
    "large_inputs",
    "note_input_stored",
    "note_outcome_stored",
    "note_value_stored",
    "take_large_outcomes",
    "take_unstored",
]
