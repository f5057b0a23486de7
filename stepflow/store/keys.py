"""All keys that the mesh writes: one function per key, and a parser where keys are read back.

The store adds the prefix of the mesh (several meshes may share an etcd).

- Numbers are zero-padded, so that keys sort numerically. Each `parse_*` is the inverse of its maker.
- Ids between two slashes must not contain a slash, or one run's prefix would cover keys of another run. Names and paths
  come last and may contain slashes.
"""

from __future__ import annotations

from stepflow.errors import Invalid

FLOWS = "flows/"
FLOW_NAMES = "flow-names/"
RUNS = "runs/"
BY_AGE = "by-age/"
STATUS = "status/"
RESULTS = "results/"
PENDING = "pending/"
ASSIGNED = "assigned/"
INBOX = "inbox/"
JOURNAL = "journal/"
ADOPTING = "adopting/"
STEPS = "steps/"
"""Lists of steps, in segments only."""
PAUSED = "paused/"
EXECUTOR_SESSIONS = "sessions/executors/"
HOST_SESSIONS = "sessions/hosts/"
CURSORS = "cursors/"
ROUTES = "routes/"
PLUGINS = "plugins/"
SEGMENTS = "segments/"
DELETED = "deleted/"

LEADER = "leader"
FORMATS = "formats"
PRESSURE = "pressure"

SEGMENTS_HEAD = "segments-head"
"""Put with every change under `segments/`: its mod revision is the version of the set of segments."""

SEGMENTS_MARK = "segments-mark"

SEGMENTS_AND_HEAD = "segments"
"""Prefix of `segments/` and `segments-head`."""

BY_AGE_COMPLETE = "by-age-complete"
"""Present once every run of the store has an entry under `by-age/`."""

RETURNED = "returned-by."
"""Prefix of the id of an executor that gave an assignment back. No executor id begins like this."""

HANDED_OVER = "handed-over-by."
"""Prefix of the id of an executor that drained without a successor for its runs. No executor id begins like this."""

PARTITION_DIGITS = 6
"""A million partitions of 64 items."""

SEQ_DIGITS = 8
"""A journal holds at most 50,000 entries."""

AGE_DIGITS = 13
"""Milliseconds since 1970, until the year 2286."""


def flow(flow_id: str) -> str:
    """A flow document; `flow_id` is its hash."""
    return FLOWS + _part(flow_id)


def flow_name(name: str) -> str:
    """The versions of a named flow."""
    return FLOW_NAMES + name


def run(run_id: str) -> str:
    """The request of a run."""
    return RUNS + _part(run_id)


def by_age(run_id: str, created_at_ms: int) -> str:
    """What a list shows of a run. The newest run sorts first."""
    return f"{by_age_bound(created_at_ms)}{_part(run_id)}"


def by_age_bound(created_at_ms: int) -> str:
    """Prefix of the runs of this millisecond: behind all younger runs, before all older ones."""
    age = 10**AGE_DIGITS - min(max(1, created_at_ms), 10**AGE_DIGITS)
    return f"{BY_AGE}{age:0{AGE_DIGITS}}/"


def status(run_id: str, partition: int) -> str:
    """Status and counts of a partition."""
    return f"{status_of_run(run_id)}{_partition(partition)}"


def status_of_run(run_id: str) -> str:
    """Prefix of the status keys of all partitions of a run."""
    return f"{STATUS}{_part(run_id)}/"


def results(run_id: str, partition: int) -> str:
    """Outcomes of a partition's items."""
    return f"{results_of_run(run_id)}{_partition(partition)}"


def results_of_run(run_id: str) -> str:
    """Prefix of the results of all partitions of a run."""
    return f"{RESULTS}{_part(run_id)}/"


def plugin(name: str) -> str:
    """The pool of hosts that owns the name of a plugin."""
    return PLUGINS + name


def pending(run_id: str) -> str:
    """A run that is accepted and has no executor yet."""
    return PENDING + _part(run_id)


def assigned(executor_id: str, run_id: str, partition: int) -> str:
    """An assignment; its create revision is the run's epoch."""
    return f"{assigned_to(executor_id)}{_part(run_id)}/{_partition(partition)}"


def assigned_to(executor_id: str) -> str:
    """Prefix of an executor's assignments."""
    return f"{ASSIGNED}{_part(executor_id)}/"


def returned_by(executor_id: str) -> str:
    """Return the id of assignments that an executor gave back: no executor has it, so the leader sees orphans."""
    return RETURNED + _part(executor_id)


def handed_over_by(executor_id: str) -> str:
    """Return the id of assignments that an executor left without a successor."""
    return HANDED_OVER + _part(executor_id)


def inbox(run_id: str, message_id: str) -> str:
    """A cancel or a signal."""
    return f"{inbox_of_run(run_id)}{_part(message_id)}"


