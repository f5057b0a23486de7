"""The builtin component `/openai`: one chat completion from an OpenAI-compatible service.

Promises:
- Every member of the input reaches the service as written, except those of the connection (`api_key`, `base_url`) and
  nulls of `model`, `temperature` and `max_tokens`. `stream` is refused.
- The output holds what the model said: its text (`response`) and the service's own `message`, `finish_reason`,
  `usage`, `model` and `id`. A completion that says nothing fails.
- Requests go to the operator's service only: a flow cannot set the address, and redirects are not followed. So the
  operator's key never reaches another service.
- The key appears in no failure, even if the service repeats the key in an error message.
- Responses are bounded by `RESPONSE_BYTES_MAX`; the wait for the next bytes is bounded by `timeout` of the settings.

Failures: INVALID_INPUT if the flow has to change, RESOURCE_UNAVAILABLE if a later try, another key or quota may help,
COMPONENT_FAILED for an unusable response. No retries here: the failure's data carry the pause that the service asks for
(`retry_after_ms`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from component_host.builtin.failure import CallFailed
from component_host.late_imports import import_in_thread
from component_host.retry_after import retry_after_ms
from stepflow.codec import PAYLOAD_BYTES_MAX, decode, encode
from stepflow.errors import Code, Invalid
from stepflow.off_loop import off_loop
from stepflow.proxies import GATEWAY_STATUSES, proxy_for, through
from stepflow.redaction import redact_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from stepflow.config import OpenAISettings
from stepflow.proxies import Proxy

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-3.5-turbo"
"""The fixed model of upstream StepFlow."""

RESPONSE_BYTES_MAX = PAYLOAD_BYTES_MAX
CONNECT_TIMEOUT_S = 10.0
ERROR_TEXT_MAX = 300
"""Characters of the service's error message in a failure."""

CONNECTIONS_MAX = 64
"""Further requests wait for a free connection."""


class ChatInput(msgspec.Struct):
    """The members that are checked here; the others are the service's."""

    messages: list[dict[str, Any]]
    model: str | None = None
    temperature: float | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    stream: bool | None = None
    api_key: str | None = None
    base_url: Any = None


_input = msgspec.json.Decoder(ChatInput)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])

_OWN = frozenset(("api_key", "base_url", "stream"))
_OMITTED_IF_NULL = frozenset(("model", "temperature", "max_tokens"))


def read_input(text: bytes) -> tuple[ChatInput, dict[str, Any]]:
    """Return the checked members of an input, and the members for the service. Raises: msgspec.MsgspecError."""
    request = _input.decode(text)
    members = {
        name: value
        for name, value in _members.decode(text).items()
        if name not in _OWN and not (name in _OMITTED_IF_NULL and bytes(value) == b"null")
    }
    return request, {"model": request.model, **members}


class Answer(NamedTuple):
    """The service's answer over HTTP; `retry_after_ms` is the pause that it asks for, in milliseconds."""

    status: int
    content: bytes
    retry_after_ms: int | None


