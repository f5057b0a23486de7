"""Control characters of peers reach neither terminals nor logs for people."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from stepflow import telemetry
from stepflow.cli import console, tables
from stepflow.printable import printable

if TYPE_CHECKING:
    import pytest

ODD = "a\x1b[2J\x1b]0;title\x07\x00\rb\x9b31m\u202ec\n\td\u2028e"
SHOWN = r"a\x1b[2J\x1b]0;title\x07\x00\rb\x9b31m\u202ec\n\td\u2028e"


def test_every_control_character_is_shown_as_an_escape() -> None:
    assert printable(ODD, one_line=True) == SHOWN
    assert printable("two\nlines\tand ü, 漢, 🙂") == "two\nlines\tand ü, 漢, 🙂"
    assert printable("half \ud800") == r"half \ud800"
    assert all(printable(chr(code)).isprintable() for code in range(0xA0) if chr(code) not in "\n\t")


def test_listings_show_peers_texts_in_their_cells(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    tables.print_table(("ID", "NOTE"), [(ODD, "x"), ("short", "y")])
    tables.print_members([("id", ODD.replace("\n", " "))])
    text = capfdbinary.readouterr().out.decode()
    assert SHOWN in text
    assert len(text.splitlines()) == 4
    assert all(line.isprintable() for line in text.replace("\t", " ").splitlines())


def test_messages_keep_our_colours_and_no_others(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "colours_on", lambda: True)
    console.say(console.styled("red", "red", "bold") + " \x1b[8mhidden\x1b[0m")
    assert capfd.readouterr().err == "\x1b[31;1mred\x1b[0m \\x1b[8mhidden\x1b[0m\n"
    monkeypatch.setattr(console, "colours_on", lambda: False)
    console.warn("\x1b[31mred")
    assert capfd.readouterr().err == "warning: \\x1b[31mred\n"


def test_logs_for_people_show_peers_texts_on_one_line() -> None:
    stream = io.StringIO()
    try:
        telemetry.configure("info", stream)
        telemetry.get_logger("host").info("server wrote", text=ODD, executor_id=f"x{ODD}")
    finally:
        telemetry.configure()
    (line,) = stream.getvalue().split("\n")[:-1]
    assert line.count(SHOWN) == 2
