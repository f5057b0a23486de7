"""The key layout: sort order and prefixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stepflow.errors import Invalid
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Callable

RUN = "0192f0c1-2b6e-7cc0-8000-000000000001"


def test_what_is_parsed_is_what_was_made() -> None:
    assert keys.parse_assigned(keys.assigned("exec-1-ab12", RUN, 17)) == ("exec-1-ab12", RUN, 17)
    assert keys.parse_status(keys.status(RUN, 0)) == (RUN, 0)
    assert keys.parse_by_age(keys.by_age(RUN, 1_700_000_000_000)) == (1_700_000_000_000, RUN)
    assert keys.parse_results(keys.results(RUN, 999_999)) == (RUN, 999_999)
    assert keys.parse_inbox(keys.inbox(RUN, "m-1")) == (RUN, "m-1")
    assert keys.parse_journal(keys.journal(RUN, 3, 49_999)) == (RUN, 3, 49_999)
    assert keys.parse_segment(keys.segment("1700000000000-0badcafe")) == "1700000000000-0badcafe"
    assert keys.parse_deleted(keys.deleted(RUN)) == RUN
    assert keys.tail(keys.PENDING, keys.pending(RUN)) == RUN
    assert keys.tail(keys.EXECUTOR_SESSIONS, keys.session_executor("e")) == "e"
    assert keys.tail(keys.ROUTES, keys.route("/python/sub")) == "/python/sub"


def test_journal_keys_sort_by_partition_and_seq() -> None:
    order = [(p, seq) for p in (0, 1, 9, 10, 100, 999_999) for seq in (0, 9, 10, 99, 100, 49_999)]
    made = [keys.journal(RUN, p, seq) for p, seq in order]
    assert made == sorted(made)


def test_the_prefix_of_a_run_covers_no_other_run() -> None:
    other = RUN + "0"
    for prefix, key in (
        (keys.journal_of_run(RUN), keys.journal(other, 0, 0)),
        (keys.journal_of_partition(RUN, 1), keys.journal(RUN, 10, 0)),
        (keys.inbox_of_run(RUN), keys.inbox(other, "m")),
        (keys.status_of_run(RUN), keys.status(other, 0)),
        (keys.results_of_run(RUN), keys.results(other, 0)),
        (keys.assigned_to("e1"), keys.assigned("e10", RUN, 0)),
    ):
        assert not key.startswith(prefix)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keys.run(""),
        lambda: keys.run("a/b"),
        lambda: keys.status("a/000000", 0),
        lambda: keys.inbox(RUN, ""),
        lambda: keys.session_executor("e/1"),
        lambda: keys.status(RUN, -1),
        lambda: keys.status(RUN, 1_000_000),
        lambda: keys.journal(RUN, 0, -1),
        lambda: keys.journal(RUN, 0, 100_000_000),
    ],
)
def test_an_id_that_would_break_the_nesting_is_refused(make: Callable[[], str]) -> None:
    with pytest.raises(Invalid) as caught:
        make()
    assert caught.value.reason == "KEY_PART_INVALID"


def test_younger_runs_sort_first_and_a_bound_lies_between_the_milliseconds() -> None:
    times = (-5, 0, 1, 999, 1_700_000_000_000, 1_700_000_000_001, 10**13, 10**14)
    paths = [keys.by_age(RUN, at_ms) for at_ms in times]
    assert sorted(paths, reverse=True) == paths
    assert len({len(path) for path in paths}) == 1
    for at_ms in (2, 1_700_000_000_000):
        assert keys.by_age(RUN, at_ms + 1) < keys.by_age_bound(at_ms) < keys.by_age(RUN, at_ms)