class OpenAIChat:
    """A client of one service, opened by the first request."""

    def __init__(self, settings: OpenAISettings, environ: Mapping[str, str]) -> None:
        base_url = settings.base_url or environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._needs_key = base_url.rstrip("/") == DEFAULT_BASE_URL
        self._key_variable = settings.api_key_env
        self._key = environ.get(settings.api_key_env) or None
        self._model = settings.model or DEFAULT_MODEL
        self._timeout_s = settings.timeout_ms / 1_000
        self._environ = environ
        self._proxy: Proxy | None = None
        self._client: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def complete(self, request: ChatInput, members: dict[str, Any]) -> bytes:
        """Return the output of the component, JSON text. Raises: CallFailed."""
        if request.stream:
            raise CallFailed(
                Code.INVALID_INPUT, "openai: `stream` is not supported, the answer is returned whole; leave it out"
            )
        if request.base_url is not None:
            raise CallFailed(
                Code.INVALID_INPUT, "openai: `base_url` is set in the configuration (`openai.baseUrl`), not by a flow"
            )

        if not _is_http_url(self._url):
            raise CallFailed(
                Code.RESOURCE_UNAVAILABLE,
                "openai: the base URL is not an HTTP address; correct `openai.baseUrl` or `OPENAI_BASE_URL`",
            )

        key = self._key_for(request)
        members["model"] = members["model"] or self._model
        answer = await self._post(encode(members), key)
        if answer.status != 200:
            raise _refused(answer, key, own_key=request.api_key is not None, way=through(self._proxy))
        return await off_loop(len(answer.content), _output, answer.content, key)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _key_for(self, request: ChatInput) -> str | None:
        key = request.api_key or self._key
        if key is None:
            if self._needs_key:
                raise CallFailed(
                    Code.RESOURCE_UNAVAILABLE, f"openai: no API key; set `{self._key_variable}` or pass `api_key`"
                )
            return None

        if not (key.isascii() and key.isprintable()):  # a line break would start another header
            code = Code.INVALID_INPUT if request.api_key else Code.RESOURCE_UNAVAILABLE
            raise CallFailed(code, "openai: the API key has characters that HTTP does not allow")

        return key

    async def _post(self, body: bytes, key: str | None) -> Answer:
        client = await self._http()
        import httpx  # loaded by now

        way = through(self._proxy)
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"

        try:
            async with client.stream("POST", self._url, content=body, headers=headers) as response:
                return Answer(response.status_code, await _bounded(response), retry_after_ms(response.headers))
        except httpx.TimeoutException as error:
            raise CallFailed(Code.RESOURCE_UNAVAILABLE, f"openai: {_kind(error)}: no answer in time{way}") from None
        except httpx.DecodingError:
            raise CallFailed(Code.COMPONENT_FAILED, "openai: the answer cannot be decompressed") from None
        except httpx.TransportError as error:
            what = f"openai: {_kind(error)}: cannot reach the service{way}"
            raise CallFailed(Code.RESOURCE_UNAVAILABLE, what) from None

    async def _http(self) -> httpx.AsyncClient:
        async with self._opening:
            if self._client is None:
                try:
                    self._proxy = proxy_for(self._url, self._environ)
                except Invalid as error:
                    raise CallFailed(Code.RESOURCE_UNAVAILABLE, f"openai: {error.message}") from None

                # Importing httpx and reading certificates take about 200 ms: not on the event loop.
                self._client = await import_in_thread(_open_client, self._timeout_s, self._proxy)
            return self._client


def _open_client(timeout_s: float, proxy: Proxy | None) -> httpx.AsyncClient:
    import httpx

    return httpx.AsyncClient(
        # With an explicit transport httpx reads no proxies from the environment.
        transport=httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX), proxy=None if proxy is None else proxy.url
        ),
        follow_redirects=False,
        timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
    )


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


async def _bounded(response: httpx.Response) -> bytes:
    content = bytearray()

    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > RESPONSE_BYTES_MAX:
            raise CallFailed(Code.COMPONENT_FAILED, f"openai: the answer is larger than {RESPONSE_BYTES_MAX:,} bytes")

    return bytes(content)


def _kind(error: Exception) -> str:
    return type(error).__name__


_INVALID_STATUSES = frozenset((400, 404, 413, 415, 422))
_LATER_STATUSES = frozenset((408, 409, 425, 429))


def _refused(answer: Answer, key: str | None, *, own_key: bool, way: str) -> CallFailed:
    status = answer.status
    way = way if status in GATEWAY_STATUSES else ""
    if status in (401, 403):
        code = Code.INVALID_INPUT if own_key else Code.RESOURCE_UNAVAILABLE
    elif status in _INVALID_STATUSES:
        code = Code.INVALID_INPUT
    elif way or status in _LATER_STATUSES or status >= 500:
        code = Code.RESOURCE_UNAVAILABLE
    else:
        code = Code.COMPONENT_FAILED

    data = {"status": status}
    if answer.retry_after_ms is not None:
        data["retry_after_ms"] = answer.retry_after_ms
    said = _said(_error_text(answer.content), key)
    return CallFailed(code, f"openai: the service answered with status {status}{way}{said}", **data)


