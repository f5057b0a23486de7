"""Components for flow.yaml. `python components.py --list` lists them."""

from dataclasses import dataclass

from stepflow.component import component, serve


@dataclass
class Greeting:
    text: str


@dataclass
class Count:
    letters: int


@component
def greet(name: str) -> Greeting:
    """Greet a person by name."""
    return Greeting(text=f"Hello, {name}!")


@component
async def count_letters(text: str) -> Count:
    """Count the letters of a text."""
    return Count(letters=sum(character.isalpha() for character in text))


if __name__ == "__main__":
    serve()
