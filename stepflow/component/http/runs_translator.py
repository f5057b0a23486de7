"""Conversations in the methods of stepflow 0.9 and later: `runs/submit` and `runs/get`.

`conversations` uses the methods of stdio (`flows/evaluate`, `flows/submit_batch`, `flows/get_batch`); hosts of the HTTP
transport know the later methods only. Invariant: the sub-runs of one execute have the same keys in every attempt, so
that a host finds the sub-runs of an earlier attempt.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from stepflow.component.errors import HostError

if TYPE_CHECKING:
    from stepflow.component.conversations import Conversation, Request


class RunsTranslator:
    """Translates the conversations of one execute; the order of their sub-runs decides the keys."""

    def __init__(self, run_id: str | None) -> None:
        try:
            self._namespace = uuid.UUID(run_id or "")
        except ValueError:
            self._namespace = uuid.NAMESPACE_URL
        self._runs = 0

    def translate(self, conversation: Conversation[Any]) -> Conversation[Any]:
        """Return an equivalent conversation in the later methods."""
        try:
            request: Request = next(conversation)
            while True:
                try:
                    reply = yield from self._translate_request(*request)
                except HostError as error:
                    request = conversation.throw(error)
                else:
                    request = conversation.send(reply)

        except StopIteration as end:
            return end.value
        finally:
            conversation.close()

    def _translate_request(self, method: str, params: dict[str, Any]) -> Conversation[Any]:
        match method:
            case "flows/evaluate":
                status = yield from self._submit(params["flow_id"], [params["input"]], wait=True)
                results = _results(status)
                return {"result": results[0]["result"]} if results and "result" in results[0] else {}

            case "flows/submit_batch":
                inputs = params["inputs"]
                status = yield from self._submit(params["flow_id"], inputs, params.get("max_concurrency"))
                return {"batch_id": status.get("runId"), "total_runs": len(inputs)}

            case "flows/get_batch":
                later = {"runId": params["batch_id"], "wait": True, "includeResults": True, "resultOrder": "by_index"}
                outputs = [
                    {"batch_input_index": result.get("itemIndex"), **result}
                    for result in _results((yield "runs/get", later))
                ]
                return {"details": {}, "outputs": outputs}

        return (yield method, params)

    def _submit(
        self, flow_id: str, inputs: list[Any], max_concurrency: int | None = None, *, wait: bool = False
    ) -> Conversation[dict[str, Any]]:
        key = str(uuid.uuid5(self._namespace, str(self._runs)))
        self._runs += 1

        status = yield (
            "runs/submit",
            {
                "flowId": flow_id,
                "inputs": inputs,
                "wait": wait,
                "maxConcurrency": max_concurrency,
                "overrides": None,
                "subflowKey": key,
            },
        )
        return status if isinstance(status, dict) else {}


def _results(status: Any) -> list[dict[str, Any]]:
    results = status.get("results") if isinstance(status, dict) else None
    return [result for result in results or [] if isinstance(result, dict)]
