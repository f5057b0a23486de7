"""The entry of `stepflow` and `python -m stepflow.cli`. Ctrl-C during the imports ends without a traceback."""

import sys

from stepflow.start_interrupts import QuietInterrupts


def main(args: list[str] | None = None) -> int:
    """Run a command line (default: the arguments of this process) and return the exit code."""
    with QuietInterrupts():
        from stepflow.cli.app import run_command_line

    return run_command_line(args)


if __name__ == "__main__":
    sys.exit(main())
