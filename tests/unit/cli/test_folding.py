"""Long lines on a terminal: folded between words, with commands that can be copied."""

from __future__ import annotations

import pytest

from stepflow.cli.folding import fold


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("short", "short"),
        ("", ""),
        ("one two three four five six seven eight nine ten", "one two three four five six seven eight\n  nine ten"),
        (
            "it is not finished; continue it with: stepflow resume 0198f3 --store /a/very/long/path",
            "it is not finished; continue it with:\n  stepflow resume 0198f3 --store /a/very/long/path",
        ),
        (
            "there is no such run anywhere; `stepflow runs list` shows the runs",
            "there is no such run anywhere;\n  `stepflow runs list` shows the runs",
        ),
        (
            "  name  (string, required)  the name of the person",
            "  name  (string, required)  the name of\n    the person",
        ),
        ("x" * 50 + " y", "x" * 50 + "\n  y"),
        ("a first line\n" + "word " * 9, "a first line\nword word word word word word word word\n  word"),
        (f"\x1b[31m{'red ' * 9}\x1b[0mend", f"\x1b[31m{'red ' * 9}\x1b[0mend"),
    ],
)
def test_lines_are_folded_between_words(text: str, folded: str) -> None:
    assert fold(text, 40) == folded


def test_styles_take_no_room() -> None:
    text = "\x1b[1mbold\x1b[0m and " + "plain " * 6
    assert [len(line.replace("\x1b[1m", "").replace("\x1b[0m", "")) for line in fold(text, 40).splitlines()] == [38, 7]
