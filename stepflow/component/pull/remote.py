"""`PullRemote`: the RPCs of a pull worker to orchestrators and to the blob service.

A component's requests arrive with the methods of the line protocol (`blobs/put`, `flows/evaluate`, …) and are answered
in the same form; metadata has no counterpart in gRPC. Waits for runs are repeated, since a host answers a waiting
request after some minutes at the latest.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import grpc

from stepflow.component.pull.messages import flow_results
from stepflow.errors import Invalid
from stepflow.proxies import grpc_options, grpc_proxy_for, through
from stepflow.pull import BLOB_SERVICE, ORCHESTRATOR_SERVICE, TASKS_SERVICE
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.pull.values import fill, tree_of

if TYPE_CHECKING:
    from google.protobuf.message import Message as Protobuf

CALL_TIMEOUT_S = 30.0
"""For calls answered at once."""

WAIT_S = 300
"""Length of one wait for a run; waits are repeated."""

RECEIVE_BYTES_MAX = 64 * 1024 * 1024

CHANNELS_MAX = 64
"""Distinct orchestrators; a worker meets a handful."""

RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Statuses of transient failures."""

_OPTIONS = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_retries", 0),  # a repeated claim would be refused
)

_RUNNING = (pb.EXECUTION_STATUS_RUNNING, pb.EXECUTION_STATUS_UNSPECIFIED)


class PullRemote:
    """Channels by address. With an empty `blob_url` the orchestrator of a task keeps the blobs."""

    def __init__(self, blob_url: str) -> None:
        self._blob_url = blob_url
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    def pull(self, address: str, request: pb.PullTasksRequest) -> Any:
        """Open a stream of assignments."""
        call = self._channel(address).unary_stream(
            f"/{TASKS_SERVICE}/PullTasks",
            request_serializer=pb.PullTasksRequest.SerializeToString,
            response_deserializer=pb.TaskAssignment.FromString,
        )
        return call(request)

    async def heartbeat(self, address: str, request: pb.TaskHeartbeatRequest) -> bool:
        """Claim a task, or report work in progress; return False if the result is not wanted. Raises: AioRpcError."""
        reply = await self._call(address, ORCHESTRATOR_SERVICE, "TaskHeartbeat", request, pb.TaskHeartbeatResponse)
        return not reply.should_abort

    async def complete(self, address: str, request: pb.CompleteTaskRequest) -> None:
        """Deliver a result. Raises: AioRpcError."""
        await self._call(address, ORCHESTRATOR_SERVICE, "CompleteTask", request, pb.CompleteTaskResponse)

    async def ask(self, address: str, call_token: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Perform a request of a task's component; return the result. Raises: AioRpcError; Invalid."""
        peer = self.address_for(method, address)
        match method:
            case "blobs/put":
                put = pb.PutBlobRequest(blob_type=params["blob_type"])
                fill(put.json_data, params["data"], "the blob")
                stored = await self._call(peer, BLOB_SERVICE, "PutBlob", put, pb.PutBlobResponse)
                return {"blob_id": stored.blob_id}

            case "blobs/get":
                get = pb.GetBlobRequest(blob_id=params["blob_id"])
                blob = await self._call(peer, BLOB_SERVICE, "GetBlob", get, pb.GetBlobResponse)
                if blob.HasField("raw_data"):
                    raise Invalid("BLOB_NOT_JSON", f"blob {params['blob_id']} is binary")
                return {"data": tree_of(blob.json_data, "the blob"), "blob_type": blob.blob_type}

            case "flows/evaluate":
                run_id = await self._submit(address, call_token, params["flow_id"], [params["input"]])
                return {"result": flow_results(await self._await_run(address, call_token, run_id))[0]}

            case "flows/submit_batch":
                inputs, concurrency = params["inputs"], params.get("max_concurrency")
                run_id = await self._submit(address, call_token, params["flow_id"], inputs, concurrency)
                return {"batch_id": run_id, "total_runs": len(inputs)}

            case "flows/get_batch":
                results = flow_results(await self._await_run(address, call_token, params["batch_id"]))
                outputs = [{"batch_input_index": index, "result": result} for index, result in enumerate(results)]
                return {"outputs": outputs}

            case _:
                raise Invalid("NOT_CARRIED", f"StepFlow over gRPC does not carry {method}")

    def address_for(self, method: str, address: str) -> str:
        """Return where a request of a component goes; `address` is that of its task."""
        return self._blob_url or address if method.startswith("blobs/") else address

    async def _submit(
        self, address: str, call_token: str, flow_id: str, inputs: list[Any], max_concurrency: int | None = None
    ) -> str:
        request = pb.OrchestratorSubmitRunRequest(
            run_request=pb.CreateRunRequest(flow_id=flow_id, max_concurrency=max_concurrency),
            root_run_id=call_token or None,
        )
        for value in inputs:
            fill(request.run_request.input.add(), value, "the input")

        run = await self._call(address, ORCHESTRATOR_SERVICE, "SubmitRun", request, pb.OrchestratorRunStatus)
        run_id: str = run.run_id
        return run_id

    async def _await_run(self, address: str, call_token: str, run_id: str) -> pb.OrchestratorRunStatus:
        request = pb.OrchestratorGetRunRequest(
            run_id=run_id,
            wait=True,
            include_results=True,
            result_order=pb.RESULT_ORDER_BY_INDEX,
            timeout_secs=WAIT_S,
            root_run_id=call_token or None,
        )

        while True:
            run: pb.OrchestratorRunStatus = await self._call(
                address, ORCHESTRATOR_SERVICE, "GetRun", request, pb.OrchestratorRunStatus, WAIT_S + CALL_TIMEOUT_S
            )
            if run.status not in _RUNNING:
                return run

    async def _call(
        self, address: str, service: str, method: str, request: Protobuf, reply: Any, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        call = self._channel(address).unary_unary(
            f"/{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        return await call(request, timeout=timeout_s)

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            if len(self._channels) >= CHANNELS_MAX:
                raise Invalid(
                    "TOO_MANY_ADDRESSES",
                    f"tasks have named {CHANNELS_MAX} addresses already; {address!r} is one too many",
                )
            options = (*_OPTIONS, *grpc_options(grpc_proxy_for(address, os.environ)))
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=options)
        return channel


def explain(error: grpc.aio.AioRpcError, address: str) -> str:
    """Return the cause of an RPC to `address` that failed, for people."""
    text = error.details() or error.code().name
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        text += through(grpc_proxy_for(address, os.environ))
    return text
