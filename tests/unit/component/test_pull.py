"""A pull worker of the SDK: options from arguments and environment, results of runs, reconnects."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from stepflow.component.pull import worker as pull_worker
from stepflow.component.pull.messages import flow_results
from stepflow.component.pull.options import PATIENCE_S, PullOptions, pull_options
from stepflow.component.pull.tasks import PullTask, PullTasks
from stepflow.component.pull.worker import PullWorker
from stepflow.component.threads import Threads
from stepflow.errors import Invalid
from stepflow.pull.v1 import pull_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def test_arguments_go_before_the_environment_and_that_before_the_defaults() -> None:
    environ = {
        "STEPFLOW_TASKS_URL": "http://mesh:7837/",
        "STEPFLOW_QUEUE_NAME": "theirs",
        "STEPFLOW_MAX_CONCURRENT": "3",
        "STEPFLOW_BLOB_URL": "http://blobs:1",
        "STEPFLOW_SHUTDOWN_GRACE_SECS": "2.5",
    }
    assert pull_options(environ) == PullOptions(
        tasks_url="mesh:7837", queue="theirs", concurrency=3, blob_url="blobs:1", grace_s=2.5, patience_s=PATIENCE_S
    )
    given = pull_options(environ, pull="here:1", queue="mine", concurrency=9)
    assert (given.tasks_url, given.queue, given.concurrency) == ("here:1", "mine", 9)
    assert given.patience_s is None, "started by hand: the worker waits for the host without limit"
    assert pull_options({}).tasks_url == "localhost:7837"


@pytest.mark.parametrize(("name", "text"), [("STEPFLOW_MAX_CONCURRENT", "0"), ("STEPFLOW_SHUTDOWN_GRACE_SECS", "soon")])
def test_a_number_that_makes_no_sense_is_named(name: str, text: str) -> None:
    with pytest.raises(Invalid, match=name):
        pull_options({name: text})
    with pytest.raises(Invalid, match="at least one"):
        pull_options({}, concurrency=0)


def test_a_run_without_all_results_has_one_for_each_input_all_the_same() -> None:
    run = pb.OrchestratorRunStatus(items=pb.ItemStatistics(total=3))
    run.results.add(item_index=1, status=pb.EXECUTION_STATUS_COMPLETED).output.number_value = 4
    run.results.add(item_index=2, status=pb.EXECUTION_STATUS_FAILED, error_message="late", error_code=1)
    first, second, third = flow_results(run)
    assert first["error"]["message"] == "the run ended without a result of this input"
    assert second == {"outcome": "success", "result": 4}
    assert third == {"outcome": "failed", "error": {"code": 1, "message": "late"}}


class Host:
    """A restarting host, from a worker's side: streams end after an hour without a task. Also the clock."""

    def __init__(self, restarts: int) -> None:
        self.now = 0.0
        self.restarts = restarts
        self.connections = 0

    def time(self) -> float:
        return self.now

    async def pull(self, address: str, request: pb.PullTasksRequest) -> AsyncIterator[pb.TaskAssignment]:
        if self.connections <= self.restarts:
            self.connections += 1
            yield pb.TaskAssignment(list_components=pb.ListComponentsRequest())
            self.now += 3_600
        else:
            self.now += PATIENCE_S / 2
        none = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, none, none)

    async def complete(self, address: str, request: Any) -> None:
        pass

    async def close(self) -> None:
        pass


def test_an_idle_worker_outlives_restarts_of_its_host_and_ends_when_it_stays_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pull_worker, "RECONNECT_S_MIN", 0.001)

    async def test() -> None:
        host = Host(restarts=3)
        options = PullOptions(tasks_url="mesh:1", queue="q", concurrency=1, patience_s=PATIENCE_S)
        worker = PullWorker(options, Threads(1), host)  # type: ignore[arg-type]  # a double
        worker._loop = host  # type: ignore[assignment]  # only the clock is used
        async with asyncio.timeout(10):
            await worker._follow_assignments()
        assert host.connections == 4
        assert host.now == 4 * 3_600 + 1.5 * PATIENCE_S, "the worker looks for the host until the patience is over"

    asyncio.run(test())


def test_a_second_assignment_of_a_task_leaves_the_running_one_alone() -> None:
    async def test() -> None:
        host = Host(restarts=0)  # refuses a second claim: the double has no heartbeats
        tasks = PullTasks("worker", host, Threads(1), asyncio.Event(), lambda work: None)  # type: ignore[arg-type]  # a double
        running = PullTask("task", "mesh:1", "", asyncio.get_running_loop().create_future())
        tasks._tasks[running.id] = running

        await tasks.execute(pb.TaskAssignment(task_id=running.id))
        assert tasks._tasks == {running.id: running}

    asyncio.run(test())
