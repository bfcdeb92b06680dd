"""How a command fails: its exit status, and one line that names options as they are typed."""

import contextlib
import io
import itertools
import re
import traceback
from collections.abc import Iterator


def failure(error: BaseException, options: bool) -> tuple[int, str]:
    """The exit status, see `mftadv.cli.main`, and what is to be printed.

    Args:
        error: what was raised.
        options: whether the arguments that it names are options of the command.
    """
    match error:
        case KeyboardInterrupt():
            status, message = 130, "interrupted; the same command goes on from what is stored"
        case ValueError():
            status, message = 2, _with_options(str(error)) if options else str(error)
        case OSError() | MemoryError() | OverflowError() | RuntimeError():
            status, message = 3, f"{type(error).__name__}: {error}"[:300]
        case _:
            return 4, "".join(traceback.format_exception(error)).rstrip()
    return status, f"mftadv: {' '.join(message.split())}"


def _with_options(message: str) -> str:
    """A message "ARGUMENTS: expected ..." with the options that the arguments are."""
    names, expected, rest = message.partition(": expected")
    if re.fullmatch(r"\w+(, \w+)*", names):
        names = re.sub("positive_slope, negative_slope|(positive|negative)_slope", "slopes", names)
        names = re.sub(r"\w+", lambda name: "--" + name[0].replace("folder", "out").replace("_", "-"), names)
    return names + expected + rest


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """What tyro refuses is a ValueError with its message, where it would print a box and exit.

    Raises:
        ValueError: the arguments are no usage of the command.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        # below the title of the box are paragraphs between rules, of which the first is the message
        lines = [line.strip("╭╮╰╯│─ ") for line in box.getvalue().splitlines()[1:]]
        body = itertools.dropwhile(lambda line: not line.strip("-"), lines)
        raise ValueError(" ".join(itertools.takewhile(lambda line: line.strip("-"), body))) from None
