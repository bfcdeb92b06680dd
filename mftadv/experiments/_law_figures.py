"""The picture of the law of J: its entries, input by input, and its norms beside their coefficients."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy

from mftadv.compare import Claim, Judgement, find
from mftadv.experiments._networks import exponent
from mftadv.report import BLUE, GREY, ORANGE, RED
from mftadv.spec import NetworkSpec
from mftadv.statistics import scale_mixture_cdf

_MAX_PANELS = 6  # of inputs


def figure(spec: NetworkSpec, names: Sequence[str], sample: Mapping[str, np.ndarray], judged: Sequence[Judgement]):
    """The law of J's entries, input by input, and the measured norms beside what is claimed of them.

    Args:
        spec: the law of the networks.
        names: one for each input.
        sample: `entries` [n, B, K, m] and the norms `norm_p_q` [n, B].
        judged: the claims; curves, predictions and bounds are those of the first input.

    Returns:
        A matplotlib Figure.
    """
    from matplotlib.figure import Figure  # here alone: a tenth of a second that a table does not need

    shown = min(len(names), _MAX_PANELS)
    bounds = find(judged, "norm_chevet", input=0)
    rows = shown + bool(bounds)
    drawn = Figure(figsize=(9.5, 3.1 * rows + 0.6), layout="constrained")
    drawn.suptitle(
        f"{spec.block}, N={spec.width}, L={spec.depth}, d={spec.input_dim}, K={spec.output_dim}: "
        f"J of {len(sample['entries'])} networks",
        fontsize=11,
    )
    drawn.set_label(
        "Density and quantiles of the entries of J at each input, beside the normal law of infinite width and the law "
        f"at this width{', and the norms of J over the bound by Chevet' * bool(bounds)}."
    )
    grid = drawn.add_gridspec(rows, 2, width_ratios=(1.35, 1))
    # no law at finite width is known of residual networks
    variance = _theory(judged, "jacobian_variance") or _theory(judged, "jacobian_variance_published")
    kurtosis = _theory(judged, "jacobian_kurtosis")
    for row in range(shown):
        values = sample["entries"][:, row].astype(np.float64).ravel() / math.sqrt(variance or math.nan)
        panels = drawn.add_subplot(grid[row, 0]), drawn.add_subplot(grid[row, 1])
        panels[0].set_title(names[row], fontsize=9, loc="left")
        if len(values := values[np.isfinite(values)]):
            _histogram(panels[0], values, kurtosis, legend=row == 0)
            _quantiles(panels[1], values, kurtosis, legend=row == 0)
    if bounds:
        _norms(drawn.add_subplot(grid[shown, :]), sample, judged, [judgement.claim for judgement in bounds])
    return drawn


def _theory(judged: Sequence[Judgement], id: str, **coords: float) -> float | None:
    """What theory says in the claim at the first input, None where there is no such claim."""
    return next((judgement.claim.theory for judgement in find(judged, id, input=0, **coords)), None)


def _histogram(axes, values: np.ndarray, kurtosis: float | None, legend: bool) -> None:
    reach = max(4.0, min(6.0, float(np.quantile(np.abs(values), 0.9999))))
    bins = np.linspace(-reach, reach, 2 * max(10, min(60, int(len(values) ** (1 / 3)))) + 1)
    density = np.histogram(values, bins)[0] / (len(values) * np.diff(bins))
    axes.stairs(density, bins, fill=True, color=BLUE, alpha=0.35, label="measured")
    grid = np.linspace(-reach, reach, 401)
    normal = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    axes.plot(grid, normal, color=GREY, lw=1.2, label="normal law (infinite width)")
    if kurtosis:
        law = np.diff(scale_mixture_cdf(grid, 1.0, kurtosis)) / np.diff(grid)
        axes.plot((grid[1:] + grid[:-1]) / 2, law, color=RED, lw=1.2, ls="--", label="law at this width")
    least = 0.3 / (len(values) * (bins[1] - bins[0]))
    axes.set(yscale="log", ylim=(max(least, 1e-7), 1.0), xlim=(-reach, reach), ylabel="density")
    axes.set_xlabel(r"$J_{ij}\,/\,\sqrt{\omega^L/d}$")
    if legend:
        axes.legend(frameon=False, fontsize=7.5, loc="lower center")


def _quantiles(axes, values: np.ndarray, kurtosis: float | None, legend: bool) -> None:
    count = len(values)
    tail = np.unique(np.geomspace(1, count / 2, 120).astype(int))
    ranks = np.concatenate([tail, count + 1 - tail[::-1]])
    expected = scipy.special.ndtri((ranks - 0.5) / count)
    axes.axline((0, 0), slope=1, color=GREY, lw=1.2, label="normal law (infinite width)")
    if kurtosis:
        grid = np.linspace(-12, 12, 4001)
        law = np.asarray(scale_mixture_cdf(grid, 1.0, kurtosis))
        known = (law > 0) & (law < 1) & (np.diff(law, prepend=-1.0) > 0)
        mixture = np.interp((ranks - 0.5) / count, law[known], grid[known])
        axes.plot(expected, mixture, color=RED, lw=1.2, ls="--", label="law at this width")
    axes.plot(expected, np.sort(values)[ranks - 1], ".", color=BLUE, ms=3.5, label="measured")
    axes.set(xlabel="normal quantile", ylabel="measured quantile")
    if legend:
        axes.legend(frameon=False, fontsize=7.5, loc="upper left")


def _norms(axes, sample: Mapping[str, np.ndarray], judged: Sequence[Judgement], bounds: Sequence[Claim]) -> None:
    """Each norm over its bound by Chevet's inequality, of which `bounds` are the claims."""
    units = [bound.theory if 0 < bound.theory < math.inf else math.nan for bound in bounds]
    pairs = [(float(bound.coords["p"]), float(bound.coords["q"])) for bound in bounds]
    values = np.stack([sample[f"norm_{exponent(p)}_{exponent(q)}"][:, 0].astype(np.float64) for p, q in pairs])
    values = np.where(np.isfinite(values), values, math.nan) / np.array(units)[:, None]
    positions = np.arange(len(pairs))
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], axis=1)
    axes.vlines(positions, low, high, color=BLUE, lw=6, alpha=0.35, label="5% to 95% of networks")
    axes.plot(positions, middle, "_", color=BLUE, ms=12, label="median")
    error = values.std(axis=1, ddof=1) / math.sqrt(values.shape[1]) if values.shape[1] > 1 else np.zeros(len(pairs))
    label = "measured mean +- 2 s.e."
    axes.errorbar(positions, values.mean(axis=1), 2 * error, fmt="o", color=BLUE, ms=4, capsize=3, label=label)
    for id, label, style in (
        ("norm_sharp", "predicted mean", {"marker": "x", "color": RED, "ms": 7}),
        ("norm_published", "published coefficient", {"marker": "v", "color": ORANGE, "ms": 6}),
    ):
        found = [_theory(judged, id, p=p, q=q) for p, q in pairs]
        heights = [math.nan if theory is None else theory / unit for theory, unit in zip(found, units, strict=True)]
        if not all(map(math.isnan, heights)):
            axes.plot(positions, heights, ls="", label=label, **style)
    axes.axhline(1, color=GREY, lw=1.2, label="Chevet's bound")
    axes.set_xticks(positions, [rf"{exponent(p)}$\to${exponent(q)}" for p, q in pairs])
    axes.set(xlim=(-0.5, len(pairs) - 0.5), ylabel=r"$\|J\|_{p\to q}$ / bound")
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=7.5, loc="upper right", ncols=3)