def inbox_of_run(run_id: str) -> str:
    """Prefix of a run's inbox."""
    return f"{INBOX}{_part(run_id)}/"


def journal(run_id: str, partition: int, first_seq: int) -> str:
    """The entries of one flush; `first_seq` is the seq of the first of them."""
    if not 0 <= first_seq < 10**SEQ_DIGITS:
        raise Invalid("KEY_PART_INVALID", f"seq {first_seq} does not fit a journal key", seq=first_seq)
    return f"{journal_of_partition(run_id, partition)}{first_seq:0{SEQ_DIGITS}}"


def journal_of_partition(run_id: str, partition: int) -> str:
    """Prefix of a partition's journal."""
    return f"{journal_of_run(run_id)}{_partition(partition)}/"


def journal_of_run(run_id: str) -> str:
    """Prefix of the journals of all partitions of a run."""
    return f"{JOURNAL}{_part(run_id)}/"


def adopting(run_id: str, partition: int) -> str:
    """The owners that began to read the partition's journal since the last `Adopted` entry."""
    return f"{adopting_of_run(run_id)}{_partition(partition)}"


def adopting_of_run(run_id: str) -> str:
    """Prefix of these keys of all partitions of a run."""
    return f"{ADOPTING}{_part(run_id)}/"


def paused(run_id: str) -> str:
    """How long no process drove a run; in databases of single runs only."""
    return PAUSED + _part(run_id)


def session_executor(executor_id: str) -> str:
    """An executor's session, on its lease."""
    return EXECUTOR_SESSIONS + _part(executor_id)


def session_host(host_id: str) -> str:
    """A host's session, on its lease."""
    return HOST_SESSIONS + _part(host_id)


def cursor(executor_id: str) -> str:
    """An executor's write counter, on its lease."""
    return CURSORS + _part(executor_id)


def route(prefix: str) -> str:
    """The rules of a route prefix such as `/python`."""
    return ROUTES + prefix


def leader() -> str:
    """The leader's id, on the leader's lease."""
    return LEADER


def formats() -> str:
    """The formats that this store may have."""
    return FORMATS


def segment(segment_id: str) -> str:
    """The manifest of a segment of ended runs."""
    return SEGMENTS + _part(segment_id)


def segments_head() -> str:
    """The version of the set of segments."""
    return SEGMENTS_HEAD


def segments_mark() -> str:
    """The mark of this store in the ids of its segments."""
    return SEGMENTS_MARK


def deleted(run_id: str) -> str:
    """A deleted run that a segment may have, or get from a packer that has read the run already."""
    return DELETED + _part(run_id)


def pressure() -> str:
    """What services change while the store is short of room."""
    return PRESSURE


def tail(prefix: str, key: str) -> str:
    """Return the rest of `key` after `prefix`: the id or name under one of the prefixes above."""
    assert key.startswith(prefix), (prefix, key)
    return key[len(prefix) :]


def parse_assigned(key: str) -> tuple[str, str, int]:
    """Return executor id, run id and partition."""
    executor_id, run_id, partition = tail(ASSIGNED, key).split("/")
    return executor_id, run_id, int(partition)


def parse_by_age(key: str) -> tuple[int, str]:
    """Return creation time and run id."""
    age, run_id = tail(BY_AGE, key).split("/")
    return 10**AGE_DIGITS - int(age), run_id


def parse_status(key: str) -> tuple[str, int]:
    """Return run id and partition."""
    run_id, partition = tail(STATUS, key).split("/")
    return run_id, int(partition)


def parse_results(key: str) -> tuple[str, int]:
    """Return run id and partition."""
    run_id, partition = tail(RESULTS, key).split("/")
    return run_id, int(partition)


def parse_segment(key: str) -> str:
    """Return the id of the segment."""
    return tail(SEGMENTS, key)


def parse_deleted(key: str) -> str:
    """Return the run id."""
    return tail(DELETED, key)


def parse_inbox(key: str) -> tuple[str, str]:
    """Return run id and message id."""
    run_id, message_id = tail(INBOX, key).split("/")
    return run_id, message_id


def parse_journal(key: str) -> tuple[str, int, int]:
    """Return run id, partition and the seq of the first entry."""
    run_id, partition, first_seq = tail(JOURNAL, key).split("/")
    return run_id, int(partition), int(first_seq)


def _part(name: str) -> str:
    if not name or "/" in name:
        raise Invalid("KEY_PART_INVALID", f"{name!r} cannot be an id: it must not be empty or hold a slash", id=name)
    return name


def _partition(partition: int) -> str:
    if not 0 <= partition < 10**PARTITION_DIGITS:
        raise Invalid("KEY_PART_INVALID", f"there is no partition {partition}", partition=partition)
    return f"{partition:0{PARTITION_DIGITS}}"
