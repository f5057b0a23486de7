"""Runs without a mesh: all parts in one process over SQLite.

- `mesh`: control plane, executor and host over one store.
- `runs_folder`: the folder of the runs of this machine.
- `pauses`: the time in which no process drives a run.
- `ended_runs`: what lists show of ended runs, kept in that folder.
"""
