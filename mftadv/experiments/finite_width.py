"""Theory against width: what a finite width N does to the Jacobian of a ReLU network, from N = 30 to a million."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import scipy
from jaxtyping import Array, Key

from mftadv import statistics, theory
from mftadv.attack import capacity_for
from mftadv.compare import Claim, Judgement, find
from mftadv.experiments._experiment import Experiment
from mftadv.experiments._networks import exponent
from mftadv.linear import linear_representation
from mftadv.network import init
from mftadv.norms import exact_operator_norm, vector_norm
from mftadv.report import BLUE, GREY, ORANGE, RED
from mftadv.spec import LARGEST, NetworkSpec, check_positive, fold_in_loop
from mftadv.sweep import Cell, sample_of

_ROWS, _COLUMNS = 10, 1000  # K and d of the networks with K > 1
_EXPONENTS = (1.0, 2.0, math.inf)


@dataclasses.dataclass(frozen=True)
class Statistic:
    """Of one network the Frobenius norm of J and its norms p -> 2, as `norm_p`; for K > 1 of p = 2 alone.

    It is a value, so that runs are told apart by it and not by its code.
    """

    def __call__(self, key: Key[Array, ""], spec: NetworkSpec) -> dict[str, Array]:
        # Cells that shared the networks' keys would share some of their noise, and err together.
        key = fold_in_loop(key, [[spec.width, spec.output_dim]])[0]
        network = init(key, spec, "matrix_free", capacity_for(spec, linear_representation=1))
        J = linear_representation(network, jax.nn.one_hot(0, spec.input_dim)).jacobian[:, 1:]
        J = J * math.sqrt(spec.input_dim / J.shape[1])
        return {
            "frobenius": vector_norm(J.ravel(), 2),
            **{f"norm_{exponent(p)}": exact_operator_norm(J, p, 2) for p in (_EXPONENTS if len(J) == 1 else (2.0,))},
        }


@dataclasses.dataclass(frozen=True)
class FiniteWidth(Experiment):
    """Hold the Jacobian of ReLU networks against what theory says of their finite width N, up to a million.

    Networks are vanilla ReLU, s = 2 (omega = 1), without bias, at x = e_1, drawn matrix-free: one of width 10^6 has
    10^13 weights, of which none is ever held. J [K, n] are the n = d - 1 columns of the Jacobian orthogonal to x,
    scaled to E J_ij^2 = 1/n. P_in is independent of all else there, so for K = 1 J = r g / sqrt n, exactly, with g [n]
    standard normal and a scale r independent of it. Its law is exact as well: flipping the sign of a row of W_l makes
    its gate a fair coin that no length depends on, so layers multiply the length of a tangent vector by independent
    factors,

        r = |g_N| / sqrt N  prod_l sqrt(2/N) |g_B|,    B ~ Binomial(N, 1/2) the open gates;    E r^2 = 1,    E r^4 = F.

    (a) The excess kurtosis 3 (F - 1) of an entry of J, estimated from lengths: E |J|^4 = F (1 + 2/n), so with m the
    mean of (|J|^2 - 1)^2, F - 1 is (m - 2/n) / (1 + 2/n). At N = 10^6 and L = 10 it is 5 10^-5, which fourth powers of
    entries, one a network, would show after 10^10 networks, and lengths, with n about N, after some tens.

    (b) The shortfall 1 - E r = 1 - E |J|/k, k = E |g|/sqrt n. |J| is replaced by |J| - (|J|^2 - 1)/2 =
    1 - (|J| - 1)^2/2, of the same mean since E |J|^2 = 1 exactly, and of far smaller spread. Were r lognormal, E r
    would be exp(-w/8), with w = ln F. In wide networks (a) and (b) see the same fluctuations, and err together.

    (c) The error E |J|_{p->2}/beta - 1 of the sharp coefficients beta, with the same control variate. For K = 1 it is
    E r - 1 whatever p, and for p = 2 the number of (b). For K = 10 the layers spread the singular values, and finite
    width adds, to first order in 1/N as `theory.spectral_norm_mean` says.
    """

    name: ClassVar[str] = "width"
    source: ClassVar[str] = "ours, finite-width laws of the Jacobian"
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("frobenius", *(f"norm_{exponent(p)}" for p in _EXPONENTS)), ()
    )

    widths: tuple[int, ...] = (30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
    """Widths N."""
    depth: int = 10
    """Number of hidden layers L."""

    def cells(self) -> Sequence[Cell]:
        if not self.widths:
            raise ValueError("widths: expected at least one number, got none")
        widths, L = sorted({check_positive("widths", N, LARGEST) for N in self.widths}), self.depth
        specs = [NetworkSpec(max(N, 100), 1, N, L) for N in widths]
        # ten rows take ten times the memory and up to a hundred times the work: every second width of those that fit
        specs += [NetworkSpec(_COLUMNS, _ROWS, N, L) for N in sorted([N for N in widths if 100 <= N <= 100_000][::-2])]
        return [Cell({"width": spec.width, "K": spec.output_dim}, spec, (), Statistic()) for spec in specs]

    def networks(self, cells: Sequence[Cell]) -> Sequence[int]:
        """Equal work, so that all widths are seen as well."""
        return [
            max(40, min(200_000, 30_000_000 // cell.spec.width))
            if cell.spec.output_dim == 1
            else max(16, min(400, 1_000_000 // cell.spec.width))
            for cell in cells
        ]

    def describe(self, cells: Sequence[Cell]) -> Sequence[str]:
        widths = f"{min(self.widths):,} to {max(self.widths):,}"
        return (f"networks  vanilla ReLU, N={widths}, L={self.depth}, omega=1, at x = e_1, drawn matrix-free",)

    def predict(self, cell: Cell) -> Mapping[str, float]:
        if cell.spec.output_dim > 1:
            return {"coefficient_error": first_order(cell.spec)}
        return {"excess_kurtosis": 3 * excess(cell.spec), "shortfall": 1 - mean_scale(cell.spec)}

    def claims(self, data: Any) -> Sequence[Claim]:
        return [claim for i, cell in enumerate(self.cells()) for claim in self._claims(cell, sample_of(data, i))]

    def _claims(self, cell: Cell, sample: Mapping[str, np.ndarray]) -> list[Claim]:
        n, K, predicted = cell.spec.input_dim - 1, cell.spec.output_dim, self.predict(cell)
        squares, errors = np.square(sample["frobenius"], dtype=np.float64) / K, {}
        for p in _EXPONENTS if K == 1 else (2.0,):
            beta = theory.operator_norm_coefficient(p, 2, n, K, "sharp")
            errors[p] = np.asarray(sample[f"norm_{exponent(p)}"], np.float64) / beta - (squares - 1) / 2 - 1

        options: dict[str, Any] = {}
        if K > 1:
            # the next order is about the square of the first
            options = {"allowance": abs(predicted["coefficient_error"]), "reason": "first order in 1/N"}
            found = [
                ("coefficient_error", f"error 2->2, K={K}", {"p": 2.0}, predicted["coefficient_error"], errors[2.0])
            ]
        else:
            fourth = 3 * ((squares - 1) ** 2 - 2 / n) / (1 + 2 / n)
            found = [("excess_kurtosis", "excess kurtosis", {}, predicted["excess_kurtosis"], fourth)]
            found += [("shortfall", "shortfall", {}, predicted["shortfall"], -errors[2.0])]
            found += [
                ("coefficient_error", f"error {exponent(p)}->2", {"p": p}, -predicted["shortfall"], errors[p])
                for p in (1.0, math.inf)
            ]
        return [
            Claim.of(
                f"{quantity}, N={cell.spec.width}", expected, statistics.mean_estimate(values), id=id,
                coords={**cell.coords, **coords}, **options,
            )
            for id, quantity, coords, expected, values in found
        ]  # fmt: skip

    def figures(self, data: Any, judged: Sequence[Judgement]) -> Mapping[str, Any]:
        return {"finite_width": _figure(judged, sorted(set(self.widths)), self.depth)}


def excess(spec: NetworkSpec) -> float:
    """F - 1, with all its digits."""
    with jax.enable_x64(True):
        return float(theory.finite_width_factor(spec)) - 1


def mean_scale(spec: NetworkSpec) -> float:
    """E r, exactly; E |g_n| = sqrt 2 Gamma((n + 1)/2) / Gamma(n/2)."""
    N, B = spec.width, np.arange(1, spec.width + 1)
    layer = scipy.stats.binom.pmf(B, N, 0.5) @ scipy.special.poch(B / 2, 0.5) * 2 / math.sqrt(N)
    return float(scipy.special.poch(N / 2, 0.5) * math.sqrt(2 / N) * layer**spec.depth)


def first_order(spec: NetworkSpec) -> float:
    """The error of beta_{2,2}, to first order in 1/N."""
    across = spec.replace(input_dim=spec.input_dim - 1)
    beta = theory.operator_norm_coefficient(2, 2, across.input_dim, across.output_dim, "sharp")
    return theory.spectral_norm_mean(across) / beta - 1


def _if_known(spec: NetworkSpec) -> float:
    """The error to first order, nan where N is so small that there is no such order."""
    with contextlib.suppress(ValueError):
        return first_order(spec)
    return math.nan


def _figure(judged: Sequence[Judgement], widths: Sequence[int], depth: int):
    """Three panels: kurtosis, shortfall of the length, error of the coefficients."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(14.5, 5.2), layout="constrained")
    drawn.suptitle(f"The Jacobian at finite width: vanilla ReLU networks, $L = {depth}$, $\\omega = 1$", fontsize=13)
    drawn.set_label(
        "What a finite width N does to the Jacobian, measured and by theory, against N: excess kurtosis of its "
        "entries, shortfall of its mean length, and error of the sharp coefficients of its norms."
    )
    drawn.supxlabel("lines: theory; points: measured $\\pm$ 2 s.e. by network, shown if 2 s.e. < |theory|", size=10)
    a, b, c = drawn.subplots(1, 3)

    def label(axes, x, y, text, colour, side="right"):
        axes.text(x, y, text, transform=axes.transAxes, color=colour, fontsize=10, ha=side, linespacing=1.5)

    def panel(axes, title, estimator):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set(xscale="log", yscale="log", xlabel="width $N$")
        axes.grid(color=GREY, alpha=0.15, lw=0.6)
        label(axes, 0.04, 0.04, f"estimated {estimator}", GREY, "left")

    def dots(axes, id, marker="o", colour=BLUE, shift=1.0, **coords):
        # chosen by what theory expects: chosen by what was measured, the points shown would be the larger ones
        claims = [judgement.claim for judgement in find(judged, id, **coords)]
        seen = [claim for claim in claims if 2 * claim.standard_error < abs(claim.theory)]
        points = [
            (shift * float(claim.coords["width"]), abs(claim.measured), 2 * claim.standard_error) for claim in seen
        ]
        columns = np.transpose(points or [(math.nan,) * 3])
        axes.errorbar(*columns, fmt=marker, color=colour, ms=4.5, elinewidth=1, capsize=2, zorder=3)

    N = np.unique(np.geomspace(widths[0], widths[-1] + 1, 61).astype(int))
    specs = [NetworkSpec(_COLUMNS, _ROWS, int(width), depth) for width in N]
    excesses, shortfall = np.transpose([(excess(spec), 1 - mean_scale(spec)) for spec in specs])
    panel(a, "(a) excess kurtosis of an entry of $J$", "from lengths, $E\\,|J|^4 = F\\,(1 + 2/n)$")
    a.plot(N, 3 * excesses, color=RED, lw=1.2)
    dots(a, "excess_kurtosis")
    label(a, 0.96, 0.87, "exact: $3\\,(F - 1)$\n$F = (1 + 2/N)\\,(1 + 5/N)^L$", RED)
    panel(b, "(b) shortfall of the mean length, $1 - E\\,r$", "from $|J| - (|J|^2 - 1)/2$, as $E\\,|J|^2 = 1$")
    b.plot(N, -np.expm1(-np.log1p(excesses) / 8), color=GREY, lw=1.2, ls="--")
    b.plot(N, shortfall, color=RED, lw=1.2)
    dots(b, "shortfall")
    label(b, 0.96, 0.87, "exact: a product of $\\chi$ laws\n(dashed: $1 - e^{-w/8}$, $w = \\ln F$)", RED)
    panel(c, "(c) error of sharp coefficients, $|E\\,\\|J\\|_{p \\to 2}/\\beta - 1|$", "as in (b)")
    c.plot(N, shortfall, color=RED, lw=1.2)
    c.plot(N, [_if_known(spec) for spec in specs], color=ORANGE, lw=1.2)
    dots(c, "coefficient_error", "s", ORANGE, K=_ROWS)
    dots(c, "coefficient_error", "v", shift=0.9, K=1, p=1.0)
    dots(c, "shortfall")
    dots(c, "coefficient_error", "^", shift=1.11, K=1, p=math.inf)
    label(c, 0.96, 0.87, f"$K = {_ROWS}$, $p = 2$: $\\beta$ too low\nline: first order in $1/N$", ORANGE)
    label(c, 0.04, 0.12, "$K = 1$: $\\beta$ too high by $1 - E\\,r$\n$p$ = 1 ▼, 2 ●, $\\infty$ ▲", RED, "left")
    return drawn
