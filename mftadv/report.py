"""Tables and figures of judged claims; no physics is computed here."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from mftadv.compare import Judgement
from mftadv.statistics import scale_mixture_cdf

__all__ = ["bounds_table", "dimensions_figure", "distribution_figure", "loss_figure", "verdict_table"]

_STYLES = {"holds": "green", "fails": "bold red", "fails, as predicted": "yellow", "underpowered": "dim"}
_MAX_PANELS = 6
_GREY, _BLUE, _RED, _ORANGE = "#555555", "#3b6ea8", "#c0392b", "#d98c21"
KINDS = ("published", "leading", "sharp", "chevet")
_BOUND_STYLES = {
    "chevet": {"color": _GREY, "ls": "-", "lw": 1.2, "label": "Chevet's bound"},
    "at_width": {"color": _GREY, "ls": "--", "lw": 1.2, "label": "Chevet's bound at this width"},
    "sharp": {"color": _RED, "ls": "--", "lw": 1.2, "label": "sharp mean"},
    "published": {"color": _ORANGE, "ls": "-", "lw": 1.2, "label": "published"},
    "one_step": {"color": _RED, "ls": ":", "lw": 1.4, "label": "law of one step"},
}


def verdict_table(title: str, judgements: Sequence[Judgement]) -> Table:
    """A table of claims: quantity, theory, measured +- s.e., ratio, z, verdict."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("quantity")
    for name in ("theory", "measured", "+- s.e.", "ratio", "z"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for judged in judgements:
        claim, relation = judged.claim, "<= " if judged.claim.kind == "at_most" else ""
        verdict = judged.verdict
        if verdict == "underpowered" and math.isfinite(judged.smallest_visible):
            verdict += f" (sees {judged.smallest_visible:.0%})"
        table.add_row(
            claim.quantity,
            relation + _number(claim.theory),
            _number(claim.measured),
            _number(claim.standard_error),
            _number(judged.ratio, ".3f" if abs(judged.ratio) < 1000 else ".3g"),
            _number(judged.z, "+.1f"),
            f"[{_STYLES[judged.verdict]}]{verdict}[/]",
        )
    return table


def _number(value: float | None, form: str = ".4g") -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def distribution_figure(
    title: str,
    names: Sequence[str],
    entries: Sequence[np.ndarray],
    variance: float,
    kurtosis: float | None,
    norms: Sequence[tuple[str, Any, float, dict[str, float]]],
):
    """The law of J's entries, input by input, and the measured norms beside their coefficients.

    Args:
        title: of the whole figure.
        names: one for each input.
        entries: of J at each input, [m] each, pooled over networks.
        variance: of an entry by the closed form.
        kurtosis: of an entry at finite width; None where no law at finite width is known.
        norms: for each pair its label, the draws of the norm [n], its predicted mean (nan where unknown), and its
            bounds by name.

    Returns:
        A matplotlib Figure.
    """
    from matplotlib.figure import Figure  # here alone: a tenth of a second that a table does not need

    shown = min(len(names), _MAX_PANELS)
    rows = shown + (1 if norms else 0)
    figure = Figure(figsize=(9.5, 3.1 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(rows, 2, width_ratios=(1.35, 1))
    sigma = math.sqrt(variance)
    for row in range(shown):
        standardised = np.asarray(entries[row], np.float64) / sigma
        _histogram(figure.add_subplot(grid[row, 0]), standardised, kurtosis, names[row], legend=row == 0)
        _quantiles(figure.add_subplot(grid[row, 1]), standardised, kurtosis, legend=row == 0)
    if norms:
        _norms(figure.add_subplot(grid[shown, :]), norms)
    return figure


def _histogram(axes, values: np.ndarray, kurtosis: float | None, name: str, legend: bool) -> None:
    reach = max(4.0, min(6.0, float(np.quantile(np.abs(values), 0.9999))))
    bins = np.linspace(-reach, reach, 2 * max(10, min(60, int(len(values) ** (1 / 3)))) + 1)
    density = np.histogram(values, bins)[0] / (len(values) * np.diff(bins))
    axes.stairs(density, bins, fill=True, color=_BLUE, alpha=0.35, label="measured")
    grid = np.linspace(-reach, reach, 401)
    axes.plot(grid, stats.norm.pdf(grid), color=_GREY, lw=1.2, label="normal law (infinite width)")
    if kurtosis:
        law = np.diff(scale_mixture_cdf(grid, 1.0, kurtosis)) / np.diff(grid)
        axes.plot((grid[1:] + grid[:-1]) / 2, law, color=_RED, lw=1.2, ls="--", label="law at this width")
    least = 0.3 / (len(values) * (bins[1] - bins[0]))
    axes.set(yscale="log", ylim=(max(least, 1e-7), 1.0), xlim=(-reach, reach), ylabel="density")
    axes.set_title(name, fontsize=9, loc="left")
    axes.set_xlabel(r"$J_{ij}\,/\,\sqrt{\omega^L/d}$")
    if legend:
        axes.legend(frameon=False, fontsize=7.5, loc="lower center")


def _quantiles(axes, values: np.ndarray, kurtosis: float | None, legend: bool) -> None:
    count = len(values)
    tail = np.unique(np.geomspace(1, count / 2, 120).astype(int))
    ranks = np.concatenate([tail, count + 1 - tail[::-1]])
    expected = stats.norm.ppf((ranks - 0.5) / count)
    axes.axline((0, 0), slope=1, color=_GREY, lw=1.2, label="normal law (infinite width)")
    if kurtosis:
        grid = np.linspace(-12, 12, 4001)
        law = np.asarray(scale_mixture_cdf(grid, 1.0, kurtosis))
        known = (law > 0) & (law < 1) & (np.diff(law, prepend=-1.0) > 0)
        mixture = np.interp((ranks - 0.5) / count, law[known], grid[known])
        axes.plot(expected, mixture, color=_RED, lw=1.2, ls="--", label="law at this width")
    axes.plot(expected, np.sort(values)[ranks - 1], ".", color=_BLUE, ms=3.5, label="measured")
    axes.set(xlabel="normal quantile", ylabel="measured quantile")
    if legend:
        axes.legend(frameon=False, fontsize=7.5, loc="upper left")


def _norms(axes, norms) -> None:
    for position, (_, values, predicted, bounds) in enumerate(norms):
        values = np.asarray(values, np.float64)
        unit = bounds["Chevet's bound"]
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95]) / unit
        first = position == 0
        label = "5%, median, 95% of networks" if first else None
        axes.plot([position] * 3, [low, middle, high], "-_", color=_BLUE, ms=12, lw=6, alpha=0.35, label=label)
        error = values.std(ddof=1) / math.sqrt(len(values)) / unit if len(values) > 1 else 0
        label = "measured mean +- 2 s.e." if first else None
        axes.errorbar(position, values.mean() / unit, 2 * error, fmt="o", color=_BLUE, ms=4, capsize=3, label=label)
        if not math.isnan(predicted):
            axes.plot(position, predicted / unit, "x", color=_RED, ms=7, label="predicted mean" if first else None)
        if "published" in bounds:
            drawn = axes.get_legend_handles_labels()[1]
            label = None if "published coefficient" in drawn else "published coefficient"
            axes.plot(position, bounds["published"] / unit, "v", color=_ORANGE, ms=6, label=label)
    axes.axhline(1, color=_GREY, lw=1.2)
    axes.text(-0.45, 1.01, "Chevet's bound", fontsize=7.5, color=_GREY, va="bottom")
    axes.set_xticks(range(len(norms)), [label for label, *_ in norms])
    axes.set(xlim=(-0.5, len(norms) - 0.5), ylabel=r"$\|J\|_{p\to q}$ / bound")
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=7.5, loc="upper right", ncols=4)


