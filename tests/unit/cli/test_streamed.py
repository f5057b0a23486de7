"""Results of a batch, written while it runs: order, gaps, failures of writing, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from stepflow.cli.display.streamed import ResultStream
from stepflow.cli.display.view import QuietView
from stepflow.cli.output import LargeOutcome, YamlTooLarge
from stepflow.codec import Json, encode
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

TOTAL = 200


class Batch:
    """A batch whose items end when a test says so. `read` serves what is durable."""

    def __init__(self, output: Path | None, *, ordered: bool) -> None:
        self.stream = ResultStream(output, QuietView(), ordered=ordered)
        self.ended: dict[int, Any] = {}
        self.reads: list[int] = []

    async def read(self, first: int) -> AsyncGenerator[tuple[int, Any], None]:
        self.reads.append(first)
        for item in range(first, TOTAL):
            yield item, self.ended.get(item)

    def end(self, *items: int, durable: bool = True) -> None:
        """End items, and let the stream write."""
        if durable:
            self.ended |= {item: self.ended.get(item, Json(encode(item))) for item in items}
        self.stream.note(items)
        asyncio.run(self.stream.step(self.read))

    def finish(self) -> None:
        def rest(first: int) -> Iterator[Any]:
            return ({"outcome": "success", "result": item} for item in range(first, TOTAL))

        self.stream.finish(rest)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def results(output: Path) -> list[Any]:
    return [line["result"] for line in lines(output)]


def test_results_in_order_wait_for_those_before_them(output: Path) -> None:
    batch = Batch(output, ordered=True)
    batch.end(2, 1)
    assert not output.exists()
    batch.end(0)
    assert results(output) == [0, 1, 2]
    batch.end(4)
    assert results(output) == [0, 1, 2]
    batch.end(3)
    assert results(output) == [0, 1, 2, 3, 4]
    assert batch.reads == [0, 3]


def test_results_as_they_come_bear_their_items(output: Path) -> None:
    batch = Batch(output, ordered=False)
    batch.end(150)
    batch.end(2, 151)
    batch.ended[0] = Failure(Code.TIMEOUT, "late")
    batch.end(0)
    assert lines(output) == [
        {"item": 150, "outcome": "success", "result": 150},
        {"item": 2, "outcome": "success", "result": 2},
        {"item": 151, "outcome": "success", "result": 151},
        {"item": 0, "outcome": "failed", "error": {"code": "TIMEOUT", "message": "late"}},
    ]


@pytest.mark.parametrize("ordered", [True, False])
def test_an_end_that_is_not_durable_yet_is_written_later(ordered: bool, output: Path) -> None:
    batch = Batch(output, ordered=ordered)
    batch.end(0, durable=False)
    assert lines(output) == []
    batch.ended[0] = Json(b"0")
    batch.end()
    assert results(output) == [0]


@pytest.mark.parametrize("ordered", [True, False])
def test_the_rest_follows_at_the_end_and_nothing_comes_twice(ordered: bool, output: Path) -> None:
    batch = Batch(output, ordered=ordered)
    batch.end(0, 1, 3)
    batch.finish()
    assert sorted(results(output)) == list(range(TOTAL))
    if ordered:
        assert results(output) == list(range(TOTAL))


def test_a_batch_without_items_leaves_an_empty_list(tmp_path: Path) -> None:
    stream = ResultStream(tmp_path / "results.yaml", QuietView(), ordered=True)
    stream.finish(lambda _: iter(()))
    assert yaml.safe_load((tmp_path / "results.yaml").read_text()) == []


def test_a_yaml_file_grows_by_elements_of_a_list(tmp_path: Path) -> None:
    batch = Batch(tmp_path / "results.yaml", ordered=False)
    for item in (1, 0):
        batch.end(item)
        assert yaml.safe_load((tmp_path / "results.yaml").read_text())[-1]["item"] == item


def test_a_large_result_is_written_in_chunks(output: Path) -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b'["a",'
        yield b'"b"]'

    batch = Batch(output, ordered=False)
    batch.ended[7] = LargeOutcome(0, chunks)
    batch.end(7)
    assert lines(output) == [{"item": 7, "outcome": "success", "result": ["a", "b"]}]


def test_a_large_result_ends_the_writing_of_yaml_but_not_the_run(tmp_path: Path) -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"1"

    batch = Batch(tmp_path / "results.yaml", ordered=True)
    batch.ended[0] = LargeOutcome(20_000_000, chunks)
    batch.end(0)
    with pytest.raises(YamlTooLarge):
        batch.finish()


def test_a_write_that_fails_is_told_at_the_end(tmp_path: Path) -> None:
    batch = Batch(tmp_path / "gone" / "results.jsonl", ordered=True)
    batch.end(0)
    batch.end(1)
    assert batch.reads == [0], "nothing is read that cannot be written"
    with pytest.raises(FileNotFoundError):
        batch.finish()


def test_what_was_read_before_ctrl_c_is_written(output: Path) -> None:
    async def stopped() -> None:
        stream, stuck = ResultStream(output, QuietView(), ordered=True), asyncio.Event()

        async def read(first: int) -> AsyncGenerator[tuple[int, Any], None]:
            yield 0, Json(b"0")
            stuck.set()
            await asyncio.Event().wait()

        stream.note([0])
        step = asyncio.create_task(stream.step(read))
        await stuck.wait()
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)

    asyncio.run(stopped())
    assert results(output) == [0]


def test_failed_items_are_noted_for_the_last_lines(output: Path) -> None:
    batch = Batch(output, ordered=False)
    batch.ended[5] = Failure(Code.TIMEOUT, "late")
    batch.end(5, 6)
    batch.finish()
    assert batch.stream.failed.count == 1
