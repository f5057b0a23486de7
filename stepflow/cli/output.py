"""Results as files and on stdout, written as they come: FlowResults as JSON or JSONL, trees as YAML.

- A file appears once it is whole.
- A result of more than 16 MiB is written as JSON only, in chunks; on a terminal, a line on stderr shows the progress.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from stepflow.cli import console
from stepflow.cli.console import Usage
from stepflow.cli.input.files import value_format
from stepflow.codec import decode, encode
from stepflow.flow.yaml_scalars import reads_as_text
from stepflow.whole_file import whole_file

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from stepflow.codec import Json
    from stepflow.errors import Failure

WRITE_BYTES = 64 * 1024

PROGRESS_S = 0.25
"""Pause between two lines of progress; what is written sooner shows none."""


@dataclass(frozen=True, slots=True)
class LargeOutcome:
    """A result of more than 16 MiB at its source."""

    text_bytes: int
    """Length of its JSON text; 0 if it is not known."""
    open: Callable[[], AsyncGenerator[bytes]]
    """Begins to read the text."""


@dataclass(frozen=True, slots=True)
class LargeResult:
    """A result of more than 16 MiB while it is written. Its chunks are read before the next result, or not at all."""

    text_bytes: int
    """Length of its JSON text; 0 if it is not known."""
    chunks: Generator[bytes]


Outcomes: TypeAlias = "AsyncGenerator[Json | Failure | LargeOutcome | None]"
Numbered: TypeAlias = "AsyncGenerator[tuple[int, Json | Failure | LargeOutcome | None]]"
"""Items from a given one on, in order, with their outcomes; None of an item that has not ended."""
FlowResult: TypeAlias = "dict[str, Any] | LargeResult"


class YamlTooLarge(Exception):
    """A result of more than 16 MiB was to be written as YAML."""


LARGE_HEAD = b'"outcome":"success","result":'
"""The FlowResult of a large result, between its brace and its value."""


@dataclass(frozen=True, slots=True)
class ResultFormat:
    """The format of the results of a batch: JSONL, or the elements of a YAML list."""

    yaml: bool

    @classmethod
    def of(cls, output: Path | None) -> ResultFormat:
        return cls(output is not None and _output_format(output) == "yaml")

    @property
    def empty(self) -> bytes:
        """The text of a batch without items."""
        return b"[]\n" if self.yaml else b""

    def texts(self, result: FlowResult, item: int | None) -> Iterable[bytes]:
        """Yield the parts of a result's text; with its number, if one is given. Raises: YamlTooLarge."""
        if not self.yaml:
            return _line(result, item)
        if isinstance(result, LargeResult):
            raise YamlTooLarge(f"a result of {result.text_bytes:,} bytes is not written as YAML")
        return [to_yaml([result if item is None else {"item": item, **result}]).encode()]

    def around_large(self, text_bytes: int, item: int | None) -> tuple[bytes, bytes]:
        """Return what stands before and behind the JSON text of a large result. Raises: YamlTooLarge."""
        if self.yaml:
            raise YamlTooLarge(f"a result of {text_bytes:,} bytes is not written as YAML")
        return (b"{" if item is None else b'{"item":%d,' % item) + LARGE_HEAD, b"}\n"


def check_output(output: Path | None) -> None:
    """Check before the run that the output file is writable. Raises: Usage."""
    if output is None:
        return
    _output_format(output)

    problem = _unwritable(output)
    if problem:
        raise Usage("FILE_UNWRITABLE", f"cannot write the output to {output}: {problem}", path=str(output))


def write_results(results: Iterable[FlowResult], output: Path | None, *, batch: bool) -> None:
    """Write FlowResults as they come, to stdout (JSON) or to a file (format by extension).

    A single run is one value, indented on a terminal; a batch is JSONL or a YAML list. Raises: OSError, YamlTooLarge.
    """
    if output is None:
        texts = _lines(results) if batch or not sys.stdout.isatty() else _indented(results)
        for text in _joined(texts):
            console.out(text)
        return

    with whole_file(output) as file:
        for text in _yaml_texts(results, batch=batch) if _output_format(output) == "yaml" else _lines(results):
            file.write(text)


def to_yaml(tree: Any) -> str:
    """Return a tree as YAML for people: author order, no aliases, multi-line texts as blocks."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # a repeated subtree is data, not a reference
            return True

    def text(dumper: Dumper, value: str) -> Any:
        # The dumper quotes what YAML 1.1 reads as another type; our own reader has a few more, `0o10` and `1e3`.
        style = "|" if "\n" in value else None if reads_as_text(value) else "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump(decode(encode(tree)), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _unwritable(output: Path) -> str:
    """Return why the output file cannot be written, "" if it can."""
    if output.is_dir():
        return os.strerror(errno.EISDIR)
    if output.exists():
        return "" if os.access(output, os.W_OK) else os.strerror(errno.EACCES)
    if not output.parent.is_dir():
        return f"there is no folder {output.parent}"
    return "" if os.access(output.parent, os.W_OK) else os.strerror(errno.EACCES)


def _output_format(output: Path) -> Literal["yaml", "json"]:
    return "json" if output.suffix.lower() == ".jsonl" else value_format(output, what="output")


def _lines(results: Iterable[FlowResult]) -> Iterator[bytes]:
    for result in results:
        yield from _line(result, None)


def _indented(results: Iterable[FlowResult]) -> Iterator[bytes]:
    import msgspec

    for result in results:
        if isinstance(result, LargeResult):
            yield from _line(result, None)
        else:
            yield msgspec.json.format(encode(result), indent=2) + b"\n"


def _line(result: FlowResult, item: int | None) -> Iterator[bytes]:
    """Yield the parts of a line of JSON; with the number of the item, if one is given."""
    head = b"{" if item is None else b'{"item":%d,' % item
    if isinstance(result, LargeResult):
        yield head + LARGE_HEAD
        yield from _with_progress(result)
        yield b"}\n"
    elif item is None:
        yield encode(result) + b"\n"  # of `call`, any value: only a FlowResult begins with a brace
    else:
        yield head + encode(result)[1:] + b"\n"


def _with_progress(result: LargeResult) -> Iterator[bytes]:
    """Yield the chunks of a result. On a terminal, show how far they are written."""
    shown = sys.stderr.isatty() and not sys.stdout.isatty()
    total = f" of {result.text_bytes // 1_000_000:,}" if result.text_bytes else ""
    written, told_at = 0, time.monotonic()
    for chunk in result.chunks:
        yield chunk
        written += len(chunk)
        if shown and time.monotonic() - told_at >= PROGRESS_S:
            told_at = time.monotonic()
            print(f"\r\x1b[Kresult: {written // 1_000_000:,}{total} MB", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _joined(texts: Iterable[bytes]) -> Iterator[bytes]:
    """Join texts to parts of `WRITE_BYTES`: each write to stdout is flushed."""
    part = bytearray()
    for text in texts:
        part += text
        if len(part) >= WRITE_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def _yaml_texts(results: Iterable[FlowResult], *, batch: bool) -> Iterator[bytes]:
    """Yield the parts of a YAML document: a list for a batch. Raises: YamlTooLarge."""
    empty = True
    for result in results:
        if isinstance(result, LargeResult):
            raise YamlTooLarge(f"a result of {result.text_bytes:,} bytes is not written as YAML")
        yield to_yaml([result] if batch else result).encode()
        if not batch:
            return
        empty = False
    if empty:
        yield b"[]\n"