def bounds_table(title: str, cells: Sequence[Mapping[str, Any]], varied: str) -> Table:
    """What was measured of the adversarial loss beside what is predicted, a row for each cell.

    Args:
        title: of the table.
        cells: the records of `mftadv.experiments.bounds.cell`, with the "verdicts" on them.
        varied: what besides p and q differs from row to row, "eps", "d" or "K".
    """
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("p->q")
    measured = ("L_adv", "+- s.e.", "5%", "50%", "95%", "eps |J|")
    numbers = (*measured, "one step", "published", "leading", "sharp", "Chevet", "Chevet, N")
    for name in (varied, *numbers, "tightness"):
        table.add_column(name, justify="right")
    table.add_column("under Chevet, N")
    table.add_column("under published")
    for cell in cells:
        table.add_row(
            f"{cell['p']}->{cell['q']}",
            f"{cell[varied]:g}",
            *(_number(cell[name], ".3g") for name in ("loss", "standard_error")),
            *(_number(value, ".3g") for value in cell["quantiles"].values()),
            *(_number(cell.get(name), ".3g") for name in ("eps_norm", "one_step", *KINDS, "at_width")),
            _number(cell["tightness"], ".3f"),
            *(f"[{_STYLES[verdict]}]{verdict}[/]" for verdict in cell["verdicts"].values()),
        )
    return table


