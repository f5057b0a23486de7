"""Secrets of the environment and of runs stay out of all that a mesh shows: errors, listings, failures, its log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.dev import Dev, dev_mesh

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

ENVIRONMENT = {
    "DB_PASS": "zx81-spectrum",
    "MYSQL_PWD": 'quote"and\\slash-99',
    "OPENAI_KEY": "sk-of-nobody",
    "GITHUB_PAT": "pat-of-nobody",
    "PLAIN_NUMBER": "1234567890",
}
SECRETS = [value for name, value in ENVIRONMENT.items() if name != "PLAIN_NUMBER"]

SERVER = """
import os, sys
from stepflow.component import ComponentError, component, serve

if "exits" in sys.argv:
    sys.exit(f"cannot log in with {sys.argv[-1]} and {os.environ['GITHUB_PAT']}")

@component
def tell(name: str) -> str:
    raise ComponentError(f"no access with {os.environ[name]}", data={"with": os.environ[name]})

@component
def crash(word: str) -> str:
    print(f"the last word was {word}", file=sys.stderr, flush=True)
    os._exit(3)

@component
def whisper(word: str) -> str:
    print(f"whispered: {word}", file=sys.stderr, flush=True)
    return "done"

serve()
"""

CONFIG = """
plugins:
  builtin: {type: builtin}
  leaky:
    type: stepflow
    transport: stdio
    command: python3
    args: [server.py, "--password=$DB_PASS"]
    env: {MYSQL_PWD: $MYSQL_PWD, OPENAI_KEY: "${OPENAI_KEY}", PLAIN_NUMBER: $PLAIN_NUMBER}
  broken:
    type: stepflow
    transport: stdio
    command: python3
    args: [server.py, exits, "--password=$DB_PASS"]
    env: {GITHUB_PAT: $GITHUB_PAT}
routes:
  /leaky: [{plugin: leaky}]
  /broken: [{plugin: broken}]
  /builtin: [{plugin: builtin}]
"""

INPUT_SCHEMA = "{type: object, properties: {pw: {type: string, is_secret: true}, name: {type: string}}}"

FLOWS = {
    "blob": "{id: step, component: /builtin/get_blob, input: {blob_id: {$input: pw}}}",
    "tell": "{id: step, component: /leaky/tell, input: {name: {$input: name}}}",
    "crash": "{id: step, component: /leaky/crash, input: {word: {$input: pw}}}",
    "whisper": "{id: step, component: /leaky/whisper, input: {word: {$input: pw}}}",
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "server.py").write_text(SERVER)
    (folder / "stepflow-config.yml").write_text(CONFIG)
    for name, step in FLOWS.items():
        text = f"schemas: {{properties: {{input: {INPUT_SCHEMA}}}}}\nsteps: [{step}]\noutput: {{$step: step}}\n"
        (folder / f"{name}.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with dev_mesh(folder) as dev:
            yield dev


def submit(mesh: Dev, flow: str, **input: str) -> subprocess.CompletedProcess[str]:
    return mesh.cli("submit", "--flow", f"{flow}.yaml", "--input-json", json.dumps(input))


def newest(mesh: Dev) -> str:
    return str(mesh.json("runs", "list")["runs"][0]["run_id"])


def all_views(mesh: Dev, run_id: str) -> str:
    """Return what every command tells of a run."""
    asked = [
        ["show", run_id],
        ["get", run_id, "--steps"],
        ["get", run_id, "--json"],
        ["steps", run_id],
        ["watch", run_id],
    ]
    return "".join(done.stdout + done.stderr for done in (mesh.cli("runs", *args) for args in asked))


def shows_a_secret(text: str) -> bool:
    return any(spelling in text for value in SECRETS for spelling in (value, json.dumps(value)[1:-1]))


def test_a_server_that_does_not_start_is_listed_with_its_configuration_unexpanded(mesh: Dev) -> None:
    listed = mesh.cli("components", "list", "--json").stdout
    assert "--password=$DB_PASS" in listed
    assert "cannot log in with --password=[REDACTED] and [REDACTED]" in listed
    assert not shows_a_secret(listed)
    assert not shows_a_secret(mesh.said)


def test_a_failure_that_quotes_a_value_of_the_environment_is_shown_without_it(mesh: Dev) -> None:
    for name in ("MYSQL_PWD", "OPENAI_KEY"):
        done = submit(mesh, "tell", name=name)
        assert "no access with [REDACTED]" in done.stdout
        assert not shows_a_secret(done.stdout + done.stderr + all_views(mesh, newest(mesh)))
    assert "no access with 1234567890" in submit(mesh, "tell", name="PLAIN_NUMBER").stdout


def test_a_failure_that_quotes_a_secret_input_is_shown_without_it_everywhere(mesh: Dev) -> None:
    done = submit(mesh, "blob", pw="hunter2-is-secret")
    assert done.returncode == 1
    assert "[REDACTED]" in done.stdout
    shown = all_views(mesh, newest(mesh))
    assert "[REDACTED]" in shown
    assert "hunter2-is-secret" not in done.stdout + done.stderr + shown


def test_the_last_words_of_a_server_are_shown_with_the_run_that_it_served_and_with_no_other(mesh: Dev) -> None:
    assert submit(mesh, "whisper", pw="word-of-the-first-run").returncode == 0
    done = submit(mesh, "crash", pw="word-of-the-second-run")
    assert "the last word was [REDACTED]" in done.stdout
    shown = done.stdout + done.stderr + mesh.cli("components", "list", "--json").stdout + mesh.said
    assert "exited with code 3" in shown
    assert "word-of" not in shown
