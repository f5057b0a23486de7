"""Partitions replayed for reading: on the event loop if they are small, else in a process of their own.

Why a process: a replay of 50,000 entries takes a second, and makes so many objects that each collection of the garbage
collector would stop the service. The service gets rows of one page.

- `replays`: `Replays`, the partitions that are kept, and their pages.
- `in_service`: replays in the service, and in its threads.
- `in_process`: replays in the process, as the service sees them.
- `partition`: one partition while it is replayed, on either side.
- `rows`: steps and items as rows, for messages and for segments.
- `read_rows`: steps and items from rows.
- `messages`: what the service and the process tell each other.
- `process`: `ReplayProcess`, the service's side.
- `worker`: the process.
"""
