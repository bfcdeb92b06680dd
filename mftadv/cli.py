"""The command line: argument types and calls, nothing else."""

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from mftadv import experiments, report, store
from mftadv.experiments import EXPERIMENTS, Budget, Experiment, Result, SweepFile
from mftadv.report import Terminal
from mftadv.sweep import check_devices

Command = Callable[[Terminal], int | None]

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


def _print(result: Result, wide: bool, terminal: Terminal) -> int:
    """What was found, and where it is stored; the exit status."""
    tables = () if result.data is None else result.experiment.tables(result.data, result.judged, wide)
    terminal.conclude(tables, result.judged, result.folder)
    return 1 if "fails" in result.counts else 0


def _command(kind: type[Experiment]) -> Callable[..., Command]:
    def command(experiment, options):
        def call(terminal: Terminal) -> int:
            budget = Budget(options.networks, options.batch_size, options.shard, options.dry_run)
            folder = options.out or Path("results") / f"{experiment.name}-{{}}"
            return _print(experiments.run(experiment, folder, budget, observer=terminal), options.wide, terminal)

        return call

    flat = tyro.conf.OmitArgPrefixes
    command.__annotations__ = {"experiment": Annotated[kind, flat], "options": Annotated[Options, flat]}
    command.__doc__ = str(kind.__doc__).partition("\n")[0]  # the whole of it is shown above the options
    return command


def _status(folder: Positional[Path], check: bool = False) -> Command:
    """Say how far a run is, and what is missing or damaged; nothing is changed.

    Args:
        folder: of the run.
        check: read every file and compute its checksum again.
    """
    return lambda terminal: terminal.say(str(store.status(folder, check)))


def _merge(folder: Positional[Path], shards: Positional[tuple[Path, ...]], wide: bool = False) -> Command:
    """Join shards of one run into the run that one process would have made.

    Args:
        folder: where it is to be: a new or empty folder, or one of the same run.
        shards: the folders of the shards, which are only read.
        wide: print all columns of the tables.
    """
    return lambda terminal: _print(experiments.merge(folder, shards, terminal), wide, terminal)


def _show(folder: Positional[Path], wide: bool = False) -> Command:
    """Print the tables of a finished run again.

    Args:
        folder: of the run.
        wide: print all columns of the tables.
    """
    return lambda terminal: _print(experiments.show(folder), wide, terminal)


def _report(folder: Positional[Path]) -> Command:
    """Write the page of a finished run again, report.html in its folder.

    Args:
        folder: of the run.
    """
    return lambda terminal: terminal.say(str(report.write(folder, terminal.say)))


def _reproduce(
    claims: Positional[tuple[str, ...]] = (),
    scale: Literal["quick", "full"] = "quick",
    out: Path | None = None,
    list: bool = False,
) -> Command:
    """Measure the claims of the paper, and ours, and write a page of what was found.

    Args:
        claims: their names, see --list (default: all).
        scale: within ten minutes on two cores for all of them, or sized for one GPU.
        out: folder for a folder of each run, and for report.html (default: results/reproduce-NUMBER).
        list: say what each claim is, in a line; compute nothing.
    """

    def call(terminal: Terminal) -> int | None:
        if list:
            return terminal.say("\n".join(map(str, experiments.paper_claims(claims))))
        found = experiments.reproduce(claims, scale, out or Path("results") / "reproduce-{}", terminal)
        terminal.conclude(found.tables, [], found.folder)
        return int(found.fails)

    return call


def _sweep(file: Positional[Path], out: Path | None = None, shard: str = "0/1") -> Command:
    """Draw a built-in statistic over a grid that a TOML file describes, with theory beside it.

    Args:
        file: see `mftadv.experiments.SweepFile`.
        out: folder for the results (default: results/FILE).
        shard: draw the i-th of n shares of the networks alone, as i/n; `mftadv merge` joins them.
    """

    def call(terminal: Terminal) -> int:
        swept, folder = SweepFile.read(file), out or Path("results") / file.stem
        data = swept.run(folder, terminal, shard)
        return _print(Result(swept, folder, data, ()), False, terminal)

    return call


_OTHERS = (_sweep, _status, _merge, _show, _report, _reproduce)
_COMMANDS = {name: _command(kind) for name, kind in EXPERIMENTS.items()}
_COMMANDS |= {command.__name__[1:]: command for command in _OTHERS}


def _parse(arguments: Sequence[str]) -> Command:
    """The command that is meant.

    Raises:
        ValueError: tyro refuses the arguments; it would print its message in a box, and exit.
    """
    box = io.StringIO()
    try:
        with _REGISTRY, contextlib.redirect_stderr(box):
            return tyro.extras.subcommand_cli_from_dict(
                _COMMANDS, prog="mftadv", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    # below the title of the box are paragraphs between rules, of which the first is the message
    lines = [line.strip("╭╮╰╯│─ ") for line in box.getvalue().splitlines()[1:]]
    body = itertools.dropwhile(lambda line: not line.strip("-"), lines)
    raise ValueError(" ".join(itertools.takewhile(lambda line: line.strip("-"), body)))


def main(arguments: Sequence[str]) -> int:
    """Run a command, and raise what goes wrong; 1 when a claim fails that should hold, else 0."""
    terminal = Terminal()
    try:
        command = _parse(arguments)
        check_devices()
        return command(terminal) or 0
    finally:
        terminal.close()
