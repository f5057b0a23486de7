"""Admissions by the fill of the store: rates, turns, refusals; over a simulated store and clock."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from control_plane import pressure
from control_plane.pressure import AdmissionPressure, retry_after_ms
from control_plane.store_meter import StoreSize
from stepflow.errors import Overloaded

QUOTA = 1_000_000_000


class Meter:
    """A store of a given fill."""

    def __init__(self, share: float) -> None:
        self.bytes = share * QUOTA

    async def read(self) -> StoreSize:
        return StoreSize(int(self.bytes), int(self.bytes))


class Clock:
    """Time that passes only during a sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_000.0
        monkeypatch.setattr(pressure.asyncio, "sleep", self.sleep)

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s


def gate(meter: Any, out_per_s: float = 0.0, **options: Any) -> AdmissionPressure:
    return AdmissionPressure(meter, QUOTA, lambda: out_per_s, **options)


@pytest.mark.parametrize("share", [0.0, 0.39, 0.4])
def test_below_two_fifths_of_the_quota_admissions_are_free(share: float) -> None:
    admission = gate(Meter(share))
    assert admission.rate(StoreSize(int(share * QUOTA), 0)) is None
    for _ in range(1_000):
        asyncio.run(admission.admit())


def test_the_rate_falls_with_the_fill_to_zero_and_follows_the_rate_at_which_runs_leave() -> None:
    admission = gate(Meter(0), out_per_s=100)
    rates = [admission.rate(StoreSize(share * QUOTA // 100, 0)) for share in range(41, 73)]
    assert all(rate is not None for rate in rates)
    assert rates == sorted(rates, key=lambda rate: -(rate or 0))
    assert rates[29:] == [0.0, 0.0, 0.0]
    idle = gate(Meter(0), out_per_s=0)
    at_half_way = StoreSize(int(0.55 * QUOTA), 0)
    leaving = (admission.rate(at_half_way) or 0) - (idle.rate(at_half_way) or 0)
    assert leaving == pytest.approx(100)


def test_a_submission_waits_for_its_turn_and_later_ones_are_refused_with_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    admission = gate(Meter(0.65), out_per_s=20, clock=clock)
    rate = admission.rate(StoreSize(int(0.65 * QUOTA), 0)) or 0
    begun_at_s, count = clock.now_s, int(rate)
    for _ in range(count):
        asyncio.run(admission.admit())
    assert clock.now_s - begun_at_s == pytest.approx((count - 1) / rate)

    async def at_once() -> list[Overloaded]:
        """Submit at one instant: the waits do not advance the time."""
        refused: list[Overloaded] = []
        admission._next_s = clock.now_s + 10 * pressure.TURN_S_MAX
        for _ in range(50):
            with pytest.raises(Overloaded) as error:
                await admission.admit()
            refused.append(error.value)
        return refused

    refused = asyncio.run(at_once())
    assert {error.reason for error in refused} == {"STORE_FULL"}
    pauses = [int(str(error.details["retry_after_ms"])) for error in refused]
    assert min(pauses) >= 1_000 * pressure.RETRY_S_MIN * (1 - pressure.SPREAD)
    assert max(pauses) <= 1_000 * pressure.RETRY_S_MAX * (1 + pressure.SPREAD)
    assert len(set(pauses)) > 40, "they would come back together"


def test_a_full_store_admits_nothing_and_goes_on_when_there_is_room() -> None:
    meter = Meter(0.7)
    admission = gate(meter)
    for _ in range(3):
        with pytest.raises(Overloaded) as refused:
            asyncio.run(admission.admit())
        assert int(str(refused.value.details["retry_after_ms"])) >= 1_000
    meter.bytes = 0.3 * QUOTA
    asyncio.run(admission.admit())


def test_pauses_are_spread_and_bounded() -> None:
    random.seed(1)
    pauses = [retry_after_ms(5) for _ in range(200)]
    assert 3_750 <= min(pauses) < 4_000
    assert 6_000 < max(pauses) <= 6_250
    assert retry_after_ms(10_000) <= 1_000 * pressure.RETRY_S_MAX * (1 + pressure.SPREAD)
    assert retry_after_ms(0) > 0


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("run_bytes", [200_000, 2_000_000])
def test_under_three_times_the_load_the_store_never_fills_and_works_at_its_rate(
    replicas: int, run_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that runs leave 20 s after their admission, at a bounded rate; clients offer three times that rate."""
    out_max = QUOTA // 100 // run_bytes  # a hundredth of the quota leaves in a second
    clock = Clock(monkeypatch)
    meter: Any = Meter(0)
    admitted: list[int] = []
    left: list[int] = []
    gates = [AdmissionPressure(meter, QUOTA, lambda: sum(left[-20:]) / 20, clock) for _ in range(replicas)]
    highest = refusals = 0.0

    for second in range(300):
        admitted.append(0)
        for number in range(3 * out_max):
            clock.now_s = 10_000 + second + number / (3 * out_max)
            if is_admitted(gates[number % replicas]):
                admitted[-1] += 1
            else:
                refusals += 1
        left.append(min(sum(admitted[: max(0, second - 20)]) - sum(left), out_max))
        meter.bytes = (sum(admitted) - sum(left)) * run_bytes
        highest = max(highest, meter.bytes / QUOTA)

    assert highest < 0.73
    assert refusals > 0
    assert sum(left[-100:]) / 100 > 0.95 * out_max


def is_admitted(admission: AdmissionPressure) -> bool:
    """Drive an admission, which awaits nothing but the simulated time."""
    try:
        admission.admit().send(None)
    except StopIteration:
        return True
    except Overloaded:
        return False
    raise AssertionError("an admission waits for something else")
