"""The embedded store: one SQLite file, or memory. `SqliteStore` (in `store`) is its only public class.

`store` has the event loop's side and the thread; on the thread, `engine` executes requests over a `batch`, which reads
and writes a `table` and keeps a `history`; `leases` live in memory; `file` opens, locks and closes the database.
"""
