"""The executor: drives assigned runs, journals their facts, and calls component hosts.

The executor as a whole:
- `__main__`: `python -m executor`.
- `executor`: life from registration to close; the public interface.
- `service`: the gRPC service: attend, live events, drain.
- `session`: one incarnation: id, lease, fenced writer.
- `ownership`: the partitions driven here, and the guard around their work.
- `host_waits`: partitions without a host for their plugin, told in their statuses.
- `writes`: the flush of all outboxes to the fenced writer.
- `inbox`: cancels and signals for runs.
- `messages`: the messages of one partition, each recorded once.
- `frames`: frames from hosts, passed to the calling partitions.
- `timers`: wake-ups of partitions.
- `hosts/`: component hosts: streams, credits, routes, queues.

One partition:
- `drive`: facts in, decisions out; writes the end of the partition.
- `calls`: dispatches, results and losses.
- `callbacks`: sub-runs and reports for components with a call in flight.
- `effects`: actions on hosts, released once their cause is journaled.
- `outbox`: entries to be journaled, with the effects waiting for them.
- `result_parts`: results as references to journal and blobs.
- `outcome`: the final records: status, counts, results.
- `values`: large values in memory, counted against the budget of the executor.
- `blobs`: blobs of runs, retried while the blob store is away.

Changes of the owner:
- `takeover`: from an assignment to a driven partition.
- `adoption`: replay of the journal, and held calls.
- `readings`: the count of owners that die while they read a journal.
- `unread`: the end of a run whose journal must not be read again.
- `give_back`: undrivable partitions, moved to the leader's orphans.
- `handover`: all partitions to other executors, for a drain.
"""
