"""The gRPC edge of the control plane: servicers that decode a request, call the control plane, and encode the answer.

- `server`: the server, with all servicers over one control plane.
- `runs`: RunsService. Pages of `ListRuns`, `ListItems` and `ListSteps` are read by `control_plane.listing`.
- `submissions`: the decoding of submissions, and their admission.
- `batches`: the messages of a `SubmitBatch`.
- `flows`: FlowsService.
- `components`: ComponentsService.
- `cluster`: ClusterService.
- `blobs`: BlobsService.
- `messages`: runs, items, steps and events as messages.
- `values`: JSON values in the form chosen by the client.

Errors become statuses in `stepflow.rpc`.
"""
