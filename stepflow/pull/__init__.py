"""StepFlow over gRPC pull (0.12 and later): what a worker and whoever gives it work have in common.

Source: the descriptors of stepflow-py 0.12.0 and 0.13.0, and how its workers behave. `v1` has the messages, generated
from `proto/`; `values` turns JSON into their form and back. Below stand the names of the RPCs on the wire.
"""

from __future__ import annotations

TASKS_SERVICE = "stepflow.v1.TasksService"
ORCHESTRATOR_SERVICE = "stepflow.v1.OrchestratorService"
BLOB_SERVICE = "stepflow.v1.BlobService"

RECEIVE_BYTES_MAX = 4 * 1024 * 1024
"""Longest message that a worker takes, gRPC's own default: at a longer one its stream ends, and the task is lost."""

__all__ = ["BLOB_SERVICE", "ORCHESTRATOR_SERVICE", "RECEIVE_BYTES_MAX", "TASKS_SERVICE"]
