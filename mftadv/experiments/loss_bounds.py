"""The paper's second claim: the bound eps beta_{p,q} omega^{L/2} on the adversarial loss of a random network."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from mftadv import report, statistics, theory
from mftadv.attack import Attack, adversarial_loss, capacity_for, named_attack
from mftadv.compare import Claim, Judgement, find
from mftadv.data import load_inputs
from mftadv.experiments import _loss_figures
from mftadv.experiments._networks import (
    AtInputs,
    OfNetworks,
    exponent,
    growth_along_input,
    least_cost,
    width_effect,
)
from mftadv.norms import operator_norm
from mftadv.spec import LARGEST, NetworkSpec, check_exponent, check_positive, representable
from mftadv.sweep import Cell, sample_of

_AFFORDABLE = 10**10  # the cost, in random numbers drawn, of a run that names no number of networks
_MOST, _LEAST = 64, 16  # networks of each cell of such a run

KINDS = ("published", "leading", "chevet", "sharp")
CONFIDENCE = 0.99  # of the bound that one network obeys

# How far |J| may grow inside the ball: the loss exceeds eps |J(x)| by a part of this size, and no coefficient knows.
_GROWTH = 0.05
_TREND = 1.5  # by what factor a bound changes with a dimension where a trend is claimed


@dataclasses.dataclass(frozen=True)
class Statistic(AtInputs):
    """What is stored of one network at B inputs for one size.

    `loss`, what the attack reaches; `norm`, |J(x)|_{p->q}, from below where it is NP-hard; `converged` and `nonfinite`,
    all [B]; and `law_exact` [].

    Every size has the network of the same key, queried anew: the law at each size is exact, that of differences between
    sizes is so for dense networks alone.
    """

    p: float
    q: float
    attack: Attack

    def capacity(self, spec: NetworkSpec, num_inputs: int) -> tuple[int, int]:
        return capacity_for(spec, adversarial_loss=num_inputs, attack=self.attack)

    def __call__(
        self, key: Key[Array, ""], spec: NetworkSpec, xs: Float[Array, "B d"], eps: Float[Array, ""]
    ) -> dict[str, Any]:
        found = adversarial_loss(self.network(key, spec, xs), xs, eps, self.p, self.q, key, self.attack)
        return {
            "loss": found.value,
            "norm": operator_norm(found.jacobian, self.p, self.q, key).lower,
            "converged": found.converged,
            "nonfinite": found.nonfinite,
            "law_exact": jax.numpy.asarray(found.law_exact),
        }


@dataclasses.dataclass(frozen=True)
class LossBounds(OfNetworks):
    """Attack random networks, and hold the adversarial loss against eps |J(x)| and the bound of each kind.

    An attack reaches a lower value of the loss, a bound is one from above: attack <= loss <= bound. The first part runs
    over p, q and eps at the inputs; the second, over gaussian inputs of mean square 1, shows what the dimensions do:
    over --dims with the K of --output-dim, and over --outputs with the first d of --dims, at q = 2. The engine does not
    change the attack; a matrix-free one costs the square of its queries, so that --attack frugal is the one for it.
    """

    name: ClassVar[str] = "bounds"
    source: ClassVar[str] = "the paper, its bound on the adversarial loss"
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("loss", "norm", "converged", "nonfinite"), ("input",)),
        "law_exact": (),
    }

    inputs: int = 1
    """Number of inputs, chosen at random from the data; a matrix-free network costs the square of it."""
    output_dim: int = 4
    """Number of outputs K."""
    p: tuple[float, ...] = (1.0, 2.0, math.inf)
    """Exponents of the perturbation's norm."""
    q: tuple[float, ...] = (1.0, 2.0, math.inf)
    """Exponents of the output's norm."""
    eps: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """Sizes of the perturbation in its p-norm, numbers or quotients (8/255); the second part takes the smallest."""
    dims: tuple[int, ...] = (16, 64, 256)
    """Input dimensions d of the second part."""
    outputs: tuple[int, ...] = (1, 4, 16)
    """Output dimensions K of the second part."""
    attack: Literal["default", "thorough", "frugal"] = "default"
    """How hard to attack: from a few starts, from 64, or from one with 8 steps."""

    def cells(self) -> Sequence[Cell]:
        self._check()
        cells = list(self._cells())
        # cells that share a program are next to each other, in the order in which programs are first needed
        programs = [(cell.statistic, cell.operands[0].shape, cell.spec.output_dim) for cell in cells]
        order = sorted(range(len(cells)), key=lambda i: programs.index(programs[i]))
        return [cells[i] for i in order]

    def _check(self) -> None:
        for name in ("p", "q", "eps", "dims", "outputs"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one number, got none")
        for name, value in (*(("p", p) for p in self.p), *(("q", q) for q in self.q)):
            check_exponent(name, value)
        if bad := [eps for eps in self.eps if eps == 0 or not representable(eps, self.dtype)]:
            raise ValueError(f"eps: expected finite numbers > 0 in {self.dtype}, got {bad[0]}")
        for name, value in (*(("dims", d) for d in self.dims), *(("outputs", K) for K in self.outputs)):
            check_positive(name, value, LARGEST)

    def _cells(self) -> Iterator[Cell]:
        """One for each p, q and eps at the inputs; one for each shape and p at gaussian inputs."""
        sizes = sorted(set(self.eps))
        ps, qs = dict.fromkeys(self.p), dict.fromkeys(self.q)
        for p, q in itertools.product(ps, qs):
            for eps in sizes:
                yield self._cell("inputs", self.law, self.points.values, p, q, eps)
        shapes = {(d, self.output_dim): "d" for d in self.dims}
        for K in self.outputs:
            shape = self.dims[0], K
            shapes[shape] = "d K" if shapes.get(shape, "K") != "K" else "K"
        for (d, K), part in shapes.items():
            xs = load_inputs("gaussian", self.inputs, self.seed, input_dim=d).values
            for p in ps:
                yield self._cell(part, self.law.replace(input_dim=d, output_dim=K), xs, p, 2.0, sizes[0])

    def _cell(self, part: str, spec: NetworkSpec, xs: np.ndarray, p: float, q: float, eps: float) -> Cell:
        """A cell; `part` names the parts of the results that it belongs to, by what varies in them."""
        coords = {"p": float(p), "q": float(q), "eps": float(eps), "d": spec.input_dim, "K": spec.output_dim}
        statistic = Statistic(self.engine, coords["p"], coords["q"], named_attack(self.attack, p))
        return Cell({**coords, "part": part}, spec, (xs, np.asarray(eps, np.float64)), statistic)

    def networks(self, cells: Sequence[Cell]) -> Sequence[int]:
        return [int(min(_MOST, max(_LEAST, _AFFORDABLE // sum(map(least_cost, cells)))))] * len(cells)

    def describe(self, cells: Sequence[Cell]) -> Sequence[str]:
        attacks = {p: named_attack(self.attack, p) for p in self.p}
        pieces = {p: "; ".join(", ".join(map(repr, part)) for part in (a.starts, a.rules)) for p, a in attacks.items()}
        return (
            *super().describe(cells),
            *(f"attack    {self.attack}, p={exponent(p)}: {text}" for p, text in pieces.items()),
        )

    def predict(self, cell: Cell) -> Mapping[str, float]:
        p, q, eps = (float(cell.coords[name]) for name in ("p", "q", "eps"))
        return predictions(cell.spec, cell.operands[0], eps, p, q)

    def claims(self, data: Any) -> Sequence[Claim]:
        claims = [
            claim
            for i, cell in enumerate(self.cells())
            for claim in claims_of(cell.spec, self.predict(cell), sample_of(data, i), self.dtype, cell.coords)
        ]
        return [*claims, *self._trends(data)]

    def _trends(self, data: Any) -> Iterator[Claim]:
        """Where Chevet's bound at this width falls or rises with d or K by half or more, so does the loss."""
        cells = list(enumerate(self.cells()))
        for name, p in itertools.product(("d", "K"), dict.fromkeys(map(float, self.p))):
            own = [each for each in cells if name in str(each[1].coords["part"]).split() and each[1].coords["p"] == p]
            own = sorted(own, key=lambda each: each[1].coords[name])
            (first, few), (last, many) = own[0], own[-1]
            growth = self.predict(many)["at_width"] / self.predict(few)["at_width"]
            if 1 / _TREND < growth < _TREND:
                continue
            low, high = (sample_of(data, i)["loss"] for i in ((first, last) if growth > 1 else (last, first)))
            n = min(len(low), len(high))
            ratio = statistics.ratio_estimate(low[:n].astype(np.float64), high[:n].astype(np.float64))
            text = f"L_adv {'rises' if growth > 1 else 'falls'} with {name}, p={exponent(p)}"
            yield Claim.of(text, 1.0, ratio, kind="at_most", id="trend", coords={"of": name, "p": p})

    def rows(self, data: Any, judged: Sequence[Judgement]) -> list[dict[str, Any]]:
        """What was measured beside what is predicted, a record for each cell."""
        return [self._row(cell, sample_of(data, i), judged) for i, cell in enumerate(self.cells())]

    def _row(self, cell: Cell, sample: Mapping[str, np.ndarray], judged: Sequence[Judgement]) -> dict[str, Any]:
        estimate = statistics.mean_estimate(np.asarray(sample["loss"], np.float64))
        predicted = {name: value if math.isfinite(value) else math.nan for name, value in self.predict(cell).items()}
        verdicts = {
            kind: judgement.verdict
            for kind in ("chevet", "published")
            for judgement in find(judged, f"loss_{kind}", **cell.coords)
        }
        return {
            **cell.coords,
            **predicted,
            "loss": estimate.value,
            "standard_error": estimate.standard_error,
            **dict(
                zip(("low", "median", "high"), np.quantile(sample["loss"], (0.05, 0.5, 0.95)).tolist(), strict=True)
            ),
            "eps_norm": float(cell.coords["eps"]) * float(np.mean(sample["norm"], dtype=np.float64)),
            "tightness": estimate.value / predicted["chevet"] if predicted["chevet"] else math.nan,
            "converged": float(np.mean(sample["converged"])),
            "verdicts": verdicts,
        }

    def figures(self, data: Any, judged: Sequence[Judgement]) -> Mapping[str, Any]:
        rows, spec = self.rows(data, judged), self.law
        title = f"{spec.block}, N={spec.width}, L={spec.depth}, {len(sample_of(data, 0)['loss'])} networks, "
        title += f"attack on {self.inputs} input{'s' * (self.inputs > 1)}"
        return {
            "loss": _loss_figures.sizes(f"{title}, d={spec.input_dim}, K={spec.output_dim}", rows),
            "dimensions": _loss_figures.dimensions(f"{title}, gaussian inputs, eps={min(self.eps):g}, q=2", rows),
        }

    def tables(self, data: Any, judged: Sequence[Judgement], wide: bool = False) -> Sequence[Any]:
        rows = self.rows(data, judged)
        trends = find(judged, "trend")
        of_part = {part: [row for row in rows if part in row["part"].split()] for part in ("inputs", "d", "K")}
        return [
            _table("inputs", "eps", of_part["inputs"], wide),
            *(_table(part, part, sorted(of_part[part], key=lambda row: row[part]), wide) for part in ("d", "K")),
            *([report.verdict_table("the smaller loss over the larger", trends, wide)] if trends else ()),
        ]


def predictions(spec: NetworkSpec, xs: Float[np.ndarray, "B d"], eps: float, p: float, q: float) -> dict[str, float]:
    """The bounds and laws that there are for a pair, block and shape.

    `published`, `leading`, `chevet`, `sharp`: the bound of that kind, of infinite width; `at_width`: Chevet's at this
    width, with what growth along the inputs adds, `growth`; `confident`: the one that a network obeys with probability
    .99; `one_step`: the law of one step; `least`: the mean norm of one row where that of all is not known.
    """
    square = float(np.mean(np.sum(xs**2, axis=-1)))
    with jax.enable_x64(True):
        growth = eps * max(growth_along_input(spec, x, [(p, q)])[p, q] for x in xs)
    ways: dict[str, Callable[[], Any]] = {
        **{kind: partial(theory.adversarial_loss_bound, spec, eps, p, q, kind=kind) for kind in KINDS},
        "at_width": lambda: found["chevet"] * (1 + theory.chevet_excess(spec, p, q)) + growth,
        "growth": lambda: growth,
        "confident": lambda: theory.adversarial_loss_bound(spec, eps, p, q, confidence=CONFIDENCE),
        "one_step": lambda: theory.one_step_loss(spec, eps, math.sqrt(square), p, q),
        "least": lambda: (
            found.get("sharp") or theory.adversarial_loss_bound(spec.replace(output_dim=1), eps, p, 1.0, "sharp")
        ),
    }
    found: dict[str, float] = {}
    for name, way in ways.items():
        with jax.enable_x64(True), contextlib.suppress(ValueError):
            found[name] = float(way())
    return found


def claims_of(
    spec: NetworkSpec, predicted: Mapping[str, float], sample: Mapping[str, np.ndarray], dtype: Any, coords: Mapping
) -> list[Claim]:
    """The claims "loss_chevet" and, where there is one, "loss_published": the loss is at most that bound.

    Chevet's is of infinite width, where |J| has its least mean: the claim is about this width. A loss that the float
    type cannot tell from 0 to its own precision says nothing of a bound: it counts as not measured.

    Args:
        spec: the law of the networks.
        predicted: see `predictions`.
        sample: of n networks, see `Statistic`: `loss` and `nonfinite` [n, B].
        dtype: in which they were computed.
        coords: of the claims.
    """
    loss, limits = np.asarray(sample["loss"], np.float64), np.finfo(dtype)
    resolved = predicted["chevet"] * float(limits.eps) > float(limits.tiny)
    measured = statistics.mean_estimate(loss if resolved else loss[:0])
    name = f"L_adv {exponent(coords['p'])}->{exponent(coords['q'])}, d={coords['d']}, K={coords['K']}, "
    name += f"eps={coords['eps']:g}"
    grows, effect, growth = "|J| grows a little inside the ball", width_effect(spec), predicted["growth"]
    # a candidate that broke down is not in the loss, which may be the lower for it
    nonfinite = measured.nonfinite + int(np.sum(sample["nonfinite"]))
    options = {"kind": "at_most", "allowance": _GROWTH, "reason": grows, "nonfinite": nonfinite, "coords": coords}
    note = "with the growth along x" if growth else ""
    bound = predicted["at_width"]
    claims = [Claim.of(f"{name}, Chevet at this width", bound, measured, note=note, id="loss_chevet", **options)]
    if "published" in predicted:
        # the norm of one row is below that of all: where the mean itself is not known, it stands in
        least, published = predicted["least"], predicted["published"]
        holds = published >= 0.99 * least and not growth
        options |= {"scale": least, "expected": "holds" if holds else "fails", "allowance": 0.0, "reason": ""}
        if holds:
            options |= {"allowance": _GROWTH + effect.excess}
            options |= {"reason": f"{grows}; {effect.reason}" if effect.excess else grows}
        note = "" if holds else "the published coefficient is no upper bound here"
        claims.append(Claim.of(f"{name}, published", published, measured, note=note, id="loss_published", **options))
    return claims


def _table(part: str, varied: str, rows: Sequence[Mapping[str, Any]], wide: bool) -> Any:
    """The adversarial loss beside its bounds, where `varied` differs besides p and q."""
    fixed = ", ".join(f"{name}={rows[0][name]:g}" for name in ("eps", "d", "K") if name != varied)
    legend = (
        "L_adv: what the attack reaches. Chevet, N: Chevet's bound at this width; tight: L_adv over Chevet's of "
        "infinite width. under ...: whether L_adv is below that bound (fails*: it is above, as predicted)."
    )
    columns = {"L_adv": "loss", "+- s.e.": "standard_error"}
    if wide:
        columns |= {"5%": "low", "50%": "median", "95%": "high", "eps |J|": "eps_norm", "one step": "one_step"}
        columns |= {"published": "published", "leading": "leading", "sharp": "sharp", "Chevet": "chevet"}
    columns |= {"Chevet, N": "at_width"}
    if wide:
        columns |= {"99%": "confident"}
        legend += " 5%, 50%, 95%: of networks. 99%: the bound that one network obeys with that probability."
    table = report.table(f"{'the inputs' if part == 'inputs' else 'gaussian inputs'}, {fixed}", legend)
    table.add_column("p->q")
    for name in (varied, *columns, "tight"):
        table.add_column(name, justify="right")
    table.add_column("under it")
    table.add_column("under publ.")
    for row in rows:
        table.add_row(
            f"{exponent(row['p'])}->{exponent(row['q'])}",
            f"{row[varied]:g}",
            *(report.number(row.get(name), ".3g") for name in columns.values()),
            report.number(row["tightness"], ".2f"),
            *(report.verdict(verdict) for verdict in row["verdicts"].values()),
        )
    return table
