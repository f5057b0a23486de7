"""What a pull worker calls: orchestrators, and the blob service; and what a component asks of them.

Requests come in the words of the line protocol (`blobs/put`, `flows/evaluate`, …) and are answered in them. A run is
asked for again while it goes on, since a host answers a waiting request after some minutes at the latest.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # read when grpc is imported; it would slow every call
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is logged by us

import grpc

from stepflow.errors import Code, Invalid
from stepflow.proxies import grpc_options, grpc_proxy_for, through
from stepflow.pull import BLOB_SERVICE, ORCHESTRATOR_SERVICE, TASKS_SERVICE
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.pull.values import fill, tree_of

if TYPE_CHECKING:
    from google.protobuf.message import Message as Protobuf

CALL_TIMEOUT_S = 30.0
"""For what is answered at once."""

WAIT_S = 300
"""For a flow to end; then it is asked again."""

RECEIVE_BYTES_MAX = 64 * 1024 * 1024
CHANNELS_MAX = 64
"""Orchestrators that tasks have named. A worker meets a handful of them."""

_OPTIONS = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_retries", 0),  # a claim is made once
)

_RUNNING = (pb.EXECUTION_STATUS_RUNNING, pb.EXECUTION_STATUS_UNSPECIFIED)


class Remote:
    """Channels by address. `blob_url` is empty where blobs are kept by whoever gives a task."""

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
        """Claim a task, or tell that work on it goes on; False when its result is not wanted. Raises: AioRpcError."""
        reply = await self._call(address, ORCHESTRATOR_SERVICE, "TaskHeartbeat", request, pb.TaskHeartbeatResponse)
        return not reply.should_abort

    async def complete(self, address: str, request: pb.CompleteTaskRequest) -> None:
        """Raises: AioRpcError."""
        await self._call(address, ORCHESTRATOR_SERVICE, "CompleteTask", request, pb.CompleteTaskResponse)

    async def ask(self, address: str, call_token: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Answer what the component of a task asks for. Raises: AioRpcError; Invalid."""
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
                return {"outputs": [{"batch_input_index": at, "result": result} for at, result in enumerate(results)]}
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
                text = f"tasks have named {CHANNELS_MAX} addresses already; {address!r} is one too many"
                raise Invalid("TOO_MANY_ADDRESSES", text)
            options = (*_OPTIONS, *grpc_options(grpc_proxy_for(address, os.environ)))
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=options)
        return channel


def flow_results(run: pb.OrchestratorRunStatus) -> list[dict[str, Any]]:
    """Return the FlowResult of each input. Raises: Invalid (a number that JSON has not)."""
    missing = _failed(int(Code.CANCELLED), "the run ended without a result of this input")
    results = [missing] * max(1, run.items.total, *(item.item_index + 1 for item in run.results))
    for item in run.results:
        if item.status == pb.EXECUTION_STATUS_COMPLETED:
            results[item.item_index] = {"outcome": "success", "result": tree_of(item.output, "the result")}
        elif item.status in (pb.EXECUTION_STATUS_FAILED, pb.EXECUTION_STATUS_RECOVERY_FAILED):
            code = item.error_code or int(Code.COMPONENT_FAILED)
            results[item.item_index] = _failed(code, item.error_message or "the flow failed")
    return results


def _failed(code: int, message: str) -> dict[str, Any]:
    return {"outcome": "failed", "error": {"code": code, "message": message}}


def why(error: grpc.aio.AioRpcError, address: str) -> str:
    """Say what went wrong with a call to this address, for a person."""
    text = error.details() or error.code().name
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        text += through(grpc_proxy_for(address, os.environ))
    return text


__all__ = ["Remote", "grpc", "why"]
