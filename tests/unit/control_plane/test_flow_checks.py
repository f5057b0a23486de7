"""The check of a control plane: its verdicts, how long they hold, and what a refusal says."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest

from control_plane import flow_checks
from control_plane.flow_checks import CHECKS_AT_ONCE, FlowChecks, refuse_errors
from control_plane.offers import MeshCatalogue
from stepflow.check import Catalogue, KnownComponent, KnownPlugin
from stepflow.errors import Invalid
from stepflow.flow import Diagnostic, Diagnostics, Flow, flow_from_tree, flow_id
from stepflow.routing.table import Rule

CATALOGUE = Catalogue({"/mine": (Rule("mine"),)}, {"mine": KnownPlugin((KnownComponent("/ok", "/ok"),))})


def flow_of(component: str, input: Any = None) -> Flow:
    return flow_from_tree({"steps": [{"id": "a", "component": component, "input": input}], "output": {"$step": "a"}})


class Offers:
    """A catalogue whose revision the test sets."""

    def __init__(self) -> None:
        self.revision = 1
        self.catalogue = CATALOGUE
        self.coming: Catalogue | None = None

    def known(self) -> MeshCatalogue:
        return MeshCatalogue(self.revision, self.catalogue)

    async def current(self) -> MeshCatalogue:
        return self.known()

    async def refresh(self) -> None:
        """Learn what is registered by now."""
        if self.coming is not None:
            self.catalogue, self.coming = self.coming, None
            self.revision += 1


class Runs:
    """The runs that exist."""

    def __init__(self, *run_ids: str) -> None:
        self.keys = [f"runs/{run_id}" for run_id in run_ids]

    async def get(self, key: str) -> Any:
        return key if key in self.keys else None


class Counted:
    """Checks, and how often the check itself ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *run_ids: str) -> None:
        self.offers = Offers()
        offers, runs = self.offers, Runs(*run_ids)
        self.checks = FlowChecks(offers, runs)  # type: ignore[arg-type]  # the parts that are used
        self.ran = 0
        self.threads: set[int] = set()
        inner = flow_checks._findings

        def findings(*arguments: Any) -> Diagnostics:
            self.ran += 1
            self.threads.add(threading.get_ident())
            return inner(*arguments)

        monkeypatch.setattr(flow_checks, "_findings", findings)

    async def codes(self, flow: Flow, *variables: str, overrides: Any = None) -> list[int]:
        found, refused = await self.checks.verdict(flow, flow_id(flow), variables, overrides)
        codes = [item.code for item in found if item.level != "warning"]
        assert refused is bool(codes)
        return codes


def test_a_verdict_holds_until_flow_variables_overrides_or_the_catalogue_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        counted = Counted(monkeypatch)
        wrong = flow_of("/mine/okk", {"$variable": "name"})
        for _ in range(3):
            assert await counted.codes(wrong, "name") == [2900]
        assert counted.ran == 1

        right = {"steps": {"a": {"value": {"component": "/mine/ok"}}}}
        assert await counted.codes(wrong) == [2900, 2904]
        assert await counted.codes(flow_of("/mine/ok")) == []
        assert await counted.codes(wrong, "name", overrides=right) == []
        counted.offers.revision += 1
        assert await counted.codes(wrong, "name") == [2900]
        assert counted.ran == 5

    asyncio.run(main())


def test_equal_checks_at_the_same_time_are_one_and_run_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        counted = Counted(monkeypatch)
        flow = flow_of("/mine/okk")
        waiting = [asyncio.create_task(counted.codes(flow)) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert results[1:] == [[2900]] * 19
        assert counted.ran == 1
        assert threading.get_ident() not in counted.threads

    asyncio.run(main())


def test_kept_verdicts_and_their_findings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_checks, "VERDICTS_MAX", 3)

    async def main() -> None:
        counted = Counted(monkeypatch)
        flows = [flow_of(f"/mine/okk{number}") for number in range(5)]
        for flow in flows:
            await counted.codes(flow)
        assert len(counted.checks._verdicts) == 3
        assert counted.checks._findings == sum(len(kept.found) for kept in counted.checks._verdicts.values())

        monkeypatch.setattr(flow_checks, "FINDINGS_KEPT_MAX", 1)
        await counted.codes(flow_of("/mine/okk9"))
        assert counted.checks._findings <= 1

    asyncio.run(main())


def test_the_verdict_without_a_catalogue_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        counted = Counted(monkeypatch)
        counted.offers.revision = 0
        await counted.codes(flow_of("/mine/okk"))
        assert counted.checks._verdicts == {}

    asyncio.run(main())


