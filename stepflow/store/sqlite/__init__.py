"""The embedded store: one SQLite file, or memory. `SqliteStore` (in `store`) is its only public class.

- `store`: the event loop's side, and the thread that executes requests.
- `engine`: requests, executed on the thread.
- `batch`: uncommitted changes of a batch of requests.
- `table`: the SQL.
- `history`: the last revisions, for watches and older ranges.
- `leases`: leases, in memory.
- `file`: opens, locks and closes the database.
- `wal`: damage in the log of a database that no process owns.
"""
