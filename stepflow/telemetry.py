"""Logging: constant messages with named fields, for people (text) or programs (JSON).

Owns level, destination and format, process-wide. `configure` sets them once, at start.

- A disabled level costs one comparison. structlog is imported with the first record: the import takes 150 ms or more,
  and most commands log nothing.
- Fields with secret-looking names, bearer tokens, passwords in URLs, and the values given to `hide` become
  `[REDACTED]`. Callers must not log payloads; long texts are cut to limit the damage.
- Control characters of peers' texts are written as escapes.
- Records of libraries (stdlib `logging`) use the same output.
- A record that cannot be written is dropped: logging never fails its caller.

Not here: metrics and traces; output for people at a terminal (`stepflow.cli.console`).
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from stepflow.errors import Invalid
from stepflow.printable import printable
from stepflow.redaction import REDACTED, KnownSecrets, is_secret_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping
    from pathlib import Path

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
"""Level names with their numbers in stdlib `logging`."""

FORMATS = ("text", "json")

TEXT_CHARS_MAX = 2_000
"""Limit of a text field: enough for the tail of a server's stderr, too short for a payload."""

TRACEBACK_CHARS_MAX = 20_000
"""Limit of a traceback, whose end names the error."""

DEFECT_FRAMES_MAX = 4
"""Innermost frames that `log_defect` shows."""

THROTTLE_S = 60.0
"""Interval of a throttled record."""

DEPTH_MAX = 8
"""Depth of the search for secrets; deeper values are omitted."""


class _Sink:
    """The output of a process. `configure` changes it in place, so that existing loggers follow."""

    __slots__ = ("file", "format", "level", "opened", "writer")

    def __init__(self) -> None:
        self.level = LEVELS["warning"]
        self.format = "text"
        self.file: TextIO | None = None
        """None: the current stderr."""
        self.opened: TextIO | None = None
        """The file opened by `configure`, closed by its next call."""
        self.writer: Any = None


_sink = _Sink()

_hidden = KnownSecrets()
"""Values that this process took from its environment. One environment, hence one set for all plugins of a host."""


def hide(values: Iterable[str]) -> None:
    """Remove values of the environment from all logs and texts of this process; see `is_secret_value`."""
    _hidden.add(filter(is_secret_value, values))


def without_hidden(text: str) -> str:
    """Return a text without the values given to `hide`."""
    return _hidden.text(text)


def json_without_hidden(raw: bytes) -> bytes:
    """Return JSON text without the values given to `hide`."""
    return _hidden.json(raw)


def configure(level: str = "warning", destination: TextIO | Path | None = None, format: str = "text") -> None:
    """Set up logging for this process; the last call wins.

    `destination` is an open text stream or a file to append to; without one, records go to stderr.

    Raises:
        Invalid: an unknown level or format, or a file that cannot be opened.
    """
    if level not in LEVELS:
        raise Invalid("LOG_LEVEL_INVALID", f"unknown log level {level!r}; it is one of {', '.join(LEVELS)}")
    if format not in FORMATS:
        raise Invalid("LOG_FORMAT_INVALID", f"unknown log format {format!r}; it is one of {', '.join(FORMATS)}")
    opened = None if destination is None or hasattr(destination, "write") else _open(destination)
    if _sink.opened is not None:
        _sink.opened.close()

    _sink.level = LEVELS[level]
    _sink.format = format
    _sink.file = opened or destination  # type: ignore[assignment]  # a path was replaced by its opened file
    _sink.opened = opened
    _sink.writer = None
    _take_over_stdlib(_sink.level)


