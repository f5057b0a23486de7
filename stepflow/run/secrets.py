"""The marked (`is_secret`) values of a run, removed from its failures, progress texts and log lines.

The owner removes them before a failure is journaled, so no reader of a run needs its inputs for that: listings, watches
and results of a mesh and of embedded runs are alike. Results stay as they are: they are data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.errors import Failure
from stepflow.flow.secrets import marked_values
from stepflow.flow.values import Stored
from stepflow.redaction import REDACTED, KnownSecrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.run.scope import Item

UNKNOWN = f"{REDACTED} (the text may quote a secret input that is not loaded)"


def failure_without_secrets(item: Item, failure: Failure) -> Failure:
    """Return a failure of a step of this item without the run's marked values."""
    if not is_marked(item):
        return failure
    secrets = _secrets(item)
    if secrets is None:
        return Failure(failure.code, UNKNOWN)
    return Failure(failure.code, secrets.text(failure.message), secrets.json(failure.data))


def text_without_secrets(item: Item, text: str) -> str:
    """Return a text about this item without the run's marked values."""
    return texts_without_secrets(item, [text])[0]


def texts_without_secrets(item: Item, texts: Sequence[str]) -> list[str]:
    """Return texts about this item without the run's marked values."""
    if not is_marked(item):
        return list(texts)
    secrets = _secrets(item)
    return [UNKNOWN if secrets is None else secrets.text(text) for text in texts]


def marked_texts(item: Item) -> set[str] | None:
    """Return the marked values of this item and of the items above it; None if an input was never loaded."""
    found: set[str] = set()
    while True:
        scope = item.scope
        if scope.plan.marks_secrets:
            stored = isinstance(item.env.input, Stored)
            if stored and item.marked is None:
                return None
            found |= item.marked or set()
            found |= marked_values(scope.plan.flow, () if stored else (item.env.input,), scope.variables)
        if scope.parent is None:
            return found
        item = scope.parent.item


def note_marked(item: Item) -> None:
    """Keep the marked values of an input in the blob store, while its bytes are loaded."""
    if item.scope.plan.marks_secrets and item.marked is None:
        item.marked = marked_values(item.scope.plan.flow, [item.env.input])


def is_marked(item: Item) -> bool:
    """Return True if the flow of this item, or one that it is a sub-run of, marks values."""
    while not item.scope.plan.marks_secrets:
        if item.scope.parent is None:
            return False
        item = item.scope.parent.item
    return True


def _secrets(item: Item) -> KnownSecrets | None:
    texts = marked_texts(item)
    return None if texts is None else KnownSecrets(texts)


__all__ = [
    "failure_without_secrets",
    "is_marked",
    "marked_texts",
    "note_marked",
    "text_without_secrets",
    "texts_without_secrets",
]
