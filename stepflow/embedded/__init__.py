"""Runs without a mesh: all parts in one process over SQLite (`mesh`), and the folder of the runs (`runs_folder`)."""
