"""Generated from `proto/stepflow/mesh/v1` by `make proto`. `<name>_pb2` has messages, `<name>_pb2_grpc` a service.

The public API:
- `runs`: RunsService.
- `flows`: FlowsService.
- `components`: ComponentsService.
- `cluster`: ClusterService.
- `blobs`: BlobsService.
- `values`: JSON values of these services.

Between services:
- `executor`: ExecutorService, for the control plane.
- `host`: ComponentHostService, for executors: frames, calls, results.

In the store:
- `journal`: the entries of a partition's journal.
- `state`: run records, statuses, results, assignments, sessions.
- `segments`: manifests and objects of packed runs.
- `formats`: from when on later formats are written.
- `pressure`: the room of the store.
- `retry`: retry policies and back-offs.
"""
