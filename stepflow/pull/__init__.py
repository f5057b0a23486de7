"""StepFlow over gRPC pull (0.12 and later): code shared by workers and hosts.

- `v1/`: the messages, generated from `proto/`.
- `values`: JSON in `google.protobuf.Value`.

Source: the descriptors of stepflow-py 0.12.0 and 0.13.0, and the behaviour of their workers. The constants are the
service names on the wire.
"""

from __future__ import annotations

TASKS_SERVICE = "stepflow.v1.TasksService"
ORCHESTRATOR_SERVICE = "stepflow.v1.OrchestratorService"
BLOB_SERVICE = "stepflow.v1.BlobService"

RECEIVE_BYTES_MAX = 4 * 1024 * 1024
"""Longest message for workers, gRPC's default: a longer message ends the stream, and the task is lost."""

__all__ = ["BLOB_SERVICE", "ORCHESTRATOR_SERVICE", "RECEIVE_BYTES_MAX", "TASKS_SERVICE"]
