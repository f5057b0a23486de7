"""The components of the hello example. Try one without a flow:

echo '{"name": "Ada", "language": "fr"}' | python components.py --call greet
"""

import asyncio
from typing import TypedDict

from stepflow.component import Context, InvalidInput, component, serve

GREETINGS = {"en": "Hello", "de": "Guten Tag", "fr": "Bonjour"}


class Statistics(TypedDict):
    letters: int
    vowels: int


@component
def greet(name: str, language: str = "en") -> str:
    """Greet a person by name."""
    if language not in GREETINGS:
        raise InvalidInput(f"no greeting in {language!r}; there are {', '.join(GREETINGS)}")
    return f"{GREETINGS[language]}, {name}!"


@component
async def statistics(text: str, ctx: Context) -> Statistics:
    """Count letters and vowels, slowly enough to be watched."""
    letters = vowels = 0
    for position, character in enumerate(text, start=1):
        letters += character.isalpha()
        vowels += character.lower() in "aeiou"
        ctx.progress(position, len(text))
        await asyncio.sleep(0.01)
    return {"letters": letters, "vowels": vowels}


if __name__ == "__main__":
    serve()
