"""The largest p->q norm of the Jacobian over all inputs, beside that at a typical one."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mftadv import report, statistics, theory
from mftadv.compare import Claim, Judgement
from mftadv.experiments._experiment import Experiment
from mftadv.experiments._networks import exponent
from mftadv.experiments.capacity import fit
from mftadv.linear import linear_representation
from mftadv.network import init
from mftadv.norms import dual_vector, vector_norm
from mftadv.report import BLUE, GREY, ORANGE, RED
from mftadv.spec import LARGEST, NetworkSpec, check_exponent, check_positive, dual_exponent, fold_in_loop
from mftadv.statistics import Estimate
from mftadv.sweep import Cell, sample_of

_FIRST, _LAST = 2.0, 0.05  # lengths of the segment, for inputs of norm 1
_STEP = 0.3  # of an input, as a part of the segment's length
_ORDER = 0.15  # how far a power of d may be off


@dataclasses.dataclass(frozen=True)
class Statistic:
    """Of one network, for each p, |J|_{p->q} at random inputs, and the largest that a search over inputs has found.

    |J(x)| is piecewise constant: its derivative by x is 0. The search ascends the mean of J eta over a segment,

        [f(x + r eta / 2) - f(x - r eta / 2)] / r,      of gradient [J(x + r eta / 2) - J(x - r eta / 2)] / r,

    on the sphere |x| = 1, along the eta of norm 1 for which J(x) eta is largest, while r falls from 2 to .05 in equal
    ratios. Every |J(x)| on the way counts, so that what is found is a norm at an input, from below.

    `typical` and `supremum` [P], for the exponents p. It is a value, so that runs are told apart by it.
    """

    p: tuple[float, ...]
    starts: int
    steps: int

    def __call__(self, key: Key[Array, ""], spec: NetworkSpec) -> dict[str, Array]:
        # Cells that shared the networks' keys would share some of their noise, and err together.
        key = fold_in_loop(key, [[spec.width, spec.input_dim]])[0]
        return self.search(init(key, spec), jax.random.fold_in(key, 1))

    def search(self, network: Any, key: Key[Array, ""]) -> dict[str, Array]:
        """What is found of one network."""
        inputs = dual_vector(
            jax.random.normal(key, (len(self.p) * self.starts, network.spec.input_dim), network.dtype), 2
        )

        def step(carry, length):
            x, eta = carry
            ends = jnp.concatenate([x, x + length * eta / 2, x - length * eta / 2])
            at, up, down = jnp.split(linear_representation(network, ends).jacobian[:, 0], 3)
            rise = up - down
            rise = dual_vector(rise - jnp.sum(rise * x, axis=-1, keepdims=True) * x, 2)
            rows = list(zip(self.p, jnp.split(at, len(self.p)), strict=True))
            norms = jnp.stack([vector_norm(row, dual_exponent(p)) for p, row in rows])
            eta = jnp.concatenate([dual_vector(dual_vector(row, p), 2) for p, row in rows])
            return (dual_vector(x + _STEP * length * rise, 2), eta), norms

        # The first step has no direction yet: it evaluates the inputs, and moves nothing.
        lengths = _FIRST * (_LAST / _FIRST) ** jnp.linspace(0, 1, self.steps, dtype=inputs.dtype)
        _, norms = jax.lax.scan(step, (inputs, jnp.zeros_like(inputs)), lengths)
        return {"typical": norms[0].mean(-1), "supremum": norms.max((0, 2))}


@dataclasses.dataclass(frozen=True)
class Supremum(Experiment):
    """Search all inputs for the largest norm of the Jacobian, and hold it against that at a typical input.

    The bound of the paper, eps beta_{p,q} omega^{L/2}, is about a typical input x, where |J(x)|_{p->q} of one output is
    omega^{L/2} |g|_{p*} / sqrt d, g [d] standard normal, p* = p/(p-1). The Lipschitz constant of a network is the
    supremum over x. Dirksen, Finke, Geuchen, Stoeger and Voigtlaender (arXiv 2506.19695) show of wide networks that it
    behaves like |g|_{p*} for p >= 2 as well, yet like |g|_2 for p < 2: at p = 1 it exceeds the typical norm by a factor
    that grows with d, like sqrt(d / (2 ln 2 d)).

    For each p the found supremum over E |g|_2 (p < 2) or E |g|_{p*} (p >= 2) is fitted by a power of d: claimed is the
    power 0, to .15, for a search finds the supremum from below, and at small d the largest of the d entries adds to it.
    For p < 2 the same is claimed over the typical E |g|_{p*}, and expected to fail. Networks are vanilla ReLU, s = 2
    (omega = 1), without bias, of width N = --expansion d.
    """

    name: ClassVar[str] = "supremum"
    source: ClassVar[str] = "Dirksen et al., arXiv 2506.19695; the paper's bound is about typical inputs"
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(("typical", "supremum"), ("p",))

    dims: tuple[int, ...] = (8, 32, 128)
    """Input dimensions d."""
    p: tuple[float, ...] = (1.0, 2.0, math.inf)
    """Exponents of the perturbation's norm."""
    expansion: int = 16
    """Width over input dimension, N / d."""
    depth: int = 1
    """Number of hidden layers L."""
    starts: int = 2
    """Random inputs that a search starts from, for each p."""
    steps: int = 40
    """Steps of a search."""

    def cells(self) -> Sequence[Cell]:
        for name in ("dims", "p"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one number, got none")
        for name in ("expansion", "starts", "steps"):
            check_positive(name, getattr(self, name), LARGEST)
        statistic = Statistic(self._ps, self.starts, self.steps)
        dims = sorted({check_positive("dims", d, LARGEST) for d in self.dims})
        if len(dims) < 2:
            raise ValueError(f"dims: expected at least two, for a fit, got {self.dims}")
        check_positive("expansion", self.expansion, LARGEST // dims[-1])
        return [Cell({"d": d}, NetworkSpec(d, 1, self.expansion * d, self.depth), (), statistic) for d in dims]

    @property
    def _ps(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(check_exponent("p", p) for p in self.p))

    def networks(self, cells: Sequence[Cell]) -> Sequence[int]:
        """The more, the less they cost."""
        return [max(4, min(64, 512 // cell.spec.input_dim)) for cell in cells]

    def describe(self, cells: Sequence[Cell]) -> Sequence[str]:
        return (
            f"networks  vanilla ReLU, d={' '.join(str(cell.spec.input_dim) for cell in cells)}, N={self.expansion} d, "
            f"L={self.depth}, omega=1",
            f"search    {self.starts} starts of {self.steps} steps for each p",
        )

    def predict(self, cell: Cell) -> Mapping[str, float]:
        """The typical norm for each p, as `typical_p`; |g|_2 / sqrt d is that of p = 2."""
        return {f"typical_{exponent(p)}": mean_norm(cell.spec.input_dim, p) for p in dict.fromkeys((*self._ps, 2.0))}

    def claims(self, data: Any) -> Sequence[Claim]:
        cells, claims = self.cells(), []
        dims = np.array([float(cell.spec.input_dim) for cell in cells])
        found = [np.asarray(sample_of(data, i)["supremum"], np.float64) for i in range(len(cells))]
        for at, p in enumerate(self._ps):

            def power(of: float, at: int = at) -> Estimate:
                over = [row[:, at] / mean_norm(int(d), of) for d, row in zip(dims, found, strict=True)]
                fitted = fit(dims, over)
                return Estimate(fitted.exponent, fitted.error, fitted.degrees_of_freedom)

            norm, coords = exponent(dual_exponent(max(p, 2.0))), {"p": p}
            seen, of = power(max(p, 2.0)), {"kind": "at_most", "id": "order", "scale": 1.0}
            for side, sign in (("rise", 1), ("fall", -1)):
                each = dataclasses.replace(seen, value=sign * seen.value)
                text = f"{side} of sup |J| / |g|_{norm}, power of d, p={exponent(p)}"
                claims.append(Claim.of(text, _ORDER, each, coords={**coords, "side": side}, **of))
            if p < 2:
                text = f"rise of sup |J| / |g|_{exponent(dual_exponent(p))}, power of d, p={exponent(p)}"
                note = "the supremum over inputs exceeds the typical norm by a factor that grows with d"
                of = {"id": "order_typical", "scale": 1.0, "expected": "fails", "note": note}
                claims.append(Claim.of(text, 0.0, power(p), coords=coords, **of))
        return claims

    def rows(self, data: Any) -> list[dict[str, float]]:
        """For each p and d the means over networks of the typical norm and of the found supremum, and their ratio."""
        rows = []
        for at, p in enumerate(self._ps):
            for i, cell in enumerate(self.cells()):
                names = ("supremum", "typical")
                pair = [np.asarray(sample_of(data, i)[name][:, at], np.float64) for name in names]
                ratio, means = statistics.ratio_estimate(*pair), (float(np.mean(each)) for each in pair)
                known = {"p": p, "d": cell.spec.input_dim, "theory": mean_norm(cell.spec.input_dim, p)}
                rows.append(known | dict(zip(names, means, strict=True)))
                rows[-1] |= {"ratio": ratio.value, "error": ratio.standard_error}
        return rows

    def figures(self, data: Any, judged: Sequence[Judgement]) -> Mapping[str, Any]:
        title = f"vanilla ReLU networks, N = {self.expansion} d, L = {self.depth}"
        return {"supremum": _figure(title, self.rows(data))}

    def tables(self, data: Any, judged: Sequence[Judgement], wide: bool = False) -> Sequence[Any]:
        legend = "typical: |J| at random inputs, and by theory; supremum: the largest |J| found over all inputs."
        table = report.table("norms of J over inputs", legend)
        for name in ("p", "d", "theory", "typical", "supremum", "supremum / typical"):
            table.add_column(name, justify="right")
        for row in self.rows(data):
            numbers = (f"{row[name]:.3g}" for name in ("theory", "typical", "supremum"))
            table.add_row(exponent(row["p"]), f"{row['d']}", *numbers, f"{row['ratio']:.3g} +- {row['error']:.2g}")
        return [table, *super().tables(data, judged, wide)]


def mean_norm(d: int, p: float) -> float:
    """E |g|_{p*} / sqrt d, g [d] standard normal."""
    return theory.operator_norm_coefficient(p, 2, d, 1, "sharp")


def _figure(title: str, rows: Sequence[Mapping[str, float]]):
    """The norms against d, and the ratio of the supremum and the typical norm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.set_label(
        "The norm of J at a typical input and the largest found over all inputs, against the input dimension d, for "
        "each p; and their ratio, which grows with d for p = 1 alone."
    )
    left, right = figure.subplots(1, 2)
    for p, colour in zip(dict.fromkeys(row["p"] for row in rows), (BLUE, ORANGE, RED, GREY) * len(rows), strict=False):
        own = [row for row in rows if row["p"] == p]
        d, label = [row["d"] for row in own], f"p = {exponent(p)}"
        left.plot(d, [row["supremum"] for row in own], "^", color=colour, label=f"{label}, supremum found")
        left.plot(d, [row["typical"] for row in own], "o", color=colour, ms=4, label=f"{label}, typical")
        left.plot(d, [row["theory"] for row in own], "-", color=colour, lw=1.2)
        errors = [2 * row["error"] for row in own]
        right.errorbar(
            d, [row["ratio"] for row in own], errors, fmt="o-", color=colour, ms=4, lw=0.8, capsize=3, label=label
        )
        if p < 2:
            growth = np.array([mean_norm(int(each), 2.0) / mean_norm(int(each), p) for each in d])
            growth *= own[0]["ratio"] / growth[0]
            norm = r"\infty" if p == 1 else exponent(dual_exponent(p))
            label = rf"in proportion to $|g|_2\,/\,|g|_{{{norm}}}$"
            right.plot(d, growth, "--", color=colour, lw=1.2, label=label)
    ticks = sorted({row["d"] for row in rows})
    for axes, name in ((left, r"$|J|_{p\to q}$, one output (lines: theory)"), (right, "supremum over typical")):
        axes.set(xscale="log", yscale="log", xlabel="input dimension $d$", ylabel=name)
        axes.set_xticks(ticks, ticks, minor=False)
        axes.xaxis.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(color=GREY, alpha=0.15, lw=0.6)
        axes.legend(frameon=False, fontsize=7.5)
    right.yaxis.set_minor_formatter("{x:g}")
    return figure
