"""The pictures of networks in training."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mftadv import theory
from mftadv.experiments._trainings import mean_and_error, relative_fisher_rao
from mftadv.report import BLUE, GREY, ORANGE, RED
from mftadv.spec import NetworkSpec
from mftadv.theory import TrainingPrediction

Record = Mapping[str, np.ndarray]

_COLOURS = (BLUE, RED, ORANGE, GREY)
_SHOWN = 8  # networks of which each is a line of its own; means and errors are of all
_FURTHEST = 100  # times the deepest network: a boundary beyond that is told by the legend alone


def training(
    title: str,
    times: np.ndarray,
    record: Record,
    published: np.ndarray,
    spec: NetworkSpec,
    predicted: Mapping[str, float],
    band: TrainingPrediction | None = None,
):
    """Everything in the record of some networks against time; dashed what theory says.

    Args:
        title: of the figure.
        times: [S], of the evaluations.
        record: see `mftadv.training.TrainingRecord`, [n, S, ...] each.
        published: s(t) of the closed form, [S].
        spec: the law of the networks.
        predicted: what theory says of the start, see `Train.predict`.
        band: what theory says of the time after it, see `Train.band`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 7.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.set_label(
        "Networks in adversarial training against time, beside theory: weight variance, losses, accuracy, propagation, "
        "distance from the start, gradients, Fisher-Rao norm."
    )
    grid = figure.subplots(2, 4).flat

    def lines(axes, name, colour=BLUE, label=None, reduce=None):
        values = record[name] if reduce is None else reduce(record[name])
        if not np.isfinite(values).any():
            return
        mean, error = mean_and_error(values)
        axes.plot(times, values[:_SHOWN].T, color=colour, alpha=0.25, lw=0.6)
        axes.plot(times, mean, color=colour, lw=1.6, label=label)
        axes.fill_between(times, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.2, lw=0)

    def layers(values):
        return values.mean(axis=2)

    axes = next(grid)
    axes.set_title("change of the weight variance, mean of layers", loc="left", fontsize=10)
    lines(axes, "norm_change", BLUE, "measured", lambda values: layers(values) / spec.width)
    identity = mean_and_error(layers(record["norm_change_predicted"]) / spec.width)[0]
    named = "identity, in the mean" if spec.has_shortcut else "exact identity"
    axes.plot(times, identity, "--", color=RED, lw=1.4, label=named)
    axes.plot(times, published - published[0], ":", color=GREY, lw=1.6, label="published closed form")
    if band is not None:
        change = band.weight_variance - float(spec.weight_variance)
        axes.fill_between(band.t, *change, color=ORANGE, alpha=0.3, lw=0, label="theory, linear to rough start")
    horizon = predicted.get("validity_horizon", np.inf)
    if horizon < times[-1]:
        axes.axvline(horizon, color=ORANGE, lw=1, label=f"its horizon, t = {horizon:.2g}")

    axes = next(grid)
    axes.set_title("adversarial loss, and $|J|$ in its norms", loc="left", fontsize=10)
    lines(axes, "adversarial_loss", BLUE, "$L_{adv}$")
    lines(axes, "jacobian_norm", ORANGE, r"$|J|_{p\to q}$")
    axes.axhline(predicted["adversarial_loss"], color=GREY, ls=":", lw=1.4, label=r"theory, $t = 0$")
    if band is not None:
        loss = band.adversarial_loss.mean(2)
        axes.fill_between(band.t, *loss, color=ORANGE, alpha=0.3, lw=0, label="theory, linear to rough start")
    if "decay_rate" in predicted:
        start = mean_and_error(record["adversarial_loss"][:, 0])[0]
        slope = start - predicted["decay_rate"] * times
        axes.plot(times[slope > 0], slope[slope > 0], "--", color=RED, lw=1.2, label="its rate at $t = 0$, one output")
    axes.set_ylim(bottom=0)

    axes = next(grid)
    axes.set_title("standard loss", loc="left", fontsize=10)
    lines(axes, "standard_loss", BLUE)
    axes.set_ylim(bottom=0)

    axes = next(grid)
    axes.set_title("accuracy on the evaluation inputs", loc="left", fontsize=10)
    lines(axes, "accuracy", BLUE, "clean")
    lines(axes, "robust_accuracy", ORANGE, "attacked without labels")
    lines(axes, "attacked_accuracy", RED, "attacked with labels")
    axes.set_ylim(0, 1.02)

    axes = next(grid)
    axes.set_title("propagation", loc="left", fontsize=10)
    lines(axes, "propagation", BLUE, r"$\omega^L$ of the weights")
    lines(axes, "jacobian", RED, r"$|J|_F^2/(K\omega_0^L)$")
    with jax.enable_x64(True):
        omega = np.asarray(theory.propagation_factor(spec.replace(weight_variance=published)))
    axes.plot(times, omega**spec.depth, ":", color=GREY, lw=1.6, label=r"$\omega^L$, published")
    axes.set_ylim(bottom=0)

    axes = next(grid)
    axes.set_title("distance from the start", loc="left", fontsize=10)
    lines(axes, "kernel_similarity", BLUE, "tangent kernel, cosine")
    lines(axes, "gates_flipped", RED, "gates flipped, share", layers)
    axes.set_ylim(0, 1.02)

    axes = next(grid)
    axes.set_title("gradient norms $|dL/dW_l|_F$", loc="left", fontsize=10)
    depth = record["gradient_norm"].shape[2]
    shown = sorted({0, depth // 2, depth - 1})
    for layer, colour in zip(shown, _COLOURS, strict=False):
        lines(axes, "gradient_norm", colour, f"layer {layer + 1}", lambda values, layer=layer: values[..., layer])
    axes.set_ylim(bottom=0)

    axes = next(grid)
    axes.set_title("Fisher-Rao norm over $|dL/df|^2$", loc="left", fontsize=10)
    lines(axes, "fisher_rao", BLUE, "measured", lambda _: relative_fisher_rao(record))
    if spec.block != "residual":
        with jax.enable_x64(True):
            law = spec.replace(weight_variance=published)
            norm = np.asarray(theory.fisher_rao_norm(law, predicted["input_norm"] ** 2))
        axes.plot(times, norm, ":", color=GREY, lw=1.6, label="theory, published $s(t)$")
    axes.set_ylim(bottom=0)
    for axes in figure.axes:
        axes.set_xlabel("training time $t$ (learning rate times steps)", fontsize=9)
        if not axes.has_data():
            axes.text(0.5, 0.5, "needs labels", transform=axes.transAxes, ha="center", color=GREY)
        axes.grid(color=GREY, alpha=0.15, lw=0.6)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8)
    return figure


def trainability(title: str, rows: Sequence[Mapping[str, Any]], x: str, lower: float, boundary: Mapping[float, float]):
    """A map of accuracy over depth and `x`, and accuracy, omega^L and |J|^2 of every network against depth.

    A square of the map is the mean of a cell; below it every seed is a dot, and a line joins the means of one value of
    `x`. The depth to which theory takes networks to train is often beyond those that were trained, so depth is
    logarithmic and reaches that far.

    Args:
        title: of the figure.
        rows: a record for each cell: its coordinates, and `accuracy`, `propagation`, `jacobian` of all its networks.
        x: the name of the other axis.
        lower: the least omega^L that theory takes to train.
        boundary: for each value of the other axis the largest depth that theory takes to train, for "vanilla".
    """
    from matplotlib.figure import Figure

    columns = list(dict.fromkeys((row["block"], row["training"]) for row in rows))
    values, depths = (sorted({row[name] for row in rows}) for name in (x, "depth"))
    named = x.replace("_", " ")
    colours = dict(zip(values, itertools.cycle(_COLOURS), strict=False))
    heights = [0.9 + 0.4 * len(values), 2.6, 2.6, 2.6]
    figure = Figure(figsize=(max(2.7 * len(columns) + 1, 10.5), sum(heights)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.set_label(
        f"A map of the accuracy at the end of training over depth and {named}, with the depth to which "
        "theory takes networks to train; below it accuracy, omega^L and the square of |J| of every network against "
        "depth; a column for each block and way of training."
    )
    grid = figure.subplots(4, len(columns), squeeze=False, sharex=True, sharey="row", height_ratios=heights)
    shown = [limit for limit in boundary.values() if 0 < limit <= _FURTHEST * depths[-1]]
    left, right = min([*depths, *shown]) / 1.4, 1.4 * max([*depths, *shown])
    grid[0, 0].set(xscale="log", xlim=(left, right), ylim=(-0.5, len(values) - 0.5), ylabel=named)
    grid[0, 0].set_xticks(depths, [f"{depth}" for depth in depths], fontsize=8)
    grid[0, 0].minorticks_off()
    grid[0, 0].set_yticks(range(len(values)), [f"{value:g}" for value in values])
    for at, (block, way) in enumerate(columns):
        own = [row for row in rows if (row["block"], row["training"]) == (block, way)]
        has_theory = (block, way) == ("vanilla", "adversarial")
        for level, (value, colour) in enumerate(colours.items()):
            line = sorted((row for row in own if row[x] == value), key=lambda row: row["depth"])
            across = [row["depth"] for row in line]
            for axes, name in zip(grid[1:, at], ("accuracy", "propagation", "jacobian"), strict=True):
                for row in line:
                    axes.plot([row["depth"]] * len(row[name]), row[name], ".", color=colour, ms=4, alpha=0.5)
                means = [mean_and_error(row[name]) for row in line]
                axes.errorbar(
                    across, [mean for mean, _ in means], [2 * error for _, error in means], color=colour, lw=1.3,
                    capsize=2, label=None if at else f"{named} {value:g}",
                )  # fmt: skip
            means = [float(np.mean(row["accuracy"])) for row in line]
            grid[0, at].scatter(across, [level] * len(line), 200, means, marker="s", cmap="Blues", vmin=0, vmax=1)
            for depth, mean in zip(across, means, strict=True):
                shade = "white" if mean > 0.6 else "black"
                number = f"{mean:.2f}".removeprefix("0")
                grid[0, at].text(depth, level, number, ha="center", va="center", fontsize=7, color=shade)
            if has_theory:
                limit = boundary.get(value, math.nan)
                told = {0: "trains at no $L$", math.inf: "trains at every $L$"}.get(limit, f"trains to $L$ = {limit:g}")
                told = f"{named} {value:g}, theory: {'not derived' if math.isnan(limit) else told}"
                grid[1, at].plot([], [], color=colour, ls=":", lw=1.4, label=told)
                floor, ceiling = level / len(values), (level + 1) / len(values)  # of the row of the map
                for axes, low, high in ((grid[0, at], floor, ceiling), (grid[1, at], 0, 1), (grid[2, at], 0, 1)):
                    if limit in shown:
                        axes.axvline(limit, low, high, color=colour, ls=":", lw=1.4)
                    if limit < right:
                        axes.axvspan(max(limit, left), right, low, high, color=colour, alpha=0.12, lw=0)
        grid[0, at].set_title(f"{block}, {way}", fontsize=10)
        grid[2, at].axhline(lower, color=GREY, lw=0.8, ls="--")
        grid[3, at].set_xlabel("depth $L$")
        if at == 0 or has_theory:
            grid[1, at].legend(edgecolor="none", fontsize=7)
    grid[1, 0].set_ylim(0, 1.03)
    largest = max(float(np.max(row["propagation"], initial=1)) for row in rows)
    if largest > 10:  # as of weights of a large variance, beside which m would be lost
        grid[2, 0].set_yscale("log")
    else:
        grid[2, 0].set_ylim(0, 1.1 * largest)
    for axes, name in zip(grid[1:, 0], ("accuracy", r"$\omega(T)^L$", r"$|J|_F^2/(K\omega_0^L)$"), strict=True):
        axes.set_ylabel(name)
    for axes in grid[1:].flat:
        axes.grid(color=GREY, alpha=0.15, lw=0.6)
    if any(np.any(row["jacobian"] > 0) for row in rows):
        grid[3, 0].set_yscale("log")
    figure.supxlabel(
        "squares: mean accuracy; dots: networks; lines: means $\\pm$ 2 s.e.; dashed: "
        f"$\\omega^L = {lower:g}$\ndotted, shaded beyond: largest depth that theory takes to train, drawn for vanilla "
        "networks in adversarial training alone",
        fontsize=9,
    )
    return figure


def capacity(title: str, times: np.ndarray, curves: Sequence[tuple[str, int, np.ndarray]], fits: Sequence[Any]):
    """The Fisher-Rao norm in time for several widths, and how its fall depends on width.

    Args:
        title: of the figure.
        times: [S].
        curves: (way of training, width, [n, S] relative to the start) each.
        fits: (name, widths, `mftadv.experiments.capacity.Fit`) each; sizes are drawn, since what rises has a negative
            fall.
    """
    from matplotlib.figure import Figure

    ways = list(dict.fromkeys(way for way, _, _ in curves))
    figure = Figure(figsize=(5 * (len(ways) + 1), 4.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.set_label(
        "The Fisher-Rao norm over |dL/df|^2 in training for several widths, and how much it and omega^L change up to "
        "the first evaluation, against width, with the fitted powers of the width."
    )
    panels = figure.subplots(1, len(ways) + 1)
    for axes, way in zip(panels, ways, strict=False):
        own = [(width, values) for name, width, values in curves if name == way]
        for (width, values), shade in zip(own, np.linspace(0.35, 1, len(own)), strict=True):
            mean, error = mean_and_error(values)
            axes.plot(times, mean, color=BLUE, alpha=shade, lw=1.5, label=f"N = {width}")
            axes.fill_between(times, mean - 2 * error, mean + 2 * error, color=BLUE, alpha=0.15, lw=0)
        axes.set_title(way, loc="left", fontsize=10)
        axes.set(xlabel="training time $t$", ylabel=r"Fisher-Rao norm over $|dL/df|^2$, start: 1")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
    axes = panels[-1]
    for (name, widths, fit), colour in zip(fits, _COLOURS, strict=False):
        axes.errorbar(widths, np.abs(fit.falls), 2 * fit.errors, fmt="o", color=colour, ms=4, capsize=2)
        label = f"{name}: $N^{{{fit.exponent:.3g} \\pm {fit.error:.1g}}}$"
        axes.plot(widths, fit.curve, color=colour, lw=1.2, label=label)
    scale = "log" if any(np.any(np.abs(fit.falls) > 0) for _, _, fit in fits) else "linear"
    axes.set(xscale="log", yscale=scale, xlabel="width $N$", ylabel="relative change at the first evaluation")
    axes.set_xticks(fits[0][1], [f"{width}" for width in fits[0][1]])
    axes.minorticks_off()
    axes.set_title("size of the change against width", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    for axes in panels:
        axes.grid(color=GREY, alpha=0.15, lw=0.6)
    return figure
