"""Labels of runs in filters, where every label has a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.codec import encode

if TYPE_CHECKING:
    from collections.abc import Mapping


def has_labels(labels: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Return True if a run with `labels` has all labels of `wanted`, with these texts."""
    return all(name in labels and label_text(labels[name]) == text for name, text in wanted.items())


def label_text(value: Any) -> str:
    """Return the text of a label: a string itself, any other value as compact JSON."""
    return value if isinstance(value, str) else encode(value).decode()


__all__ = ["has_labels", "label_text"]
