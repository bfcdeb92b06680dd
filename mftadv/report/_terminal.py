"""Tables and progress in a terminal."""

import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mftadv.compare import FAMILY_ERROR, Judgement
from mftadv.sweep import Observer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
else:  # imported where they are used: the library does without the extra "cli"
    Console = Table = Any

_STYLES = {"holds": "green", "fails": "bold red", "fails, as predicted": "yellow", "underpowered": "dim"}
_QUIET = 10.0  # seconds between two lines of progress where there is no terminal
_NAMED = 3  # how many claims a note names; the table and the record have all
_Z = (
    "z: the distance of measured and theory in standard errors, less what theory may be off by (the allowance). "
    "fails*: as predicted. underpowered: cannot see 5%."
)
_BOUND = " <=: an upper bound."
_DISTANCE = " Law: largest distance of the distribution functions of one entry a network and of its law at this width."


def table(title: str, legend: str) -> Table:
    """An empty table with what its columns mean below it."""
    from rich.table import Table

    return Table(
        title=title, title_justify="left", caption=legend, caption_justify="left", header_style="bold", box=None,
        pad_edge=False,
    )  # fmt: skip


def number(value: float | None, form: str = ".4g") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def verdict(name: str) -> str:
    """A verdict in its colour, in one short word."""
    return f"[{_STYLES[name]}]{'fails*' if name == 'fails, as predicted' else name}[/]"


def verdict_table(title: str, judgements: Sequence[Judgement], wide: bool = False) -> Table:
    """A table of claims; by default of few columns, which fit 80 characters where quantities take at most 26.

    Args:
        title: above it.
        judgements: a row each.
        wide: also the ratio, the allowance, the adjusted p-value, and the smallest deviation that could be seen.
    """
    claims = [judgement.claim for judgement in judgements]
    kinds = {claim.kind for claim in claims}
    legend = _Z + _BOUND * ("at_most" in kinds) + _DISTANCE * ("distance" in kinds)
    legend += " p: Holm's, over all claims of the run. sees: the smallest deviation that would show." * wide
    rows = table(title, legend)
    rows.add_column("quantity")
    more = ("ratio", "allowance", "p", "sees")
    for name in ("theory", "measured", "+- s.e.", *(more if wide else ()), "z"):
        rows.add_column(name, justify="right")
    rows.add_column("verdict")
    for claim, judged in zip(claims, judgements, strict=True):
        extra = (
            number(judged.ratio, ".3f" if abs(judged.ratio) < 1000 else ".3g"),
            number(claim.allowance, ".2g"),
            number(judged.adjusted_p_value, ".2g"),
            number(judged.smallest_visible, ".1%").replace("inf%", "-"),
        )
        rows.add_row(
            claim.quantity,
            "<=" * (claim.kind == "at_most") + number(claim.theory),
            number(claim.measured),
            number(claim.standard_error, ".2g"),
            *(extra if wide else ()),
            number(judged.z, "+.1f" if abs(judged.z) < 100 else "+.0e"),
            verdict(judged.verdict),
        )
    return rows


def grid_table(data: Any, rows: int = 40) -> Table:
    """The first points of a sweep's dataset: each mean and its standard error beside what theory says.

    Args:
        data: see `mftadv.sweep`; what has more axes than the grid, or is a bound of infinite width, is left out.
        rows: how many points, at most.
    """
    columns, points, total = grid_rows(data, rows)
    title = f"{len(points)} of {total} points" if total > rows else ""
    drawn = table(title, "means +- standard errors over networks; theory_: closed forms. data.nc has all.")
    for name in columns:
        drawn.add_column(name, justify="right")
    for cells in points:
        drawn.add_row(*cells)
    return drawn


def grid_rows(data: Any, rows: int) -> tuple[list[str], list[list[str]], int]:
    """The names of the columns of `grid_table`, the text of the first rows, and how many points there are."""
    names = [str(name) for name, each in data.data_vars.items() if set(each.dims) == set(data.coords)]
    grid = [str(name) for name in data[names[0]].dims]
    means = [name for name in names if f"{name}_standard_error" in names]
    shown = [each for name in means for each in (name, f"theory_{name}", f"theory_{name}_at_width") if each in names]
    points = data[names].stack(point=grid)
    found = []
    for i in range(min(rows, points.sizes["point"])):
        at = points.isel(point=i)
        cells = [str(at[name].item()) for name in grid]
        for name in shown:
            error = f" +- {number(at[f'{name}_standard_error'].item(), '.1g')}" if name[:7] != "theory_" else ""
            cells.append(number(at[name].item()) + error)
        found.append(cells)
    return [*grid, *shown], found, points.sizes["point"]


def notes(judgements: Sequence[Judgement]) -> list[str]:
    """What is to be said of the claims that fail: a line for each reason, with the first claims it is about."""
    return [
        f"* {line}" for line in notes_of((each.claim.note, each.claim.quantity, each.verdict) for each in judgements)
    ]


def notes_of(claims: Iterable[tuple[str, str, str]]) -> list[str]:
    """The lines of `notes` for claims of which each has a note, a quantity and a verdict."""
    found: dict[str, dict[str, None]] = {}
    for note, quantity, verdict in claims:
        if note and verdict.startswith("fails"):
            found.setdefault(note, {})[quantity] = None
    return [
        f"{len(quantities)} x {note}: " + "; ".join([*quantities][:_NAMED]) + "; ..." * (len(quantities) > _NAMED)
        for note, quantities in found.items()
    ]


class Terminal(Observer):
    """Shows lines, and the share that is done: a bar, or a line now and then where there is no terminal."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
        self._told = time.monotonic()
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
        self._task = self._bar.add_task("", total=1.0)

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def progress(self, share: float, doing: str) -> None:
        if self.console.is_terminal:
            self._bar.start()
            self._bar.update(self._task, completed=share, description=doing.replace("[", r"\["))
            if share >= 1:
                self._bar.stop()
        elif time.monotonic() - self._told > _QUIET:
            self._told = time.monotonic()
            self.say(f"{share:7.1%}   {doing}")

    def conclude(self, tables: Sequence[Table], judgements: Sequence[Judgement], folder: Path | None) -> None:
        """Show what was found, what is to be said of claims that fail, how many have each verdict, and where it is."""
        for each in tables:
            self.console.print("", each, sep="\n")
        for note in notes(judgements):
            self.say(note)
        if judgements:
            verdicts = [judged.verdict for judged in judgements]
            counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
            self.say(f"{counts}; family error {FAMILY_ERROR:g} over {len(judgements)} claims")
        if folder is not None:
            self.say(f"results   {folder}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar.live.is_started:  # what never started would print an empty line
            self._bar.stop()
