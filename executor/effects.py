"""Effects: the actions of a partition on hosts, released once their cause is journaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from stepflow.run import CancelCall, Dispatch, ScopeEnded

if TYPE_CHECKING:
    from executor.hosts.peer import HostPeer
    from stepflow.run import Scope


class Ack:
    """Acknowledge a journaled result to its host."""

    __slots__ = ("attempt", "host", "key")

    def __init__(self, host: str, key: str, attempt: int) -> None:
        self.host, self.key, self.attempt = host, key, attempt


class AnswerCallback:
    """Answer a component's call-back about a sub-run."""

    __slots__ = ("callback_id", "peer", "scope")

    def __init__(self, peer: HostPeer, callback_id: int, scope: Scope) -> None:
        self.peer, self.callback_id, self.scope = peer, callback_id, scope


Effect: TypeAlias = Dispatch | CancelCall | ScopeEnded | Ack | AnswerCallback

__all__ = ["Ack", "AnswerCallback", "Effect"]
