"""Following a run: what a command tells that watches it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stepflow.cli.display import follow
from stepflow.cli.display.view import choose_view
from stepflow.client.conversion import event_of
from stepflow.mesh.v1 import runs_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import pytest

RUN_ID = "018f0000-0000-7000-8000-000000000001"


class ScriptedClient:
    """A client whose run has the given events."""

    def __init__(self, *messages: runs_pb2.RunEvent) -> None:
        self._messages = messages

    async def watch(self, run_id: str, *, include_logs: bool) -> AsyncGenerator[Any]:
        assert include_logs
        for message in self._messages:
            yield event_of(run_id, message)


def test_a_watch_tells_that_a_later_version_wrote_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "entry 4 is of a later version"
    client: Any = ScriptedClient(
        runs_pb2.RunEvent(at_ms=1, history_incomplete=runs_pb2.HistoryIncomplete(partition=3, reason=reason)),
        runs_pb2.RunEvent(at_ms=2, run_ended=runs_pb2.RunEnded(run=runs_pb2.Run(run_id=RUN_ID))),
    )
    kinds: list[str] = []
    view = choose_view(str, quiet=True)
    following = follow.Following(None, view, on_event=lambda event: kinds.append(event.kind), run_id=RUN_ID)
    run = asyncio.run(follow._watch(client, following))
    assert run.run_id == RUN_ID
    assert kinds == ["history_incomplete", "run_ended"]
    assert f"no further steps can be shown: {reason}" in capsys.readouterr().err
