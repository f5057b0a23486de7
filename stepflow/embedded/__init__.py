"""Runs without a mesh: all parts in one process over SQLite.

- `mesh`: control plane, executor and host over one store.
- `known_components`: schemas of components, without a server if possible.
- `runs_folder`: the folder of the runs of this machine.
- `ended_items`: the items that end while a run is driven.
- `pauses`: the time in which no process drives a run.
- `run_files`: the files of a run in that folder, and its lock.
- `log_files`: what the components of a run have logged.
- `folder_index`: the index of that folder, for lists and retention.
- `index_file`: its file.
- `examine`: a stored run, read for the index.
- `folder_retention`: removal of old runs from that folder.
- `expired_blobs`: removal of old shared blobs from it.
"""
