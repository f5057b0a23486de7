"""The control plane: stores flows, admits and places runs, answers clients.

- `__main__`: `python -m control_plane`.
- `api/`: the public gRPC API over the modules below.
- `control_plane`: admission of runs, stored flows, cancel.
- `catalog`: names, versions and labels of flows.
- `signals`: signals to runs.

Reads:
- `listing`: pages of runs, items and steps.
- `views`: status of runs and items, computed from partitions.
- `history`: the events of a partition, replayed from its journal.
- `events`: the events of a run, from its history and then live.
- `waits`: waiting for the end of runs.

Executors and hosts:
- `cluster`: sessions, assignments and pending runs, followed by watches.
- `leader`: placement of pending runs, take-over from dead executors.
- `liveness`: detection of dead executors by their streams.
- `executors`: calls to executors and hosts: live events, drains.

Removal:
- `retention`: ended runs, by request, age or room.
- `shared_blobs`: expired shared blobs.
"""
