"""The backend of plugins of type `builtin`: the components that come with the mesh.

`noop`, `create_messages`, `openai`, `put_blob`, `get_blob` and `load_file` run here. `eval`, `map`, `iterate`, `sleep`
and `wait_for_signal` are listed here and run by the engine: a call for one of them is a defect of the caller.

Failures: an invalid input is INVALID_INPUT; a missing file, blob, key or service is RESOURCE_UNAVAILABLE; all other
failures are COMPONENT_FAILED. Retries need `onError` of the step.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from component_host.backend import BackendListing, ServerHealth
from component_host.builtin.failure import CallFailed, failure_of
from component_host.builtin.files import load_file
from component_host.builtin.openai import OpenAIChat, read_input
from component_host.builtin.schemas import BUILTINS
from stepflow.codec import compact, encode
from stepflow.errors import Code, Failure, Invalid, StepflowError
from stepflow.off_loop import off_loop
from stepflow.routing.table import ENGINE_COMPONENTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from component_host.backend import BackendContext, HostCall
    from stepflow.config import BuiltinPlugin

T = TypeVar("T")

BLOB_TYPES = ("data", "flow", "binary")


class PromptInput(msgspec.Struct):
    user_prompt: str
    system_instructions: str | None = None


class PutBlobInput(msgspec.Struct):
    data: msgspec.Raw
    blob_type: str


class GetBlobInput(msgspec.Struct):
    blob_id: str


class LoadFileInput(msgspec.Struct):
    path: str
    format: Literal["json", "yaml", "text"] | None = None


class BuiltinBackend:
    """One plugin of type `builtin`.

    `/load_file` reads files below `allowed_paths` and the working directory.
    """

    def __init__(self, context: BackendContext, config: BuiltinPlugin, *, allowed_paths: Sequence[Path] = ()) -> None:
        self.name = context.name
        self.health = ServerHealth(context.listing_changed)
        self._working_directory = Path(context.working_directory)
        self._allowed_paths = tuple(allowed_paths)
        self._chat = OpenAIChat(config.openai, context.environ)
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False
        self._asynchronous: dict[str, Callable[[HostCall], Awaitable[bytes]]] = {
            "/openai": self._openai,
            "/put_blob": self._put_blob,
            "/get_blob": self._get_blob,
            "/load_file": self._load_file,
        }

    async def start(self) -> None:
        pass

    def listing(self) -> BackendListing:
        return _LISTING

    def execute(self, call: HostCall) -> None:
        component = call.request.component
        asynchronous = self._asynchronous.get(component)

        if asynchronous is not None:
            self._spawn(call, asynchronous)
        elif component == "/noop":
            call.succeed(call.input)
        elif component == "/create_messages":
            self._run_inline(call, _create_messages)
        else:
            call.fail(_unknown_component(component))

    def cancel(self, call: HostCall) -> None:
        task = call.backend_state
        if isinstance(task, asyncio.Task):
            task.cancel()

    async def close(self) -> None:
        self._closed = True
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

        await self._chat.close()

    def _run_inline(self, call: HostCall, component: Callable[[bytes], bytes]) -> None:
        try:
            call.succeed(component(call.input))
        except CallFailed as error:
            call.fail(error.failure)

    def _spawn(self, call: HostCall, component: Callable[[HostCall], Awaitable[bytes]]) -> None:
        if self._closed:
            call.fail(_closed(self.name))
            return

        task = asyncio.get_running_loop().create_task(self._run(call, component))
        call.backend_state = task
        self._running.add(task)
        task.add_done_callback(lambda task: self._ended(call, task))

    async def _run(self, call: HostCall, component: Callable[[HostCall], Awaitable[bytes]]) -> None:
        name = call.request.component.lstrip("/")
        try:
            call.succeed(await component(call))
        except CallFailed as error:
            call.fail(error.failure)
        except StepflowError as error:
            call.fail(failure_of(error, name))
        except Exception as error:  # an unsettled call would block its step
            call.fail(Failure(Code.COMPONENT_FAILED, f"{name}: unexpected {type(error).__name__}"))

    def _ended(self, call: HostCall, task: asyncio.Task[None]) -> None:
        """Settle a cancelled call: a task cancelled before its first step has not done so."""
        self._running.discard(task)
        if task.cancelled() and not call.settled:
            call.fail(_closed(self.name) if self._closed else Failure(Code.CANCELLED, "cancelled"))

    async def _openai(self, call: HostCall) -> bytes:
        request, members = await off_loop(len(call.input), _checked, call.input, read_input, "openai")
        return await self._chat.complete(request, members)

    async def _put_blob(self, call: HostCall) -> bytes:
        wanted = await off_loop(len(call.input), _input, call.input, _PUT_BLOB, "put_blob")
        if wanted.blob_type not in BLOB_TYPES:
            raise CallFailed(Code.INVALID_INPUT, f"put_blob: `blob_type` must be one of {', '.join(BLOB_TYPES)}")

        # A slice of the compact input is compact, too: its hash is the blob's id.
        return encode({"blob_id": await call.blobs.put(bytes(wanted.data), blob_type=wanted.blob_type)})

    async def _get_blob(self, call: HostCall) -> bytes:
        wanted = await off_loop(len(call.input), _input, call.input, _GET_BLOB, "get_blob")
        content, _ = await call.blobs.get(wanted.blob_id)

        try:
            data = await off_loop(len(content), compact, content)
        except Invalid:
            raise CallFailed(Code.INVALID_INPUT, f"get_blob: blob {wanted.blob_id[:64]} does not hold JSON") from None

        return encode({"data": msgspec.Raw(data)})

    async def _load_file(self, call: HostCall) -> bytes:
        return await asyncio.to_thread(self._load, call.input)

    def _load(self, text: bytes) -> bytes:
        wanted = _input(text, _LOAD_FILE, "load_file")
        loaded = load_file(
            wanted.path,
            wanted.format,
            working_directory=self._working_directory,
            allowed_paths=self._allowed_paths,
        )

        metadata = {
            "resolved_path": loaded.resolved_path,
            "size_bytes": loaded.size_bytes,
            "format": loaded.format,
        }
        return encode({"data": loaded.data, "metadata": metadata})


_LISTING = BackendListing(BUILTINS)

_PROMPT = msgspec.json.Decoder(PromptInput)
_PUT_BLOB = msgspec.json.Decoder(PutBlobInput)
_GET_BLOB = msgspec.json.Decoder(GetBlobInput)
_LOAD_FILE = msgspec.json.Decoder(LoadFileInput)


def _input(text: bytes, decoder: msgspec.json.Decoder[T], component: str) -> T:
    return _checked(text, decoder.decode, component)


def _checked(text: bytes, decode: Callable[[bytes], T], component: str) -> T:
    try:
        return decode(text)
    except msgspec.MsgspecError as error:
        raise CallFailed(Code.INVALID_INPUT, f"{component}: {error}") from None


def _create_messages(text: bytes) -> bytes:
    wanted = _input(text, _PROMPT, "create_messages")
    messages: list[dict[str, Any]] = []

    if wanted.system_instructions is not None:
        messages.append({"role": "system", "content": wanted.system_instructions})
    messages.append({"role": "user", "content": wanted.user_prompt})

    return encode({"messages": messages})


def _unknown_component(component: str) -> Failure:
    if component in ENGINE_COMPONENTS:
        return Failure(Code.ORCHESTRATOR_ERROR, f"builtin `{component}` runs in the engine, not on a component host")
    return Failure(Code.COMPONENT_NOT_FOUND, f"there is no builtin component `{component}`")


def _closed(name: str) -> Failure:
    return Failure(Code.UNREACHABLE, f"plugin `{name}` was stopped")
