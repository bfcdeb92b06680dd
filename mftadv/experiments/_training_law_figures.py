"""The pictures of how L_adv and the variance fall in training."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mftadv.experiments._trainings import mean_and_error
from mftadv.report import BLUE, GREY, ORANGE, RED


def training_law(title: str, shown: Sequence[tuple[Any, Any, bool]]):
    """L_adv over its start, and the fall of the variance, against t / t*; a column for each depth and angle.

    Args:
        title: of the figure.
        shown: (cell, `mftadv.experiments.training_law.Curves`, whether inside the kernel regime) each.
    """
    import matplotlib
    from matplotlib.figure import Figure

    groups = [
        list(group)
        for _, group in itertools.groupby(shown, key=lambda each: (each[0].coords["depth"], each[0].coords["angle"]))
    ]
    figure = Figure(figsize=(5 * len(groups) + 0.6, 8.4), layout="constrained")
    figure.suptitle(title, fontsize=9)
    figure.set_label(
        "L_adv over its start, and the fall of the weight variance, against training time in units of t*, for several "
        "widths, beside the published closed form, the exact identity and the band between two theoretical curves."
    )
    panels = figure.subplots(2, len(groups), squeeze=False)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, max(map(len, groups))))
    for (upper, lower), group in zip(panels.T, groups, strict=True):
        cell, curves, _ = group[-1]
        band = curves.loss_band / curves.loss_band[:, :1]
        upper.fill_between(curves.tau, *band, color=BLUE, alpha=0.15, lw=0, label="theory, linear to rough start")
        upper.plot(curves.tau, band.T, color=BLUE, lw=0.8)
        closed = [each.closed_loss / each.closed_loss[0] for _, each, _ in group]
        upper.plot(curves.tau, np.transpose(closed), ":", color=RED, lw=1.4, label="published closed form")
        for (of, each, inside), shade in zip(group, shades, strict=False):
            mean, error = each.relative
            label = f"N = {of.spec.width}" + ", kernel regime" * inside
            style = {"color": shade, "marker": "o" if inside else None, "ms": 3, "lw": 1.3}
            upper.errorbar(each.tau, mean, 2 * error, capsize=1.5, label=label, **style)
            tau = each.tau[1:]
            change, error = mean_and_error(-each.change[:, 1:])
            lower.errorbar(tau, change, 2 * error, capsize=1.5, label=label, **style)
            lower.plot(tau, -each.identity[:, 1:].mean(0), "--", color=ORANGE, lw=1)
            lower.plot(tau, -each.closed_change[1:], ":", color=RED, lw=1.1)
            lower.fill_between(tau, *-each.change_band.mean(1)[:, 1:], color=BLUE, alpha=0.15, lw=0)
        for style, colour, label in (("--", ORANGE, "exact identity"), (":", RED, "published closed form")):
            lower.plot([], [], style, color=colour, label=label)
        lower.fill_between([], [], color=BLUE, alpha=0.15, label="theory")
        upper.set_title(rf"$L = {cell.coords['depth']}$, $\theta = {cell.coords['angle']:g}$", fontsize=10)
        upper.set_ylim(0, 1.05)
        lower.set(xscale="log", yscale="log", xlabel="$t/t^*$, for several inputs $t/(B t^*)$")
        for axes in (upper, lower):
            axes.grid(color=GREY, alpha=0.15, lw=0.6)
        handles, labels = upper.get_legend_handles_labels()
        own = dict(zip(labels, handles, strict=True))  # one line for the closed form of all widths
        upper.legend(own.values(), own.keys(), frameon=False, fontsize=7)
        lower.legend(frameon=False, fontsize=7)
    panels[0, 0].set_ylabel(r"$L_{adv}(t) / L_{adv}(0)$")
    panels[1, 0].set_ylabel("fall of the weight variance, $s(0) - s(t)$")
    return figure
