"""The server of the slips. A file tells that a component was called."""

from dataclasses import dataclass
from pathlib import Path

from stepflow.component import component, serve


@dataclass
class Answer:
    text: str
    words: int


@component
def ask(question: str, tries: int = 1) -> Answer:
    """Answer a question, at great expense."""
    Path("called").touch()
    return Answer(question.upper(), tries * len(question.split()))


@component
def count(text: str, language: str = "en") -> Answer:
    """Count the words of a text."""
    Path("called").touch()
    return Answer(f"{language}: {text}", len(text.split()))


if __name__ == "__main__":
    serve()
