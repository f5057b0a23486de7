"""Requests about a server itself (`initialize`, `components/list`) and the futures of their replies.

Question ids are strings, execute ids integers: a reply's id tells the kind of the request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from component_host.stepflow_bridge import protocol

if TYPE_CHECKING:
    from component_host.supervision.process import ServerProcess


class ServerEndedError(Exception):
    """The process ended before its answer."""


class Questions:
    """Open questions to one server. The caller limits the time."""

    def __init__(self) -> None:
        self._replies: dict[str, asyncio.Future[protocol.Line]] = {}
        self._last_id = 0

    async def ask(self, process: ServerProcess, method: str, params: dict[str, Any]) -> protocol.Line:
        """Send a request and wait for its result. Raises: ServerEndedError, ServerRefusedError."""
        reply = await self.send_question(process, method, params)
        protocol.check_reply(method, reply)
        return reply

    def send_question(
        self, process: ServerProcess, method: str, params: dict[str, Any]
    ) -> asyncio.Future[protocol.Line]:
        """Send a request; return the future of the reply. The future fails with ServerEndedError."""
        self._last_id += 1
        question_id = f"q{self._last_id}"
        reply: asyncio.Future[protocol.Line] = asyncio.get_running_loop().create_future()

        if process.returncode is not None:
            reply.set_exception(ServerEndedError())
        else:
            self._replies[question_id] = reply
            process.write(protocol.line_of(protocol.Request(question_id, method, params)))
        return reply

    def take_reply(self, question_id: str, line: protocol.Line) -> None:
        reply = self._replies.pop(question_id, None)  # None: 0.2.1 also answers notifications
        if reply is not None and not reply.done():
            reply.set_result(line)

    def fail_questions(self) -> None:
        """Fail all open questions with ServerEndedError."""
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(ServerEndedError())
                reply.exception()  # marks it retrieved: the asker may be cancelled
        self._replies.clear()
