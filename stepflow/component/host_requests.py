"""Requests of components to the host: conversations in flight, and the matching of replies by id.

Invariants:
- A reply is settled exactly once, on the loop's thread: with the conversation's value, its exception, or a
  cancellation.
- A request is in `_pending` and in `call.request_ids` from its line until the reply or the cancellation.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from stepflow.component.errors import CallCancelled, HostError
from stepflow.component.reply import HostReply
from stepflow.component.shapes import encode
from stepflow.component.wire import INVALID_PARAMS, LINE_BYTES_MAX, PARSE_ERROR, UNREADABLE, host_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.component.call import ComponentCall
    from stepflow.component.conversations import Conversation
    from stepflow.component.loop_inbox import LoopInbox
    from stepflow.component.threads import Threads
    from stepflow.component.wire import Message

T = TypeVar("T")


class PendingConversation:
    """A conversation between a call and the host."""

    __slots__ = ("call", "conversation", "future")

    def __init__(self, call: ComponentCall, conversation: Conversation[Any], future: Future[Any]) -> None:
        self.call = call
        self.conversation = conversation
        self.future = future


class HostRequests:
    """Sends the requests of one server's calls. Request ids are `id_prefix` and a number.

    `translate` turns a conversation into one with the methods of another generation of hosts.
    """

    def __init__(
        self,
        inbox: LoopInbox,
        threads: Threads,
        send: Callable[[bytes], None],
        *,
        id_prefix: str,
        translate: Callable[[Conversation[Any]], Conversation[Any]] | None = None,
    ) -> None:
        self._inbox = inbox
        self._threads = threads
        self._send = send
        self._id_prefix = id_prefix
        self._translate = translate
        self._pending: dict[str, PendingConversation] = {}
        self._sent = 0

    def start(self, call: ComponentCall, conversation: Conversation[T]) -> HostReply[T]:
        """Start a conversation; the first request leaves at once. From any thread."""
        future: Future[T] = Future()
        pending = PendingConversation(call, self._translate(conversation) if self._translate else conversation, future)
        self._inbox.run(lambda: self._advance(pending, None))
        return HostReply(future, self._inbox.on_loop_thread, lambda: self._threads.slot_released(self._inbox.post))

    def awaits(self, request_id: str) -> bool:
        """Return True if a request with this id is unanswered."""
        return request_id in self._pending

    def take_reply(self, request_id: str, message: Message) -> None:
        """Continue a conversation with the host's reply. Replies without a pending request are ignored."""
        pending = self._pending.pop(request_id, None)
        if pending is None:  # of a cancelled call, or unsolicited
            return
        assert pending.call.request_ids is not None
        pending.call.request_ids.discard(request_id)

        try:
            if message.error and bytes(message.error) != b"null":
                self._advance(pending, None, host_error(msgspec.json.decode(message.error)))
            else:
                self._advance(pending, msgspec.json.decode(message.result))
        except UNREADABLE as error:
            self._advance(pending, None, HostError(PARSE_ERROR, f"the host's reply cannot be read: {error}"))

    def cancel(self, call: ComponentCall) -> None:
        """Fail a cancelled call's conversations: a thread blocked in `Reply.result()` continues."""
        for request_id in tuple(call.request_ids or ()):
            pending = self._pending.pop(request_id)
            _fail(pending, CallCancelled("the call was cancelled while it waited for the host"))

    def _advance(self, pending: PendingConversation, result: Any, error: HostError | None = None) -> None:
        """Resume the conversation with a result or an error; send the next request, or settle the reply."""
        if pending.call.cancelled:
            _fail(pending, CallCancelled("the call was cancelled"))
            return

        try:
            method, params = pending.conversation.throw(error) if error else pending.conversation.send(result)
            self._send_request(pending, method, params)
        except StopIteration as end:
            if pending.future.set_running_or_notify_cancel():
                pending.future.set_result(end.value)
        except Exception as problem:  # for the component, which may handle the failure
            _fail(pending, problem)

    def _send_request(self, pending: PendingConversation, method: str, params: dict[str, Any]) -> None:
        self._sent += 1
        request_id = f"{self._id_prefix}{self._sent}"

        observability = pending.call.params.observability
        if observability:
            params["observability"] = observability

        line = encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        if len(line) >= LINE_BYTES_MAX:
            raise HostError(INVALID_PARAMS, f"{method}: {len(line):,} bytes; the limit is {LINE_BYTES_MAX:,}")

        self._pending[request_id] = pending
        if pending.call.request_ids is None:
            pending.call.request_ids = set()
        pending.call.request_ids.add(request_id)
        self._send(line + b"\n")


def _fail(pending: PendingConversation, error: Exception) -> None:
    pending.conversation.close()
    if pending.future.set_running_or_notify_cancel():
        pending.future.set_exception(error)
