"""A function that raises three calls deep; the servers beside this file offer it as the component or tool `greet`."""

import sys

TABLE = {"known": 1}


def look_up(name):
    secret = "hunter2-" * 2
    print(f"looking up {name}", file=sys.stderr, flush=True)
    return row(name, secret)


def row(name, secret):
    return TABLE[name] if secret else None
