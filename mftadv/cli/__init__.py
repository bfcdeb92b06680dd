"""The command line: argument types and calls, nothing else."""

import contextlib
import io
import itertools
import sys
from collections.abc import Sequence

import jax
import tyro
from rich.console import Console

from mftadv.cli._bounds import Bounds
from mftadv.cli._validate import Validate

COMMANDS = {"validate": Validate, "bounds": Bounds}


def _parse(arguments: Sequence[str] | None) -> Validate | Bounds:
    """The command; a usage error becomes one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="mftadv", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # a box, drawn as the terminal allows: its title, rules, and between them paragraphs, the first the message
        lines = [line.strip("╭╮╰╯│─ ") for line in box.getvalue().splitlines()[1:]]
        body = itertools.dropwhile(lambda line: not line.strip("-"), lines)
        message = itertools.takewhile(lambda line: line.strip("-"), body)
        raise ValueError(" ".join(message)) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit status: the command's, 2 for bad usage, 3 for a failing machine, 130 for Ctrl-C."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    try:
        return _parse(arguments)(console)
    except ValueError as error:
        print(f"mftadv: {error}", file=sys.stderr)
        return 2
    except (OSError, MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
        print(f"mftadv: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 3
    except KeyboardInterrupt as stop:
        print(f"mftadv: interrupted; {str(stop) or 'nothing was written'}", file=sys.stderr)
        return 130
