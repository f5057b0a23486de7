"""Ended runs outside the store: packed into segments, which are objects of the blob store.

A packed run is the key-values that the store had of it. Readers of runs get them through `RunStore`, so that one code
answers for live and for packed runs. The layout of an object: `docs/reference/segments.md`.

- `format`: the layout of an object, and its decoding. Pure.
- `builder`: from the key-values of runs to an object and its manifest. Pure.
- `manifests`: the known set of segments.
- `reader`: `Archive`, which finds packed runs and reads them.
- `packed_runs`: packed runs for lists and admissions.
- `step_index`: the lists of steps of long runs.
- `run_store`: `RunStore`, the store as readers of runs see it.

The leader's work:
- `keeper`: all of it, in one task.
- `policy`: how long runs are kept, and where.
- `due_runs`: which runs are packed next.
- `run_reader`: reads ended runs from the store.
- `run_keys`: what it reads, and its deletion.
- `packer`: from the store into segments.
- `led_segments`: the set of segments, as their only writer knows it.
- `tombstones`: the end of deletions by clients.
- `upkeep`: retention, and segments of a good size.
- `rewriting`: new segments from old ones.
- `whole_results`: results without references to the journal.
- `counters`: the work in numbers.
"""
