"""The builtin component `/openai`: one chat completion from an OpenAI-compatible service.

Promises:
- Requests go to the operator's service only: a flow cannot set the address, and redirects are not followed. So the
  operator's key never reaches another service.
- The key appears in no failure, even if the service repeats the key in an error message.
- Responses are bounded by `RESPONSE_BYTES_MAX`; the wait for the next bytes is bounded by `timeout` of the settings.

Failures: INVALID_INPUT if the flow has to change, RESOURCE_UNAVAILABLE if a later try, another key or quota may help,
COMPONENT_FAILED for an unusable response. No retries here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import msgspec

from component_host.builtin.failure import CallFailed
from component_host.late_imports import import_in_thread
from stepflow.codec import PAYLOAD_BYTES_MAX, decode, encode
from stepflow.errors import Code, Invalid
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
    messages: list[dict[str, Any]]
    model: str | None = None
    temperature: float | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    api_key: str | None = None
    base_url: msgspec.Raw | None = None


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

    async def complete(self, request: ChatInput) -> str:
        """Return the text of the first choice, empty without choices. Raises: CallFailed."""
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
        status, content = await self._post(self._body(request), key)
        if status != 200:
            raise _refused(status, content, key, own_key=request.api_key is not None, way=through(self._proxy))
        return _first_choice(content)

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

    def _body(self, request: ChatInput) -> bytes:
        body: dict[str, Any] = {"model": request.model or self._model, "messages": request.messages}

        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens

        return encode(body)

    async def _post(self, body: bytes, key: str | None) -> tuple[int, bytes]:
        client = await self._http()
        import httpx  # loaded by now

        way = through(self._proxy)
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"

        try:
            async with client.stream("POST", self._url, content=body, headers=headers) as response:
                return response.status_code, await _bounded(response)
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


def _refused(status: int, content: bytes, key: str | None, *, own_key: bool, way: str) -> CallFailed:
    way = way if status in GATEWAY_STATUSES else ""
    if status in (401, 403):
        code = Code.INVALID_INPUT if own_key else Code.RESOURCE_UNAVAILABLE
    elif status in _INVALID_STATUSES:
        code = Code.INVALID_INPUT
    elif way or status in _LATER_STATUSES or status >= 500:
        code = Code.RESOURCE_UNAVAILABLE
    else:
        code = Code.COMPONENT_FAILED

    text = _error_text(content)
    if key:
        text = redact_values(text, [key])
    said = f": {text[:ERROR_TEXT_MAX]}" if text else ""
    return CallFailed(code, f"openai: the service answered with status {status}{way}{said}", status=status)


def _error_text(content: bytes) -> str:
    try:
        tree = decode(content)
        return str(tree["error"]["message"])
    except (msgspec.MsgspecError, UnicodeError, RecursionError, LookupError, TypeError):
        return ""  # a proxy's page; the status suffices


class ChatMessage(msgspec.Struct):
    content: str | None = None


class ChatChoice(msgspec.Struct):
    message: ChatMessage = msgspec.field(default_factory=ChatMessage)


class ChatCompletion(msgspec.Struct):
    choices: list[ChatChoice]


_completion = msgspec.json.Decoder(ChatCompletion)


def _first_choice(content: bytes) -> str:
    try:
        completion = _completion.decode(content)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise CallFailed(Code.COMPONENT_FAILED, "openai: the answer is not a chat completion") from None
    return (completion.choices[0].message.content or "") if completion.choices else ""
