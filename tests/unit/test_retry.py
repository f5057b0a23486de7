"""Back-off delays, jitter, retry classes, and both serialised forms of a back-off."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow.errors import Code, Invalid
from stepflow.mesh.v1 import retry_pb2
from stepflow.retry import (
    DELAY_MS_MAX,
    JITTER_MAX,
    Backoff,
    RetryClass,
    backoff_from_proto,
    backoff_from_tree,
    backoff_to_proto,
    backoff_to_tree,
    base_delay_ms,
    delay_ms,
    doubling,
    retry_class,
)

delays = st.integers(0, DELAY_MS_MAX)
backoffs = st.one_of(
    delays.map(lambda delay: Backoff("constant", delay, delay)),
    st.builds(Backoff, st.just("exponential"), delays, delays, st.floats(1, 1000)),
    st.builds(Backoff, st.just("fibonacci"), delays, delays),
)


def first_delays(backoff: Backoff, count: int) -> list[int]:
    return [base_delay_ms(backoff, k) for k in range(1, count + 1)]


def test_a_constant_back_off_always_waits_the_same() -> None:
    assert first_delays(Backoff("constant", 250, 250), 4) == [250, 250, 250, 250]


def test_an_exponential_back_off_multiplies_up_to_its_maximum() -> None:
    assert first_delays(Backoff("exponential", 100, 1_000, 2.0), 6) == [100, 200, 400, 800, 1_000, 1_000]


def test_an_exponential_back_off_may_have_a_fractional_factor() -> None:
    assert first_delays(Backoff("exponential", 1_000, 10_000, 1.5), 3) == [1_000, 1_500, 2_250]


def test_a_fibonacci_back_off_adds_up_to_its_maximum() -> None:
    assert first_delays(Backoff("fibonacci", 100, 1_000), 8) == [100, 100, 200, 300, 500, 800, 1_000, 1_000]


def test_the_default_waits_a_second_first_and_ten_at_most() -> None:
    assert first_delays(Backoff(), 8) == [1_000, 1_000, 2_000, 3_000, 5_000, 8_000, 10_000, 10_000]


def test_a_minimum_above_the_maximum_gives_the_maximum() -> None:
    assert first_delays(Backoff("fibonacci", 500, 200), 2) == [200, 200]
    assert first_delays(Backoff("exponential", 500, 200, 2.0), 2) == [200, 200]


@given(backoffs, st.sampled_from((1, 2, 50, 5_000, 1_000_000)))
def test_no_retry_count_overflows(backoff: Backoff, k: int) -> None:
    assert 0 <= base_delay_ms(backoff, k) <= DELAY_MS_MAX


def test_no_minimum_means_no_delay_however_often() -> None:
    assert base_delay_ms(Backoff("exponential", 0, 1_000, 1_000.0), 10_000) == 0
    assert base_delay_ms(Backoff("fibonacci", 0, 1_000), 1_000_000_000) == 0


@given(backoffs, st.integers(1, 100), st.text())
def test_jitter_adds_at_most_a_fifth_and_takes_nothing_away(backoff: Backoff, k: int, seed: str) -> None:
    base = base_delay_ms(backoff, k)
    assert base <= delay_ms(backoff, k, seed) <= base + base * JITTER_MAX


def test_jitter_follows_from_the_seed_alone() -> None:
    # The share is what `b2sum -l 64` gives for the seed; a replay by a later version must wait as long.
    assert delay_ms(Backoff("constant", 10_000, 10_000), 1, "run/0/step/1") == 11_173


def test_different_seeds_spread_over_the_jitter_range() -> None:
    backoff = Backoff("constant", 1_000, 1_000)
    seen = [delay_ms(backoff, 1, f"run-{n}/0/step/1") for n in range(1_000)]
    assert min(seen) < 1_010
    assert max(seen) > 1_190


def test_a_seed_with_a_lone_surrogate_is_no_problem() -> None:
    assert delay_ms(Backoff(), 1, "\ud800") >= 1_000


@pytest.mark.parametrize("code", list(Code))
def test_only_four_codes_are_ever_retried(code: Code) -> None:
    expected = {
        Code.UNREACHABLE: RetryClass.TRANSPORT,
        Code.TIMEOUT: RetryClass.TRANSPORT,
        Code.COMPONENT_FAILED: RetryClass.COMPONENT,
        Code.RESOURCE_UNAVAILABLE: RetryClass.COMPONENT,
    }
    assert retry_class(code) is expected.get(code, RetryClass.NEVER)


def test_a_back_off_reads_as_people_write_it() -> None:
    assert backoff_from_tree({"type": "constant"}) == Backoff("constant", 1_000, 1_000)
    assert backoff_from_tree({"type": "constant", "delayMs": 5}) == Backoff("constant", 5, 5)
    assert backoff_from_tree({"type": "fibonacci", "maxDelayMs": 7, "minDelayMs": None}) == Backoff(
        "fibonacci", 1_000, 7
    )
    assert backoff_from_tree({"type": "exponential", "minDelayMs": 1, "maxDelayMs": 2, "factor": 3}) == Backoff(
        "exponential", 1, 2, 3.0
    )


@pytest.mark.parametrize(
    ("tree", "field"),
    [
        (5, ""),
        (None, ""),
        ([], ""),
        ({}, "type"),
        ({"type": "linear"}, "type"),
        ({"type": ["constant"]}, "type"),
        ({"type": "constant", "minDelayMs": 5}, "minDelayMs"),
        ({"type": "fibonacci", "factor": 2}, "factor"),
        ({"type": "constant", "delayMs": -1}, "delayMs"),
        ({"type": "constant", "delayMs": True}, "delayMs"),
        ({"type": "constant", "delayMs": 1.5}, "delayMs"),
        ({"type": "constant", "delayMs": DELAY_MS_MAX + 1}, "delayMs"),
        ({"type": "exponential", "factor": 0.5}, "factor"),
        ({"type": "exponential", "factor": "2"}, "factor"),
        ({"type": "exponential", "factor": 1e9}, "factor"),
    ],
)
def test_a_wrong_back_off_names_the_member_at_fault(tree: object, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        backoff_from_tree(tree)
    assert caught.value.reason == "BACKOFF_INVALID"
    assert caught.value.details["field"] == field
    assert field in caught.value.message


@given(backoffs)
def test_both_written_forms_keep_a_back_off(backoff: Backoff) -> None:
    assert backoff_from_tree(backoff_to_tree(backoff)) == backoff
    stored = backoff_to_proto(backoff).SerializeToString()
    assert backoff_from_proto(retry_pb2.Backoff.FromString(stored)) == backoff


def test_an_unset_stored_back_off_is_the_default() -> None:
    assert backoff_from_proto(retry_pb2.Backoff()) == Backoff()


def test_a_stored_back_off_of_a_later_version_is_refused() -> None:
    later = retry_pb2.Backoff.FromString(b"\x08\x63")  # kind 99
    with pytest.raises(Invalid, match="does not know"):
        backoff_from_proto(later)
    with pytest.raises(Invalid, match="factor"):
        backoff_from_proto(retry_pb2.Backoff(kind=retry_pb2.Backoff.KIND_EXPONENTIAL, factor=float("nan")))


def test_pauses_double_up_to_their_bound_and_stay_there() -> None:
    assert list(islice(doubling(0.5, 3.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]
