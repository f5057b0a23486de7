"""Logging: levels, formats, and data that must never be in a record."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepflow import telemetry
from stepflow.errors import Invalid
from stepflow.telemetry import REDACTED, configure, get_logger, is_secret_name, log_defect, redact


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    configure()


def records(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_has_a_constant_message_and_its_fields() -> None:
    stream = io.StringIO()
    configure("info", stream, "json")
    get_logger("executor").bind(run_id="r1").info("lease lost", held_ms=5)
    (record,) = records(stream)
    assert record["event"] == "lease lost"
    assert (record["logger"], record["level"], record["run_id"], record["held_ms"]) == ("executor", "info", "r1", 5)
    assert str(record["timestamp"]).endswith("Z")


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_records_below_the_level_are_not_written(level: str, written: list[str]) -> None:
    stream = io.StringIO()
    configure(level, stream, "json")
    log = get_logger("x")
    for write in (log.debug, log.info, log.warning, log.error):
        write("said")
    assert [record["level"] for record in records(stream)] == written
    assert telemetry.is_enabled("error")
    assert telemetry.is_enabled("debug") is (level == "debug")


def test_a_logger_made_before_configure_follows_it() -> None:
    log = get_logger("early")
    stream = io.StringIO()
    configure("debug", stream, "json")
    log.debug("said")
    assert len(records(stream)) == 1


def test_text_is_one_readable_line_without_colours_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    configure("info", stream, "text")
    get_logger("host").info("server started", plugin="time")
    (line,) = stream.getvalue().splitlines()
    assert "server started" in line
    assert "plugin=time" in line
    assert "\x1b" not in line


def test_an_exception_is_logged_with_its_traceback_and_without_its_secrets() -> None:
    stream = io.StringIO()
    configure("info", stream, "json")
    try:
        raise ValueError("Authorization: Bearer abcdef0123456789")
    except ValueError:
        get_logger("x").exception("it broke")
    (record,) = records(stream)
    assert "ValueError" in str(record["exception"])
    assert "abcdef0123456789" not in stream.getvalue()


def test_records_of_libraries_take_the_same_way() -> None:
    stream = io.StringIO()
    configure("info", stream, "json")
    logging.getLogger("some.library").warning("server at %s", "https://me:hunter2@host/")
    logging.getLogger("some.library").info("chatter")
    (record,) = records(stream)
    assert (record["logger"], record["event"]) == ("some.library", f"server at https://me:{REDACTED}@host/")


def test_headers_of_http_responses_are_not_logged_at_debug() -> None:
    stream = io.StringIO()
    configure("debug", stream)
    logging.getLogger("httpcore.http11").debug("receive_response_headers.complete %r", [(b"Set-Cookie", b"hush")])
    assert stream.getvalue() == ""


def test_a_library_record_with_bad_arguments_is_still_written() -> None:
    """In a process of its own, because pytest's handlers do not bear such records."""
    code = """
import logging
from stepflow.telemetry import configure
configure("info")
logging.getLogger("some.library").warning("%s and %s", "one")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "%s and %s" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "field",
    ["password", "api_key", "apiKey", "API-KEY", "access_token", "accessToken", "client_secret", "authorization"],
)
def test_fields_with_secret_names_are_redacted(field: str) -> None:
    stream = io.StringIO()
    configure("info", stream, "json")
    get_logger("x").info("said", **{field: "hunter2"})
    assert records(stream)[0][field] == REDACTED


@pytest.mark.parametrize("field", ["run_id", "tokenizer", "keyboard", "secretary", "path", "message"])
def test_ordinary_names_are_not_secret(field: str) -> None:
    assert not is_secret_name(field)


def test_numbers_under_secret_names_are_shown() -> None:
    """A fencing token and a count of tokens are what one looks for in a log."""
    assert redact({"fencing_token": 7, "max_tokens": 100, "token": None}) == {
        "fencing_token": 7,
        "max_tokens": 100,
        "token": None,
    }


def test_secrets_inside_of_fields_are_redacted() -> None:
    tree = {"headers": [{"Authorization": "Basic abc"}], "env": {"DB_PASSWORD": "x", "HOME": "/root"}}
    assert redact(tree) == {"headers": [{"Authorization": REDACTED}], "env": {"DB_PASSWORD": REDACTED, "HOME": "/root"}}


def test_long_texts_and_deep_trees_are_cut() -> None:
    cut = redact("x" * 1_000_000)
    assert len(cut) < telemetry.TEXT_CHARS_MAX + 100
    assert "1,000,000 characters" in cut
    tree: list[object] = []
    for _ in range(10_000):
        tree = [tree]
    assert "…" in str(redact(tree))


def test_a_log_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "mesh.log"
    path.write_text("before\n")
    configure("info", path, "json")
    get_logger("x").info("said")
    configure()
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert json.loads(lines[1])["event"] == "said"


def test_a_closed_destination_does_not_fail_the_caller() -> None:
    stream = io.StringIO()
    configure("info", stream, "json")
    stream.close()
    get_logger("x").error("said")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"level": "loud"}, "LOG_LEVEL_INVALID"), ({"format": "xml"}, "LOG_FORMAT_INVALID")],
)
def test_an_unknown_level_or_format_is_refused(arguments: dict[str, str], reason: str) -> None:
    with pytest.raises(Invalid) as caught:
        configure(**arguments)  # type: ignore[arg-type]  # the parameters vary
    assert caught.value.reason == reason


def test_a_log_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot write the log"):
        configure("info", tmp_path / "missing" / "mesh.log")


def test_structlog_is_imported_only_when_a_record_is_written() -> None:
    code = """
import sys
from stepflow.telemetry import configure, get_logger
configure("warning")
get_logger("x").info("not written")
assert "structlog" not in sys.modules, "imported too early"
get_logger("x").warning("written")
assert "structlog" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "written" in done.stderr


def test_a_defect_is_logged_with_its_frames_and_without_its_text() -> None:
    stream = io.StringIO()
    configure(destination=stream, format="json")
    try:
        raise KeyError("sk-a-payload")
    except KeyError as error:
        log_defect(get_logger("test"), "a step failed", error, run_id="r1")
    (record,) = records(stream)
    assert (record["error"], record["run_id"]) == ("KeyError", "r1")
    assert "test_a_defect_is_logged" in str(record["at"])
    assert "sk-a-payload" not in stream.getvalue()


def test_a_throttled_warning_is_written_once_a_minute_per_key_with_the_number_of_those_omitted() -> None:
    log, now_s = io.StringIO(), [0.0]
    telemetry.configure("warning", log)
    try:
        throttled = telemetry.ThrottledLog(telemetry.get_logger("edge"), clock=lambda: now_s[0])
        for now_s[0] in (0.0, 1.0, 59.9):
            throttled.warning("garbage", "a", peer="x")
        throttled.warning("garbage", "b")
        now_s[0] = 60.0
        throttled.warning("garbage", "a", peer="y")
    finally:
        telemetry.configure()
    lines = log.getvalue().splitlines()
    assert len(lines) == 3
    assert "omitted" not in lines[0] + lines[1]
    assert "peer=y" in lines[2]
    assert "omitted=2" in lines[2]