def _open(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise Invalid("LOG_FILE_INVALID", f"cannot write the log to {path}: {error.strerror}") from None


def is_enabled(level: str) -> bool:
    """Return True if records of this level are written."""
    return LEVELS[level] >= _sink.level


class Logger:
    """Writes records under a name. Cheap to create and to keep. Each record has the fields given to `bind`."""

    __slots__ = ("_fields", "name")

    def __init__(self, name: str, fields: Mapping[str, object] | None = None) -> None:
        self.name = name
        self._fields: Mapping[str, object] = fields or {}

    def bind(self, **fields: object) -> Logger:
        """Return a logger that adds `fields` to each record."""
        return Logger(self.name, {**self._fields, **fields})

    def debug(self, message: str, **fields: object) -> None:
        if _sink.level <= 10:
            _emit("debug", self.name, message, {**self._fields, **fields})

    def info(self, message: str, **fields: object) -> None:
        if _sink.level <= 20:
            _emit("info", self.name, message, {**self._fields, **fields})

    def warning(self, message: str, **fields: object) -> None:
        if _sink.level <= 30:
            _emit("warning", self.name, message, {**self._fields, **fields})

    def error(self, message: str, **fields: object) -> None:
        _emit("error", self.name, message, {**self._fields, **fields})

    def exception(self, message: str, **fields: object) -> None:
        """Write an error with the traceback of the current exception."""
        _emit("error", self.name, message, {**self._fields, **fields, "exc_info": True})


def log_defect(log: Logger, message: str, error: BaseException, **fields: object) -> None:
    """Log an exception that is a bug of this project: its type and innermost frames, never its text.

    The text may quote a payload or a secret.
    """
    import traceback  # only a bug needs it

    frames = traceback.extract_tb(error.__traceback__)[-DEFECT_FRAMES_MAX:]
    at = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    log.error(message, error=type(error).__name__, at=at, **fields)


class ThrottledLog:
    """Writes at most one warning per key and `THROTTLE_S`, for events that any client can cause at will.

    A record counts those omitted since the last one as `omitted`.
    """

    def __init__(self, log: Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._keys: dict[str, tuple[float, int]] = {}
        """By key: the time of the last record, and the number of those omitted since."""

    def warning(self, message: str, key: str, **fields: object) -> None:
        """Write a warning, unless one with this key was written within `THROTTLE_S`. Keys come from a bounded set."""
        now_s = self._clock()
        last_s, omitted = self._keys.get(key, (-THROTTLE_S, 0))
        if now_s - last_s < THROTTLE_S:
            self._keys[key] = (last_s, omitted + 1)
            return
        self._keys[key] = (now_s, 0)
        self._log.warning(message, **fields, **({"omitted": omitted} if omitted else {}))


def get_logger(name: str) -> Logger:
    """Return a logger. `name` is the part of the mesh, such as `executor` or `backend.mcp`."""
    return Logger(name)


def _emit(level: str, name: str, message: str, fields: dict[str, object]) -> None:
    try:
        if _sink.writer is None:
            _sink.writer = _build_writer()
        getattr(_sink.writer, level)(message, logger=name, **fields)
    except (OSError, ValueError):  # a closed or full destination
        return


def _build_writer() -> Any:
    import structlog
    from structlog.dev import ConsoleRenderer, plain_traceback

    file = _sink.file or sys.stderr
    renderer: Any
    text_only = [] if _sink.format == "json" else [_make_printable]
    if _sink.format == "json":
        renderer = structlog.processors.JSONRenderer(default=str)
    else:
        renderer = ConsoleRenderer(colors=file.isatty(), exception_formatter=plain_traceback, sort_keys=False)
    return structlog.wrap_logger(
        structlog.PrintLogger(file),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,  # before `redact_secrets`: a traceback may quote a secret
            redact_secrets,
            *text_only,
            renderer,
        ],
        wrapper_class=structlog.BoundLogger,
        cache_logger_on_first_use=True,
    )


_SECRET_NAME = re.compile(
    r"(?:^|_)(?:passwords?|passwd|passphrase|secrets?|tokens?|api_?keys?|access_?keys?|private_?keys?|credentials?"
    r"|authorization|auth_header|cookies?|set_cookie)(?:$|_)"
)
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-.\s]+")
_SECRET_TEXT = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {REDACTED}"),
    (re.compile(r"(://[^\s/:@]*):[^\s/@]+@"), rf"\1:{REDACTED}@"),  # with the scheme, a long word would be slow
)


def is_secret_name(name: str) -> bool:
    """Return True if a field of this name must not be shown (`api_key`, `accessToken`, `DB-PASSWORD`)."""
    return _SECRET_NAME.search(_WORD_START.sub("_", name).lower()) is not None


def redact(value: Any, depth: int = 0) -> Any:
    """Return a copy of a tree without secrets, for logs.

    Members with secret-looking names are replaced unless they are numbers, booleans or null (a fencing token, a count
    of tokens); texts lose bearer tokens and URL passwords, and are cut.
    """
    if isinstance(value, str):
        return _redact_text(value)
    if isinstance(value, (int, float)) or value is None:
        return value
    if depth >= DEPTH_MAX:
        return "[…]"
    if isinstance(value, dict):
        return {name: _redact_member(str(name), member, depth + 1) for name, member in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact(member, depth + 1) for member in value]
    return _redact_text(str(value))


def _redact_member(name: str, value: Any, depth: int) -> Any:
    if not isinstance(value, (int, float)) and value is not None and is_secret_name(name):
        return REDACTED
    return redact(value, depth)


def _redact_text(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    # Cut first, so that a stray payload costs little, and above the limit, for a secret across the final cut.
    shown = _hidden.text(text[: chars_max * 2 + _hidden.chars_max])
    for pattern, replacement in _SECRET_TEXT:
        shown = pattern.sub(replacement, shown)
    if len(text) <= chars_max:
        return shown
    return f"{shown[:chars_max]}… ({len(text):,} characters)"


def redact_secrets(logger: Any, method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ARG001  # structlog's signature
    """Apply `redact` to each field of a record (a structlog processor)."""
    for name, value in record.items():
        if name == "exception":
            record[name] = _redact_text(value, TRACEBACK_CHARS_MAX)
        else:
            record[name] = _redact_member(name, value, 0)
    return record


def _make_printable(logger: Any, method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ARG001  # structlog's signature
    """Show the control characters of peers' texts; JSON escapes them (a structlog processor)."""
    for name, value in record.items():
        if isinstance(value, str):
            record[name] = printable(value, one_line=name != "exception")
    return record


class _Bridge(logging.Handler):
    """Hands the records of libraries to the writer."""

    def emit(self, record: logging.LogRecord) -> None:
        number = record.levelno
        level = next((name for name in ("error", "warning", "info") if number >= LEVELS[name]), "debug")
        fields: dict[str, object] = {"exc_info": record.exc_info} if record.exc_info else {}
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # the library's arguments do not fit its own format
            message = str(record.msg)
        _emit(level, record.name, message, fields)


_bridge = _Bridge()


def _is_readable(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Invalid encoding on")


def _take_over_stdlib(level: int) -> None:
    root = logging.getLogger()
    if _bridge not in root.handlers:
        root.addHandler(_bridge)
    # Libraries log more: their `info` counts as `debug`.
    root.setLevel(level if level <= LEVELS["debug"] else max(level, LEVELS["warning"]))
    # gRPC shows the memory behind a text that it cannot decode, for each failed connection without descriptors.
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_readable)
    # Debug records of httpcore quote the headers of every response, cookies and tokens included.
    logging.getLogger("httpcore").setLevel(LEVELS["info"])
