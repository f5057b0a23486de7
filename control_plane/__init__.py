"""The control plane: stores flows, admits and places runs, takes over the runs of dead executors, answers clients.

- `__main__`: `python -m control_plane`.
- `api/`: the public gRPC API over the modules below.
- `control_plane`: a replica, made of the modules below.

Requests:
- `admission`: from a submission to a run record.
- `inputs`: the inputs of a run, checked and stored.
- `cancel`: cancellation of runs.
- `unreadable`: the end of a cancelled run that no executor can read.
- `signals`: signals to runs.
- `deletion`: deletion of an ended run, live or packed.
- `pressure`: admissions slow down while the store fills.
- `store_meter`: the size of the store.
- `activity`: counters of what comes to the store and leaves it.
- `flow_store`: flows by id.
- `flow_checks`: the check of flows before a run is admitted.
- `offers`: routes and the components of live hosts, for these checks.
- `mesh_catalogue`: the catalogue made of them.
- `catalog`: names, versions and labels of flows.
- `drains`: drains of executors and hosts, and their end.
- `restarts`: restarts of a plugin's servers, on one host after another.
- `obstacles`: why no run can begin.

Reads:
- `archive/`: runs in segments, outside the store, and the store as readers of runs see it.
- `run_list`: pages of runs.
- `listing`: pages of items and steps.
- `results`: results of any size, whole or in chunks.
- `replay/`: partitions replayed for these pages, large ones in a process of their own.
- `run_index`: the index of runs by age, which lists read.
- `paging`: sizes and tokens of pages.
- `views`: status of runs and items, computed from partitions.
- `view_records`: the records of runs and items, which lists of stored runs import alone.
- `history`: the events of a partition, replayed from its journal.
- `events`: the events of a run, from its history and then live.
- `live_events`: starts and progress, streamed from the owners of a run.
- `component_logs`: log lines of components, streamed from the hosts.
- `waits`: waiting for the end of runs.

The leader:
- `leader`: leadership, and the start of the work below.
- `cluster`: sessions, assignments and waiting runs, followed by watches.
- `placement`: waiting runs to executors with room.
- `takeover`: the runs of dead executors to live ones.
- `liveness`: detection of dead executors by their streams.
- `room`: the upkeep of the store's room, for `pressure` and `cluster status`.
- `compaction`: the end of the store's history.
- `formats`: from when on the mesh writes what older versions cannot read.
- `shared_blobs`: removal of expired shared blobs.
"""
