"""Damage in the write-ahead log of a database that no process owns.

SQLite ignores everything from the first frame on whose checksum fails: after a crash, that is the end of an unfinished
transaction. Damage in the middle looks the same, and loses transactions that were durable, silently. So this module
reads the log before SQLite does: frames of the present generation behind the first bad one tell the difference.

Limit: damage in the newest transaction cannot be told from a crash.

Source: "The Write-Ahead Log" in SQLite's file format.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_MAGIC = 0x377F0682
"""With the lowest bit set: checksums over big-endian words."""


def lost_transactions(log: Path) -> bool:
    """Return True if durable transactions of the log are unreadable. A missing or empty log has lost none."""
    try:
        data = log.read_bytes()
    except FileNotFoundError:
        return False
    if len(data) <= _HEADER_BYTES:
        return False

    # 1. The header.
    magic, _, page_bytes, _, *salts = struct.unpack_from(">6I", data)
    order = ">" if magic & 1 else "<"
    sums = _checksum(order, data[:24], (0, 0))
    if magic & ~1 != _MAGIC or sums != struct.unpack_from(">2I", data, 24) or not 512 <= page_bytes <= 65_536:
        return True

    # 2. The frames that SQLite reads.
    frame_bytes = _FRAME_HEADER_BYTES + page_bytes
    at = _HEADER_BYTES
    while at + frame_bytes <= len(data):
        frame = struct.unpack_from(">6I", data, at)
        sums = _checksum(order, data[at : at + 8] + data[at + _FRAME_HEADER_BYTES : at + frame_bytes], sums)
        if [*frame[2:4]] != salts or sums != frame[4:6]:
            break
        at += frame_bytes

    # 3. Ends of transactions behind them. One may be of a transaction that a crash cut off; those before were durable.
    ends = 0
    while at + frame_bytes <= len(data):
        frame = struct.unpack_from(">6I", data, at)
        ends += [*frame[2:4]] == salts and frame[1] != 0
        at += frame_bytes
    return ends > 1


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for left, right in struct.iter_unpack(f"{order}2I", data):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second


__all__ = ["lost_transactions"]
