"""The pictures of how L_adv and the variance fall in training."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mftadv.experiments._trainings import mean_and_error
from mftadv.report import BLUE, GREY, RED


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
    figure = Figure(figsize=(13, 3.7 * len(groups) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    figure.set_label(
        "For several widths: L_adv over its start and the fall of the weight variance against training time in units "
        "of t*, and that fall at the end against width; beside the published closed form, the exact identity and the "
        "band between two theoretical curves."
    )
    panels = figure.subplots(len(groups), 3, squeeze=False)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, max(map(len, groups))))
    for (left, middle, right), group in zip(panels, groups, strict=True):
        cell, curves, _ = group[-1]
        band = curves.relative_band
        moved = curves.change_band.mean(1) / curves.closed_change[-1]
        for axes, edges, label in ((left, band, "theory, linear to rough start"), (middle, moved, None)):
            axes.fill_between(curves.tau, *edges, color=BLUE, alpha=0.15, lw=0, label=label)
            axes.plot(curves.tau, edges.T, color=BLUE, lw=0.8)
        for number, ((of, each, inside), shade) in enumerate(zip(group, shades, strict=False)):
            style = {"color": shade, "marker": "o" if inside else None, "ms": 3, "lw": 1.3, "capsize": 1.5}
            label = f"N = {of.spec.width}" + ", kernel regime" * inside
            mean, error = each.relative
            left.errorbar(each.tau, mean, 2 * error, label=label, **style)
            change, error = mean_and_error(each.change / each.closed_change[-1])
            middle.errorbar(each.tau, change, 2 * error, **style)
            label = None if number else "exact identity"
            moved = each.identity.mean(0) / each.closed_change[-1]
            middle.plot(each.tau, moved, ":", color="black", lw=1, zorder=5, label=label)
        label = "published closed form"
        left.plot(curves.tau, curves.closed_loss / curves.closed_loss[0], "--", color=RED, lw=1.4, label=label)
        middle.plot(curves.tau, curves.closed_change / curves.closed_change[-1], "--", color=RED, lw=1.4, label=label)
        widths = [float(of.spec.width) for of, _, _ in group]
        mean, error = np.transpose([mean_and_error(-each.change[:, -1]) for _, each, _ in group])
        edges = np.transpose([-each.change_band.mean(1)[:, -1] for _, each, _ in group])
        right.fill_between(widths, *edges, color=BLUE, alpha=0.15, lw=0, label="theory, linear to rough start")
        right.plot(widths, [-each.closed_change[-1] for _, each, _ in group], "--", color=RED, lw=1.4, label=label)
        right.errorbar(widths, mean, 2 * error, fmt="o", ms=4, color=GREY, capsize=2, label="measured")
        guide = mean[0] * (np.array(widths) / widths[0]) ** -2
        right.plot(widths, guide, ":", color="black", lw=1, label="$N^{-2}$ through the first")
        law = rf"$L = {cell.coords['depth']}$, $\theta = {cell.coords['angle']:g}$"
        right.set(xscale="log", yscale="log", xlabel="width $N$")
        for axes in (left, middle):
            axes.set(ylim=(0, 1.05), xlabel="$t/t^*$, for $B$ inputs $t/(B t^*)$")
        for axes in (left, middle, right):
            axes.grid(color=GREY, alpha=0.15, lw=0.6)
        left.legend(frameon=False, fontsize=7, loc="upper right", bbox_to_anchor=(1, 0.94))
        middle.legend(frameon=False, fontsize=7, loc="upper left")
        right.legend(frameon=False, fontsize=7, loc="lower left")
        right.set_xticks(widths, [f"{width:g}" for width in widths])
        right.minorticks_off()
        for axes, label in (
            (left, r"$L_{adv}(t) / L_{adv}(0)$"),
            (middle, "fall of $s$, the closed form's at the end: 1"),
            (right, "fall of $s$ at the end"),
        ):
            axes.set_title(f"{law}: {label}", loc="left", fontsize=9)
    return figure
