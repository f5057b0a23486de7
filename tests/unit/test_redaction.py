"""Known secrets and credentials leave no text."""

from __future__ import annotations

import json
import time

import pytest

from stepflow.redaction import KnownSecrets, is_secret_value, longest_first, redact_values, url_without_credentials


def test_a_secret_that_contains_another_is_replaced_as_a_whole() -> None:
    secrets = longest_first(["hunter", "hunter2-and-more"])
    assert redact_values("say hunter2-and-more, hunter", secrets) == "say [REDACTED], [REDACTED]"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@host:8443/mcp?key=k#f", "https://host:8443/mcp"),
        ("s3://AKIA:secret@bucket/prefix", "s3://bucket/prefix"),
        ("memory://", "memory:"),
        ("file:///var/blobs", "file:///var/blobs"),
    ],
)
def test_a_url_is_shown_without_its_credentials(url: str, shown: str) -> None:
    assert url_without_credentials(url).rstrip("/") == shown.rstrip("/")


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        ("hunter2-", True),
        ("hunter2", False),
        ("12345678", False),
        ("-1.25e+10", False),
        ("   true   ", False),
        ("False", False),
        ("1234567x", True),
    ],
)
def test_a_value_of_the_environment_is_secret_unless_it_is_short_a_number_or_a_boolean(
    value: str, secret: bool
) -> None:
    assert is_secret_value(value) is secret


@pytest.mark.parametrize("spell", [str, lambda text: json.dumps(text)[1:-1], lambda _: "p%40ss%22word%2F%C3%A9"])
def test_a_secret_is_found_as_it_is_written_in_json_and_in_a_url(spell: object) -> None:
    secrets = KnownSecrets(['p@ss"word/é'])
    value = 'p@ss"word/é'
    assert callable(spell)
    assert secrets.text(f"with {spell(value)}!") == "with [REDACTED]!"


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("a", "a cat has a='a'", "# cat has #='#'"),
        ("ab", "ab abc cab 9ab _ab ab_ abé (ab) ab, x/ab?ab=ab.", "# abc cab 9ab _ab ab_ abé (#) #, x/#?#=#."),
        ("42", "42 is 42. 142 421 4.42 42.5 v42 [1,42,3] -42%", "# is #. 142 421 4.42 42.5 v42 [1,#,3] -#%"),
        ("7", "7.7 77 7 7", "7.7 77 # #"),
        ("aa", "aa aaa aaaa aa", "# aaa aaaa #"),
        ("!", "! !! a! '!' a", "# !! a! '#' a"),
        ("$x", "$x is $xy, a$x or $x", "# is $xy, a$x or #"),
        ("a b", "a b ca b a bc 'a b'", "# ca b a bc '#'"),
        ("é", "é même h%C3%A9 k=%C3%A9", "# même h%C3%A9 k=#"),
        ("ab", r'the body "\nab\tab"', r'the body "\n#\t#"'),
        ("日", "日 日本 「日」", "# 日本 「#」"),
        (" ", "a b", "a b"),
        ("", "ab", "ab"),
    ],
)
def test_a_short_secret_is_replaced_where_it_stands_alone(secret: str, text: str, shown: str) -> None:
    assert KnownSecrets([secret]).text(text).replace("[REDACTED]", "#") == shown


def test_a_short_secret_inside_json_is_replaced_as_a_text_and_as_a_number() -> None:
    secrets = KnownSecrets(["ab", "7"])
    raw = b'{"ab":[7,77,7.7,"7","ab","abc"],"n":7e1}'
    assert secrets.json(raw) == b'{"[REDACTED]":["[REDACTED]",77,7.7,"[REDACTED]","[REDACTED]","abc"],"n":7e1}'
    assert secrets
    assert not KnownSecrets(["", " "])


def test_many_short_secrets_in_a_long_text_take_no_more_than_a_pass_each() -> None:
    secrets = KnownSecrets([str(number) for number in range(100, 1_000)])
    text = " ".join(str(number) for number in range(100, 3_000))
    began = time.perf_counter()
    shown = secrets.text(text)
    assert time.perf_counter() - began < 1.0
    assert shown.count("[REDACTED]") == 900


def test_each_line_of_a_key_of_several_lines_is_a_secret() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQ\n-----END KEY-----\n"
    assert KnownSecrets([key]).text("line 2 is MIIEvQIBADANBgkq") == "line 2 is [REDACTED]"


def test_a_secret_inside_json_is_replaced_and_the_rest_keeps_every_digit() -> None:
    secrets = KnownSecrets(["hunter2-is-it", "123456"])
    raw = b'{"a":"say \\u0068unter2-is-it","hunter2-is-it":[1.10,123456,0.1234567890123456789],"n":null}'
    shown = secrets.json(raw)
    assert shown == b'{"a":"say [REDACTED]","[REDACTED]":[1.10,"[REDACTED]",0.1234567890123456789],"n":null}'
    assert json.loads(shown)
