"""The command line: argument types and calls, nothing else."""

import contextlib
import dataclasses
import importlib.metadata
import io
import itertools
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from mftadv import experiments, report, store
from mftadv.experiments import EXPERIMENTS, Budget, Experiment, Result, SweepFile
from mftadv.report import Terminal

_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _number(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """A number, or a quotient of two: sizes of perturbations of images are given as 8/255."""
    if info.type is not float:
        return None

    def parse(words: list[str]) -> float:
        numerator, slash, denominator = words[0].partition("/")
        if slash and float(denominator) == 0:
            raise ValueError("expected a denominator that is not 0")
        return float(numerator) / float(denominator or 1)

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="FLOAT", instance_from_str=parse, is_instance=lambda value: isinstance(value, float | int),
        str_from_instance=lambda value: [str(value)],
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to compute, and where it goes."""

    networks: int | None = None
    """Number of networks (default: as many as the claims need, as far as about a minute goes)."""
    out: Path | None = None
    """Folder of the run: new, empty, or that of the same run, which goes on (default: results/NAME-NUMBER)."""
    shard: str = "0/1"
    """Draw the i-th of n shares of the networks alone, as i/n; `mftadv merge` joins them."""
    batch_size: int | None = None
    """Networks drawn at once (default: as memory allows)."""
    dry_run: bool = False
    """Say what would be computed, and in how much memory; compute nothing."""
    wide: bool = False
    """Print all columns of the tables."""


def _run(experiment: Experiment, options: Options, console: Console) -> int:
    share, _, shares = options.shard.partition("/")
    if not (share.isdigit() and shares.isdigit()):
        raise ValueError(f"shard: expected i/n, got {options.shard!r}")
    budget = Budget(options.networks, options.batch_size, (int(share), int(shares)), options.dry_run)
    folder = options.out or Path("results") / f"{experiment.name}-{{}}"
    terminal = Terminal(console)
    try:
        return _print(experiments.run(experiment, folder, budget, observer=terminal), options.wide, console)
    finally:
        terminal.close()


def _print(result: Result, wide: bool, console: Console) -> int:
    """The tables, what is to be said of the claims that fail, and where the results are; the exit status."""
    for table in result.experiment.tables(result.data, result.judged, wide) if result.data is not None else ():
        console.print()
        console.print(table)
    for note in report.notes(result.judged):
        console.print(escape(note), soft_wrap=True)
    if result.judged:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in result.counts.items())
        console.print(f"{counts}; family error {experiments.FAMILY_ERROR:g} over {len(result.judged)} claims")
    if result.folder is not None:
        console.print(f"results   {escape(str(result.folder))}", soft_wrap=True)
    return 1 if "fails" in result.counts else 0


def _command(kind: type[Experiment]) -> Callable[..., Callable[[Console], int]]:
    def command(experiment, options):
        return lambda console: _run(experiment, options, console)

    flat = tyro.conf.OmitArgPrefixes
    command.__annotations__ = {"experiment": Annotated[kind, flat], "options": Annotated[Options, flat]}
    command.__doc__ = kind.__doc__
    return command


def _status(folder: tyro.conf.Positional[Path], check: bool = False) -> Callable[[Console], int]:
    """Say how far a run is, and what is missing or damaged; nothing is changed.

    Args:
        folder: of the run.
        check: read every file and compute its checksum again.
    """

    def call(console: Console) -> int:
        found = store.status(folder, check)
        console.print(f"{found.name}: {sum(found.networks)} of {sum(found.aimed)} networks in {len(found.aimed)} cells")
        for name in found.damaged:
            console.print(f"damaged   {escape(name)}", soft_wrap=True)
        current = " of these networks" if found.is_current else " of fewer networks"
        console.print(f"results   {'there,' + current if found.has_results else 'not there'}")
        return 0

    return call


def _merge(folder: tyro.conf.Positional[Path], shards: tyro.conf.Positional[tuple[Path, ...]], wide: bool = False):
    """Join shards of one run into the run that one process would have made.

    Args:
        folder: where it is to be: a new or empty folder, or one of the same run.
        shards: the folders of the shards, which are only read.
        wide: print all columns of the tables.
    """
    return lambda console: _print(experiments.merge(folder, shards, Terminal(console)), wide, console)


def _show(folder: tyro.conf.Positional[Path], wide: bool = False) -> Callable[[Console], int]:
    """Print the tables of a finished run again.

    Args:
        folder: of the run.
        wide: print all columns of the tables.
    """
    return lambda console: _print(experiments.show(folder), wide, console)


def _sweep(file: tyro.conf.Positional[Path], out: Path | None = None) -> Callable[[Console], int]:
    """Draw a built-in statistic over a grid that a TOML file describes, with theory beside it.

    Args:
        file: see `mftadv.experiments.SweepFile`.
        out: folder for the results (default: results/FILE).
    """

    def call(console: Console) -> int:
        folder = out or Path("results") / file.stem
        data = SweepFile.read(file).run(folder, Terminal(console))
        console.print(report.grid_table(data), f"results   {escape(str(folder))}", sep="\n")
        return 0

    return call


_COMMANDS = {name: _command(kind) for name, kind in EXPERIMENTS.items()}
_COMMANDS |= {"sweep": _sweep, "status": _status, "merge": _merge, "show": _show}


def _parse(arguments: Sequence[str]) -> Callable[[Console], int]:
    """The command; a usage error becomes one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _REGISTRY:
            return tyro.extras.subcommand_cli_from_dict(
                _COMMANDS, prog="mftadv", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # a box, drawn as the terminal allows: its title, rules, and between them paragraphs, the first the message
        lines = [line.strip("╭╮╰╯│─ ") for line in box.getvalue().splitlines()[1:]]
        body = itertools.dropwhile(lambda line: not line.strip("-"), lines)
        raise ValueError(" ".join(itertools.takewhile(lambda line: line.strip("-"), body))) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0 when every claim that should hold holds (or is underpowered), 1 when one fails and for
        nothing else, 2 for bad usage, 3 when the machine fails (memory, disk), 4 for an error in this program, 130 for
        an interruption.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"mftadv {importlib.metadata.version('mftadv')}")
        return 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    try:
        return _parse(arguments)(console)
    except (OSError, MemoryError, OverflowError, RuntimeError) as error:
        print(f"mftadv: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 3
    except ValueError as error:
        names, expected, rest = str(error).partition(": expected")
        if expected and re.fullmatch(r"\w+(, \w+)*", names):  # arguments by the names of their options
            names = ", ".join(
                "--" + ("out" if name == "folder" else name.replace("_", "-")) for name in names.split(", ")
            )
        print(f"mftadv: {names}{expected}{rest}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mftadv: interrupted; the same command goes on from what is stored", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 4
