"""A server whose texts would move the cursor and change the title of a terminal."""

from stepflow.component import ComponentError, component, serve

ODD = "\x1b[2J\x1b]0;title\x07 \u202e and \x9b31m"


@component(description=f"Odd {ODD} text")
def odd(text: str) -> str:
    print(f"said {ODD}", flush=True)
    raise ComponentError(f"failed {ODD}")


serve()