def loss_figure(title: str, cells: Sequence[Mapping[str, Any]]):
    """The adversarial loss against eps, a panel for each p and q, over eps omega^(L/2) so that bounds are level."""
    from matplotlib.figure import Figure

    cells = [cell for cell in cells if "inputs" in cell["parts"]]
    ps, qs = (list(dict.fromkeys(cell[name] for cell in cells)) for name in ("p", "q"))
    figure = Figure(figsize=(3.2 * len(qs) + 0.6, 2.6 * len(ps) + 1.0), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(ps), len(qs), squeeze=False, sharex=True)
    for axes, (p, q) in zip(grid.flat, itertools.product(ps, qs), strict=True):
        rows = [cell for cell in cells if (cell["p"], cell["q"]) == (p, q)]
        eps = np.array([cell["eps"] for cell in rows])
        band = [np.array([cell["quantiles"][name] for cell in rows]) / eps for name in ("05", "95")]
        axes.fill_between(eps, *band, color=_BLUE, alpha=0.2, lw=0)
        axes.plot(
            eps, [cell["loss"] for cell in rows] / eps, "o-", color=_BLUE, ms=3.5, label="attack: mean, 5% to 95%"
        )
        axes.plot(eps, [cell["eps_norm"] for cell in rows] / eps, ":", color=_BLUE, label=r"$\|J(x)\|_{p\to q}$")
        for name, style in _BOUND_STYLES.items():
            if name in rows[0]:
                axes.plot(eps, [cell[name] for cell in rows] / eps, **style)
        axes.set(xscale="log", title=rf"${_tex(p)}\to{_tex(q)}$")
        axes.set_ylim(bottom=0)
    for axes in grid[-1]:
        axes.set_xlabel(r"$\epsilon$")
    figure.supylabel(r"$L_{adv}\,/\,\epsilon$", fontsize=10)
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def dimensions_figure(title: str, cells: Sequence[Mapping[str, Any]]):
    """The adversarial loss against the input dimension d, and against the output dimension K, a line for each p."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, name in zip(figure.subplots(1, 2), ("d", "K"), strict=True):
        rows = sorted((cell for cell in cells if name in cell["parts"]), key=lambda cell: cell[name])
        for p, color in zip(dict.fromkeys(cell["p"] for cell in rows), (_BLUE, _ORANGE, _RED, _GREY), strict=False):
            own = [cell for cell in rows if cell["p"] == p]
            sizes, losses = ([cell[key] for cell in own] for key in (name, "loss"))
            axes.errorbar(
                sizes, losses, [2 * cell["standard_error"] for cell in own], fmt="o", color=color, ms=4, capsize=3
            )
            axes.plot(
                sizes, [cell["chevet"] for cell in own], "-", color=color, lw=1.2, label=f"p = {p}, Chevet's bound"
            )
            axes.plot(sizes, [cell["at_width"] for cell in own], "--", color=color, lw=1.2)
        fixed = next(cell for cell in rows)["K" if name == "d" else "d"]
        axes.set(xscale="log", yscale="log", xlabel=name, title=f"{'K' if name == 'd' else 'd'} = {fixed}")
        axes.set_xticks(sorted({cell[name] for cell in rows}), sorted({cell[name] for cell in rows}), minor=False)
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
        axes.set_ylabel(r"$L_{adv}$ (dots: attack, $\pm$ 2 s.e.; dashes: at this width)", fontsize=9)
    return figure


def _tex(exponent: str) -> str:
    return r"\infty" if exponent == "inf" else exponent
