"""`BlockingClient`, for programs without an event loop: a `Client` on a thread of its own.

Has the methods of `Client`; each blocks. Safe for concurrent threads. Limit: a call from the loop of an asyncio program
would block the loop.
"""

from __future__ import annotations

import asyncio
import threading
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from stepflow.client.client import BUSY_PATIENCE_S, Client
from stepflow.client.requests import NOT_GIVEN

if TYPE_CHECKING:
    import os
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Coroutine,
        Iterable,
        Iterator,
        Mapping,
    )
    from types import TracebackType

    from stepflow.client.model import (
        ClientEvent,
        ClusterInfo,
        Component,
        FlowDiagnostic,
        FlowInfo,
        HostRestart,
        Run,
        RunItem,
        RunStep,
        StoredFlow,
    )
    from stepflow.client.requests import Document, FlowLike, Named
    from stepflow.client.watch import RunWatch
    from stepflow.errors import Overloaded, StepflowError
    from stepflow.rpc.tls import Tls

_T = TypeVar("_T")

PULLED_TOGETHER = 16
"""Values of an iterator that are taken with one change of threads."""


class BlockingClient:
    """The blocking twin of `Client`, which documents methods and errors. Close the client, or use `with`."""

    def __init__(
        self,
        server: str | None = None,
        *,
        tls: Tls | None = None,
        patience_s: float = 10.0,
        busy_patience_s: float = BUSY_PATIENCE_S,
        on_busy: Callable[[Overloaded, float], None] | None = None,
    ) -> None:
        """As `Client`; `on_busy` is called on the thread of the client."""
        self._client = Client(server, tls=tls, patience_s=patience_s, busy_patience_s=busy_patience_s, on_busy=on_busy)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stepflow client", daemon=True)
        self._thread.start()

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. Idempotent."""
        if self._loop.is_closed():
            return

        self._do(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C: end the call too
            future.cancel()
            raise

    def _iterate(self, source: AsyncGenerator[_T, None] | RunWatch) -> Iterator[Any]:
        """Yield the elements of an asynchronous source, and close the source at the end."""
        iterator: AsyncIterator[Any] = aiter(source)

        try:
            while True:
                found = self._do(_next(iterator))
                if found is _END:
                    return
                yield found
        finally:
            if not self._loop.is_closed():
                self._do(source.aclose())

    def store_flow(self, flow: Document, *, label: str = NOT_GIVEN) -> StoredFlow:
        return self._do(self._client.store_flow(flow, label=label))

    def validate_flow(self, flow: FlowLike, **options: Any) -> list[FlowDiagnostic]:
        return self._do(self._client.validate_flow(flow, **options))

    def get_flow(self, flow: Named | str) -> tuple[str, dict[str, Any]]:
        return self._do(self._client.get_flow(flow))

    def list_flows(self, name_prefix: str = "") -> Iterator[FlowInfo]:
        return self._iterate(self._client.list_flows(name_prefix))

    def delete_flow(self, name: str, *, label: str = NOT_GIVEN) -> None:
        self._do(self._client.delete_flow(name, label=label))

    def submit(self, flow: FlowLike, input: Any = None, **options: Any) -> str:
        return self._do(self._client.submit(flow, input, **options))

    def submit_batch(self, flow: FlowLike, inputs: Iterable[Any], **options: Any) -> str:
        if iter(inputs) is not inputs:
            return self._do(self._client.submit_batch(flow, inputs, **options))

        # An iterator belongs to the thread of the caller: a cursor of a database refuses any other.
        pulled = _Pulled(iter(inputs), self._loop)
        future = asyncio.run_coroutine_threadsafe(
            self._client.submit_batch(flow, pulled.values(), **options), self._loop
        )
        future.add_done_callback(lambda _: pulled.asked.put(None))
        try:
            pulled.serve()
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit_runs(self, flow: FlowLike, inputs: Iterable[Any], **options: Any) -> list[str | StepflowError]:
        return self._do(self._client.submit_runs(flow, inputs, **options))

    def get(self, run_id: str) -> Run:
        return self._do(self._client.get(run_id))

    def wait(self, run_id: str, *, timeout_s: float | None = None) -> Run:
        return self._do(self._client.wait(run_id, timeout_s=timeout_s))

    def watch(
        self,
        run_id: str,
        *,
        positions: Mapping[int, int] | None = None,
        include_results: bool = False,
        include_logs: bool = False,
        until_now: bool = False,
    ) -> Iterator[ClientEvent]:
        return self._iterate(
            self._client.watch(
                run_id,
                positions=positions,
                include_results=include_results,
                include_logs=include_logs,
                until_now=until_now,
            )
        )

    def list_runs(self, **options: Any) -> Iterator[Run]:
        return self._iterate(self._client.list_runs(**options))

    def cancel(self, run_id: str) -> Run:
        return self._do(self._client.cancel(run_id))

    def signal(
        self, run_id: str, name: str, payload: Any = None, *, item: int = 0, signal_id: str | None = None
    ) -> str:
        return self._do(self._client.signal(run_id, name, payload, item=item, signal_id=signal_id))

    def delete(self, run_id: str) -> None:
        self._do(self._client.delete(run_id))

    def items(self, run_id: str, *, page_size: int = 0, first: int = 0) -> Iterator[RunItem]:
        return self._iterate(self._client.items(run_id, page_size=page_size, first=first))

    def get_result(self, run_id: str, item: int = 0) -> Iterator[bytes]:
        return self._iterate(self._client.get_result(run_id, item))

    def save_result(self, run_id: str, path: str | os.PathLike[str], item: int = 0) -> int:
        return self._do(self._client.save_result(run_id, path, item))

    def steps(
        self,
        run_id: str,
        *,
        include_results: bool = False,
        page_size: int = 0,
        on_incomplete: Callable[[str], None] | None = None,
    ) -> Iterator[RunStep]:
        return self._iterate(
            self._client.steps(
                run_id, include_results=include_results, page_size=page_size, on_incomplete=on_incomplete
            )
        )

    def put_blob(self, content: bytes, *, blob_type: str = "data") -> str:
        return self._do(self._client.put_blob(content, blob_type=blob_type))

    def get_blob(self, blob_id: str) -> tuple[bytes, str]:
        return self._do(self._client.get_blob(blob_id))

    def components(self, plugin: str = "") -> list[Component]:
        return self._do(self._client.components(plugin))

    def cluster(self) -> ClusterInfo:
        return self._do(self._client.cluster())

    def drain(self, *, executor_id: str = "", host_id: str = "") -> None:
        self._do(self._client.drain(executor_id=executor_id, host_id=host_id))

    def undrain(self, *, executor_id: str = "", host_id: str = "") -> None:
        self._do(self._client.undrain(executor_id=executor_id, host_id=host_id))

    def restart_plugin(self, plugin: str, *, host_id: str = "") -> list[HostRestart]:
        return self._do(self._client.restart_plugin(plugin, host_id=host_id))


class _Pulled:
    """An iterator of this thread, read by the thread of an event loop: `serve` here, `values` there."""

    def __init__(self, source: Iterator[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.asked: SimpleQueue[asyncio.Future[list[Any]] | None] = SimpleQueue()
        """Futures that wait for the next values; None: no more are wanted."""
        self._source = source
        self._loop = loop

    def serve(self) -> None:
        """Answer until no more values are wanted."""
        while (answer := self.asked.get()) is not None:
            found: list[Any] | Exception
            try:
                found = list(islice(self._source, PULLED_TOGETHER))
            except Exception as error:
                found = error
            self._loop.call_soon_threadsafe(_answer, answer, found)

    async def values(self) -> AsyncGenerator[Any, None]:
        while True:
            answer: asyncio.Future[list[Any]] = self._loop.create_future()
            self.asked.put(answer)
            found = await answer
            for value in found:
                yield value
            if len(found) < PULLED_TOGETHER:
                return


def _answer(answer: asyncio.Future[list[Any]], found: list[Any] | Exception) -> None:
    if answer.done():  # the call was cancelled
        return
    if isinstance(found, Exception):
        answer.set_exception(found)
    else:
        answer.set_result(found)


_END: Any = object()


async def _next(iterator: AsyncIterator[_T]) -> _T:
    return await anext(iterator, _END)