def test_a_submission_of_a_run_that_exists_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        checks = Counted(monkeypatch, "known").checks
        wrong = flow_of("/mine/okk")
        await checks.admit("known", wrong, flow_id(wrong), ())
        with pytest.raises(Invalid) as refused:
            await checks.admit("other", wrong, flow_id(wrong), ())
        assert refused.value.reason == "FLOW_INVALID"
        assert "did you mean `/mine/ok`?" in refused.value.message

    asyncio.run(main())


@pytest.mark.parametrize(
    ("codes", "reason"),
    [((2900,), "FLOW_INVALID"), ((2904, 2905), "VARIABLES_INVALID"), ((2904, 2900), "FLOW_INVALID")],
)
def test_the_reason_of_a_refusal_tells_whether_the_flow_or_its_values_are_wrong(
    codes: tuple[int, ...], reason: str
) -> None:
    found = Diagnostics(tuple(Diagnostic(code, f"problem {code}", "$.x") for code in codes))
    with pytest.raises(Invalid) as refused:
        refuse_errors(found)
    assert refused.value.reason == reason
    assert "problem 2904 ($.x)" in refused.value.message or codes == (2900,)


def test_warnings_refuse_nothing_and_a_refusal_names_few_errors() -> None:
    refuse_errors(Diagnostics((Diagnostic(1906, "no host"),)))
    with pytest.raises(Invalid) as refused:
        refuse_errors(Diagnostics(tuple(Diagnostic(2900, "x" * 5_000) for _ in range(9))))
    assert "has found 9 errors" in refused.value.message
    assert refused.value.message.endswith("; and 6 more")
    assert len(refused.value.message) < 1_200


def test_a_component_of_a_host_that_registered_a_moment_ago_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        counted = Counted(monkeypatch)
        known = KnownPlugin((KnownComponent("/ok", "/ok"), KnownComponent("/new", "/new")))
        counted.offers.coming = Catalogue(CATALOGUE.routes, {"mine": known})
        assert await counted.codes(flow_of("/mine/new")) == []
        assert counted.ran == 2

    asyncio.run(main())


@pytest.mark.parametrize("with_types", [True, False])
def test_clients_that_leave_do_not_make_more_checks_run_at_once(
    monkeypatch: pytest.MonkeyPatch, *, with_types: bool
) -> None:
    async def main() -> None:
        # 1. Checks that take as long as the test wants.
        may_end = threading.Event()
        begun: list[Flow] = []
        has_begun = threading.Semaphore(0)

        def slow(flow: Flow, *_arguments: Any, **_options: Any) -> Diagnostics:
            begun.append(flow)
            has_begun.release()
            assert may_end.wait(60)
            return Diagnostics()

        monkeypatch.setattr(flow_checks, "_findings", slow)
        monkeypatch.setattr(flow_checks, "_with_types", slow)
        checks = FlowChecks(Offers(), Runs())  # type: ignore[arg-type]  # the parts that are used

        async def check(number: int) -> None:
            flow = flow_of("/mine/ok", number)
            if with_types:
                await checks.types_verdict(flow, None, None, strict=False)
            else:
                await checks.verdict(flow, flow_id(flow), None)

        # 2. Many clients ask and leave.
        clients = [asyncio.create_task(check(number)) for number in range(20)]
        try:
            for _ in range(CHECKS_AT_ONCE):
                assert await asyncio.to_thread(has_begun.acquire, timeout=60)
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

            # 3. Another one waits for the checks that run, and for no more.
            last = asyncio.create_task(check(100))
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(begun) == CHECKS_AT_ONCE
        finally:
            may_end.set()
        await asyncio.wait_for(last, 60)
        assert len(begun) == CHECKS_AT_ONCE + 1

    asyncio.run(main())


def test_a_kept_verdict_does_not_keep_the_names_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        counted = Counted(monkeypatch)
        right = flow_of("/mine/ok")
        names = [f"{number}" + "x" * 1_000 for number in range(10)]
        await counted.codes(right, *names)
        await counted.codes(right, *reversed(names))
        assert counted.ran == 1
        (key,) = counted.checks._verdicts
        assert len(pickle.dumps(key)) < 1_000

    asyncio.run(main())


def test_a_very_long_verdict_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        counted = Counted(monkeypatch)
        wrong = flow_of("/mine/ok", {"$variable": "x" * flow_checks.VERDICT_CHARS_MAX})
        assert await counted.codes(wrong) == [2904]
        assert not counted.checks._verdicts

    asyncio.run(main())