def _said(text: str, key: str | None) -> str:
    """Return the end of a message with a text of the service: redacted, cut, empty without a text."""
    if key:
        text = redact_values(text, [key])
    return f": {text[:ERROR_TEXT_MAX]}" if text else ""


def _error_text(content: bytes) -> str:
    try:
        tree = decode(content)
        return str(tree["error"]["message"])
    except (msgspec.MsgspecError, UnicodeError, RecursionError, LookupError, TypeError):
        return ""  # a proxy's page; the status suffices


class ChatMessage(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None
    audio: Any = None


_NULL = msgspec.Raw(b"null")


class ChatChoice(msgspec.Struct):
    """`message` is returned as the service wrote it, and read as a ChatMessage."""

    message: msgspec.Raw = msgspec.Raw(b"{}")
    finish_reason: str | None = None


class ChatCompletion(msgspec.Struct):
    """A completion, whose parts are returned as the service wrote them. Only the first choice is read."""

    choices: list[msgspec.Raw]
    usage: msgspec.Raw = _NULL
    model: msgspec.Raw = _NULL
    id: msgspec.Raw = _NULL


_completion = msgspec.json.Decoder(ChatCompletion)
_choice = msgspec.json.Decoder(ChatChoice)
_message = msgspec.json.Decoder(ChatMessage)


def _output(content: bytes, key: str | None) -> bytes:
    """Return the output for a completion: what its first choice says. Raises: CallFailed, it says nothing."""
    try:
        completion = _completion.decode(content)
        choice = _choice.decode(completion.choices[0]) if completion.choices else None
        message = ChatMessage() if choice is None else _message.decode(choice.message)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        said = _said(_error_text(content), key)
        raise CallFailed(Code.COMPONENT_FAILED, f"openai: the answer is not a chat completion{said}") from None

    if choice is None:
        said = _said(_error_text(content), key)
        raise CallFailed(Code.COMPONENT_FAILED, f"openai: the completion has no choices{said}")

    text = _text(message)
    cut_off = bool(message.refusal) or choice.finish_reason in ("content_filter", "length")
    silent = text is None or (text == "" and cut_off)
    if silent and not (message.tool_calls or message.function_call or message.audio):
        raise _nothing_said(message, choice.finish_reason, key)

    several = {"choices": completion.choices} if len(completion.choices) > 1 else {}  # of an input with `n`
    return encode(
        {
            "response": text or "",
            "message": choice.message,
            "finish_reason": choice.finish_reason,
            "usage": completion.usage,
            "model": completion.model,
            "id": completion.id,
            **several,
        }
    )


def _text(message: ChatMessage) -> str | None:
    """Return the text of a message, that of its text parts joined; None without content."""
    content = message.content
    if not isinstance(content, list):
        return content
    parts = [part["text"] for part in content if isinstance(part.get("text"), str)]
    return "".join(parts) if parts else None


def _nothing_said(message: ChatMessage, finish_reason: str | None, key: str | None) -> CallFailed:
    parts = message.content if isinstance(message.content, list) else []
    refusals = [part["refusal"] for part in parts if isinstance(part.get("refusal"), str)]
    refusal = message.refusal or "".join(refusals)

    data = {} if finish_reason is None else {"finish_reason": finish_reason}
    if refusal:
        return CallFailed(Code.COMPONENT_FAILED, f"openai: the model refused{_said(refusal, key)}", **data)
    reason = "" if finish_reason is None else f" (finish_reason {finish_reason[:ERROR_TEXT_MAX]})"
    return CallFailed(Code.COMPONENT_FAILED, f"openai: the model said nothing{reason}", **data)
